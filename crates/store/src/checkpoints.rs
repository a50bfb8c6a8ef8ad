//! The table of checkpoints: what a job can resume from, and models that answer while it trains.
//!
//! Written by workers, read by the checkpoints API, by resumes and by the serving registry. The one
//! thing to know: the row of an expired checkpoint stays (its metrics are history), with
//! `has_model` and `has_state` false.

use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;

use crate::row::{Cols, to_json};
use crate::{CheckpointId, JobId, LeaseToken, NewEvent, Page, PageQuery, Result, Store, events, lease};

/// A checkpoint to record; its folder is written already.
#[derive(Debug, Clone)]
pub struct NewCheckpoint {
    /// The optimiser step.
    pub step: i64,
    /// Its name in requests: [`crate::checkpoint_name`].
    pub model_name: String,
    /// The folder of its files in the blob store: [`crate::Keys::checkpoint`].
    pub folder_key: String,
    /// Its evaluation.
    pub metrics: Value,
    /// Whether it is the best so far.
    pub is_best: bool,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRow {
    /// The id.
    pub id: CheckpointId,
    /// The job.
    pub job_id: JobId,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
    /// The optimiser step.
    pub step: i64,
    /// Its name in requests.
    pub model_name: String,
    /// The folder of its files in the blob store.
    pub folder_key: String,
    /// Its evaluation.
    pub metrics: Value,
    /// Whether its model files are kept, so that it answers.
    pub has_model: bool,
    /// Whether its optimiser state is kept, so that the job can resume from it.
    pub has_state: bool,
    /// Whether it is the job's best.
    pub is_best: bool,
}

/// What a checkpoint's name leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckpointLookup {
    /// A checkpoint that answers.
    Found(CheckpointRow),
    /// One whose model files were removed to make room for later ones.
    Expired(CheckpointRow),
    /// No checkpoint has or had that name.
    NotFound,
}

impl CheckpointRow {
    pub(crate) fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("checkpoints", row);
        Ok(Self {
            id: cols.parse("id")?,
            job_id: cols.parse("job_id")?,
            created_at: cols.get("created_at")?,
            step: cols.get("step")?,
            model_name: cols.get("model_name")?,
            folder_key: cols.get("folder_key")?,
            metrics: cols.json("metrics")?,
            has_model: cols.get("has_model")?,
            has_state: cols.get("has_state")?,
            is_best: cols.get("is_best")?,
        })
    }
}

impl Store {
    /// Records a checkpoint with its event. A step that a resumed job reaches again replaces its
    /// row and keeps its id.
    pub async fn insert_checkpoint(&self, lease: &LeaseToken, new: &NewCheckpoint) -> Result<CheckpointRow> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        lease::hold(&mut tx, lease, now).await?;
        if new.is_best {
            sqlx::query("UPDATE checkpoints SET is_best = FALSE WHERE job_id = $1 AND is_best")
                .bind(lease.job.to_string())
                .execute(&mut *tx)
                .await?;
        }
        let row = sqlx::query(
            "INSERT INTO checkpoints (id, job_id, created_at, step, model_name, folder_key, metrics, has_model, has_state, \
             is_best) VALUES ($1, $2, $3, $4, $5, $6, $7, TRUE, TRUE, $8) \
             ON CONFLICT (job_id, step) DO UPDATE SET created_at = excluded.created_at, model_name = excluded.model_name, \
             folder_key = excluded.folder_key, metrics = excluded.metrics, has_model = TRUE, has_state = TRUE, \
             is_best = excluded.is_best RETURNING *",
        )
        .bind(CheckpointId::generate(&**self.clock()).to_string())
        .bind(lease.job.to_string())
        .bind(now)
        .bind(new.step)
        .bind(&new.model_name)
        .bind(&new.folder_key)
        .bind(to_json("checkpoints", "metrics", &new.metrics)?)
        .bind(new.is_best)
        .fetch_one(&mut *tx)
        .await?;
        let row = CheckpointRow::read(&row)?;
        let event = NewEvent::info(format!("Checkpoint created at step {}: {}", new.step, new.model_name))
            .with(json!({"step": new.step, "checkpoint": new.model_name}));
        events::append(&mut tx, &**self.clock(), lease.job, &[event]).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// A page of a job's checkpoints, newest first.
    pub async fn list_checkpoints(&self, job: JobId, page: &PageQuery<CheckpointId>) -> Result<Page<CheckpointRow>> {
        let rows =
            sqlx::query("SELECT * FROM checkpoints WHERE job_id = $1 AND (CAST($2 AS TEXT) IS NULL OR id < $2) ORDER BY id DESC LIMIT $3")
                .bind(job.to_string())
                .bind(page.after.map(|id| id.to_string()))
                .bind(page.fetch())
                .fetch_all(self.reader())
                .await?;
        Ok(Page::cut(rows.iter().map(CheckpointRow::read).collect::<Result<_>>()?, page.limit))
    }

    /// All checkpoints of a job in the order of their steps.
    pub async fn checkpoints(&self, job: JobId) -> Result<Vec<CheckpointRow>> {
        let rows =
            sqlx::query("SELECT * FROM checkpoints WHERE job_id = $1 ORDER BY step").bind(job.to_string()).fetch_all(self.reader()).await?;
        rows.iter().map(CheckpointRow::read).collect()
    }

    /// The checkpoint that a job resumes from: the latest one whose state is kept.
    pub async fn resumable_checkpoint(&self, job: JobId) -> Result<Option<CheckpointRow>> {
        let row = sqlx::query("SELECT * FROM checkpoints WHERE job_id = $1 AND has_state ORDER BY step DESC LIMIT 1")
            .bind(job.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(CheckpointRow::read).transpose()
    }

    /// What a name in a request leads to.
    pub async fn checkpoint_by_name(&self, name: &str) -> Result<CheckpointLookup> {
        let row = sqlx::query("SELECT * FROM checkpoints WHERE model_name = $1").bind(name).fetch_optional(self.reader()).await?;
        let Some(row) = row else {
            return Ok(CheckpointLookup::NotFound);
        };
        let row = CheckpointRow::read(&row)?;
        Ok(if row.has_model { CheckpointLookup::Found(row) } else { CheckpointLookup::Expired(row) })
    }
}
