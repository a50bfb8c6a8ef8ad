//! The table of models that were trained here.
//!
//! Written by `finish.rs` when a job succeeds, read by the models API and by the serving registry.
//! The one thing to know: a model outlives its job, and deleting it takes its checkpoints with it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::row::{Cols, to_json};
use crate::{JobId, Kind, NewModel, Result, Store, StoreError};

/// What a model's folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// A Hugging Face folder with all weights.
    Full,
    /// A PEFT folder that needs its base.
    Adapter,
}

impl ModelKind {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelKind::Full => "full",
            ModelKind::Adapter => "adapter",
        }
    }
}

impl std::str::FromStr for ModelKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(ModelKind::Full),
            "adapter" => Ok(ModelKind::Adapter),
            _ => Err(format!("{text:?} is no kind of model")),
        }
    }
}

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRow {
    /// Its name in requests.
    pub name: String,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
    /// What its folder holds.
    pub kind: ModelKind,
    /// The base model's name as requested.
    pub base_name: String,
    /// Where the base came from (`hf:…`, `wheel:…`), never a path of one machine.
    pub base_source: String,
    /// The base's revision or checksum, where its source has one.
    pub base_revision: Option<String>,
    /// The job that made it, which may be deleted by now.
    pub job_id: Option<JobId>,
    /// The task's name.
    pub task: String,
    /// The labels in the order of their ids; empty where the task has none.
    pub labels: Vec<String>,
    /// The folder of its files in the blob store.
    pub folder_key: String,
    /// Its card.
    pub card: Value,
    /// The number of tokens that it was trained with.
    pub max_length: Option<i64>,
    /// Its final evaluation.
    pub metrics: Value,
}

impl ModelRow {
    pub(crate) fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("models", row);
        Ok(Self {
            name: cols.get("name")?,
            created_at: cols.get("created_at")?,
            kind: cols.parse("kind")?,
            base_name: cols.get("base_name")?,
            base_source: cols.get("base_source")?,
            base_revision: cols.get("base_revision")?,
            job_id: cols.parse_opt("job_id")?,
            task: cols.get("task")?,
            labels: cols.json("labels")?,
            folder_key: cols.get("folder_key")?,
            card: cols.json("card")?,
            max_length: cols.get("max_length")?,
            metrics: cols.json("metrics")?,
        })
    }
}

impl Store {
    /// A model by its name.
    pub async fn model(&self, name: &str) -> Result<ModelRow> {
        let row = sqlx::query("SELECT * FROM models WHERE name = $1")
            .bind(name)
            .fetch_optional(self.reader())
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::Model, name))?;
        ModelRow::read(&row)
    }

    /// All models, newest first.
    pub async fn list_models(&self) -> Result<Vec<ModelRow>> {
        let rows = sqlx::query("SELECT * FROM models ORDER BY created_at DESC, name").fetch_all(self.reader()).await?;
        rows.iter().map(ModelRow::read).collect()
    }

    /// Removes a model with its checkpoints; refused while adapters or unfinished jobs stand on it.
    pub async fn delete_model(&self, name: &str) -> Result<ModelRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let row = sqlx::query("SELECT * FROM models WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::Model, name))?;
        let model = ModelRow::read(&row)?;
        let by = needed_by(&mut tx, name).await?;
        if !by.is_empty() {
            return Err(StoreError::InUse { kind: Kind::Model, id: name.to_owned(), by });
        }
        sqlx::query("DELETE FROM models WHERE name = $1").bind(name).execute(&mut *tx).await?;
        if let Some(job) = model.job_id {
            sqlx::query("DELETE FROM checkpoints WHERE job_id = $1").bind(job.to_string()).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        drop(writer);
        self.blobs().delete_prefix(&model.folder_key).await?;
        if let Some(job) = model.job_id {
            self.blobs().delete_prefix(&crate::Keys::checkpoints(job)).await?;
        }
        Ok(model)
    }
}

/// Adapters on the model or on one of its checkpoints, and unfinished jobs that train it further.
async fn needed_by(conn: &mut SqliteConnection, name: &str) -> Result<Vec<String>> {
    let checkpoints = format!("{name}:ckpt-step-");
    Ok(sqlx::query_scalar(
        "SELECT name FROM models WHERE base_name = $1 OR substr(base_name, 1, length($2)) = $2 \
         UNION ALL SELECT name FROM adapters WHERE base_model = $1 OR substr(base_model, 1, length($2)) = $2 \
         UNION ALL SELECT id FROM jobs WHERE (model = $1 OR substr(model, 1, length($2)) = $2) \
             AND state IN ('validating_files', 'queued', 'running', 'paused') \
         LIMIT 5",
    )
    .bind(name)
    .bind(checkpoints)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn insert(conn: &mut SqliteConnection, job: JobId, new: &NewModel, now: i64) -> Result<ModelRow> {
    let row = sqlx::query(
        "INSERT INTO models (name, created_at, kind, base_name, base_source, base_revision, job_id, task, labels, \
         folder_key, card, max_length, metrics) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *",
    )
    .bind(&new.name)
    .bind(now)
    .bind(new.kind.as_str())
    .bind(&new.base_name)
    .bind(&new.base_source)
    .bind(&new.base_revision)
    .bind(job.to_string())
    .bind(&new.task)
    .bind(to_json("models", "labels", &new.labels)?)
    .bind(&new.folder_key)
    .bind(to_json("models", "card", &new.card)?)
    .bind(new.max_length)
    .bind(to_json("models", "metrics", &new.metrics)?)
    .fetch_one(conn)
    .await?;
    ModelRow::read(&row)
}
