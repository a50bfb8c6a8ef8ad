//! The table of jobs: what one is, filing one, looking one up.
//!
//! Called by the jobs API and by workers. The one thing to know: a job, its first events, its
//! metadata rows and its idempotency key are made in one transaction. State changes are in
//! `actions.rs` (users), `lease.rs` (workers), `watch.rs` (lost workers).

use serde_json::{Value, json};
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::row::{Cols, to_json};
use crate::{FileId, JobError, JobId, JobState, Kind, NewEvent, Result, Store, StoreError, events, files};

/// How long an idempotency key is kept: 24 hours.
pub(crate) const IDEMPOTENCY_MS: i64 = 24 * 60 * 60 * 1000;

/// The header `Idempotency-Key` of a request, with the SHA-256 of its body.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The key; the caller adds to it whatever scopes it.
    pub key: String,
    /// SHA-256 of the body, in hexadecimal.
    pub body_sha256: String,
}

/// A job to file, resolved by the API.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The base model as requested.
    pub model: String,
    /// The data to train on.
    pub training_file: FileId,
    /// The data to evaluate on.
    pub validation_file: Option<FileId>,
    /// A part of the model's name.
    pub suffix: Option<String>,
    /// The seed, drawn where the request had none.
    pub seed: i64,
    /// The task's name.
    pub task: String,
    /// OpenAI's `method` object.
    pub method: Value,
    /// The resolved specification, which only API and worker read.
    pub spec: Value,
    /// The request's body as it came.
    pub request: Value,
    /// An object of texts.
    pub metadata: Value,
    /// Higher is earlier.
    pub priority: i64,
    /// What it is thought to need in memory.
    pub estimate_bytes: i64,
    /// The request's key, if it had one.
    pub idempotency: Option<Idempotency>,
}

/// What filing a job did.
#[derive(Debug, Clone)]
pub enum Created {
    /// A new job.
    New(JobRow),
    /// The job that the same key and body made before.
    Replayed(JobRow),
}

impl Created {
    /// The job in either case.
    pub fn into_job(self) -> JobRow {
        match self {
            Created::New(job) | Created::Replayed(job) => job,
        }
    }
}

/// A job. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// The id.
    pub id: JobId,
    /// The state.
    pub state: JobState,
    /// When it was filed.
    pub created_at: i64,
    /// When its row changed last, beats apart.
    pub updated_at: i64,
    /// When it first trained.
    pub started_at: Option<i64>,
    /// When it ended.
    pub finished_at: Option<i64>,
    /// The base model as requested.
    pub model: String,
    /// The data to train on.
    pub training_file: FileId,
    /// The data to evaluate on.
    pub validation_file: Option<FileId>,
    /// A part of the model's name.
    pub suffix: Option<String>,
    /// The seed.
    pub seed: i64,
    /// The task's name.
    pub task: String,
    /// OpenAI's `method` object.
    pub method: Value,
    /// The resolved specification.
    pub spec: Value,
    /// The request's body as it came.
    pub request: Value,
    /// An object of texts.
    pub metadata: Value,
    /// Higher is earlier.
    pub priority: i64,
    /// What it is thought to need in memory.
    pub estimate_bytes: i64,
    /// Why it waits, if not for its turn.
    pub wait_reason: Option<String>,
    /// Whether its worker was asked to pause and has not yet.
    pub pausing: bool,
    /// The worker that has it.
    pub lease_owner: Option<String>,
    /// Grows whenever the job changes hands.
    pub lease_epoch: i64,
    /// Grows while the worker lives.
    pub lease_beat: i64,
    /// How many workers were lost on it since it was filed or resumed.
    pub attempts: i64,
    /// Why, one sentence each.
    pub attempt_reasons: Vec<String>,
    /// What its worker does just now.
    pub phase: Option<String>,
    /// Optimiser steps done.
    pub step: i64,
    /// Optimiser steps in all, once known.
    pub total_steps: Option<i64>,
    /// Epochs done, as a fraction.
    pub epoch: f64,
    /// The time that it still needs, as of its last step.
    pub eta_ms: Option<i64>,
    /// Tokens trained on, repeated ones included.
    pub trained_tokens: Option<i64>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// The model that it made.
    pub fine_tuned_model: Option<String>,
    /// The files that it wrote.
    pub result_files: Vec<FileId>,
}

impl JobRow {
    pub(crate) fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("jobs", row);
        Ok(Self {
            id: cols.parse("id")?,
            state: cols.parse("state")?,
            created_at: cols.get("created_at")?,
            updated_at: cols.get("updated_at")?,
            started_at: cols.get("started_at")?,
            finished_at: cols.get("finished_at")?,
            model: cols.get("model")?,
            training_file: cols.parse("training_file")?,
            validation_file: cols.parse_opt("validation_file")?,
            suffix: cols.get("suffix")?,
            seed: cols.get("seed")?,
            task: cols.get("task")?,
            method: cols.json("method")?,
            spec: cols.json("spec")?,
            request: cols.json("request")?,
            metadata: cols.json("metadata")?,
            priority: cols.get("priority")?,
            estimate_bytes: cols.get("estimate_bytes")?,
            wait_reason: cols.get("wait_reason")?,
            pausing: cols.get::<String>("control")? == "pause",
            lease_owner: cols.get("lease_owner")?,
            lease_epoch: cols.get("lease_epoch")?,
            lease_beat: cols.get("lease_beat")?,
            attempts: cols.get("attempts")?,
            attempt_reasons: cols.json("attempt_reasons")?,
            phase: cols.get("phase")?,
            step: cols.get("step")?,
            total_steps: cols.get("total_steps")?,
            epoch: cols.get("epoch")?,
            eta_ms: cols.get("eta_ms")?,
            trained_tokens: cols.get("trained_tokens")?,
            error: cols.json_opt("error")?,
            fine_tuned_model: cols.get("fine_tuned_model")?,
            result_files: cols.json("result_files")?,
        })
    }
}

impl Store {
    /// The job that the same idempotency key and body made within the last 24 hours.
    ///
    /// # Errors
    /// [`StoreError::IdempotencyConflict`] if the key came with another body.
    pub async fn earlier_job(&self, asked: &Idempotency) -> Result<Option<JobRow>> {
        let mut conn = self.reader().acquire().await?;
        earlier_job(&mut conn, asked, self.now()).await
    }

    /// Files a job, or answers the one that the same idempotency key made before.
    pub async fn create_job(&self, new: NewJob) -> Result<Created> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        if let Some(idempotency) = &new.idempotency {
            if let Some(job) = earlier_job(&mut tx, idempotency, now).await? {
                return Ok(Created::Replayed(job));
            }
            // One that has expired.
            sqlx::query("DELETE FROM idempotency WHERE idempotency_key = $1").bind(&idempotency.key).execute(&mut *tx).await?;
        }
        for file in [Some(new.training_file), new.validation_file].into_iter().flatten() {
            files::load(&mut tx, file).await?;
        }
        let job = insert(&mut tx, JobId::generate(&**self.clock()), &new, now).await?;
        if let Some(pairs) = new.metadata.as_object() {
            for (name, value) in pairs {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                sqlx::query("INSERT INTO job_metadata (job_id, name, value) VALUES ($1, $2, $3)")
                    .bind(job.id.to_string())
                    .bind(name)
                    .bind(value)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        if let Some(idempotency) = &new.idempotency {
            sqlx::query("INSERT INTO idempotency (idempotency_key, body_sha256, job_id, created_at) VALUES ($1, $2, $3, $4)")
                .bind(&idempotency.key)
                .bind(&idempotency.body_sha256)
                .bind(job.id.to_string())
                .bind(now)
                .execute(&mut *tx)
                .await?;
        }
        let data = |state| json!({"state": state});
        let first = [
            NewEvent::info(format!("Created fine-tuning job: {}", job.id)).with(data("validating_files")),
            NewEvent::info(format!("Validating training file: {}", job.training_file)),
        ];
        events::append(&mut tx, &**self.clock(), job.id, &first).await?;
        tx.commit().await?;
        Ok(Created::New(job))
    }

    /// A job by its id.
    pub async fn job(&self, id: JobId) -> Result<JobRow> {
        let mut conn = self.reader().acquire().await?;
        load(&mut conn, id).await
    }

    /// Removes a finished job with its events, metrics and checkpoints; its model and its result
    /// files stay.
    pub async fn delete_job(&self, id: JobId) -> Result<JobRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = load(&mut tx, id).await?;
        if !job.state.is_final() {
            return Err(StoreError::InvalidState { id, action: "deleted", state: job.state });
        }
        let predictions: Option<Option<String>> = sqlx::query_scalar("SELECT predictions_key FROM job_reports WHERE job_id = $1")
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        // The other tables follow by their foreign keys.
        sqlx::query("DELETE FROM jobs WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
        tx.commit().await?;
        drop(writer);
        self.blobs().delete_prefix(&crate::Keys::checkpoints(id)).await?;
        if let Some(key) = predictions.flatten() {
            self.blobs().delete(&key).await?;
        }
        Ok(job)
    }
}

pub(crate) async fn load(conn: &mut SqliteConnection, id: JobId) -> Result<JobRow> {
    let row = sqlx::query("SELECT * FROM jobs WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(conn)
        .await?
        .ok_or_else(|| StoreError::not_found(Kind::Job, id))?;
    JobRow::read(&row)
}

async fn earlier_job(conn: &mut SqliteConnection, asked: &Idempotency, now: i64) -> Result<Option<JobRow>> {
    let found: Option<(String, String)> =
        sqlx::query_as("SELECT body_sha256, job_id FROM idempotency WHERE idempotency_key = $1 AND created_at > $2")
            .bind(&asked.key)
            .bind(now - IDEMPOTENCY_MS)
            .fetch_optional(&mut *conn)
            .await?;
    let Some((body, job)) = found else {
        return Ok(None);
    };
    let job: JobId = job.parse()?;
    if body != asked.body_sha256 {
        return Err(StoreError::IdempotencyConflict { key: asked.key.clone(), job });
    }
    load(conn, job).await.map(Some)
}

async fn insert(conn: &mut SqliteConnection, id: JobId, new: &NewJob, now: i64) -> Result<JobRow> {
    let json = |column, value| to_json("jobs", column, value);
    let row = sqlx::query(
        "INSERT INTO jobs (id, state, created_at, updated_at, model, training_file, validation_file, suffix, seed, task, \
         method, spec, request, metadata, priority, estimate_bytes, control, lease_epoch, lease_beat, attempts, \
         attempt_reasons, step, epoch, result_files) \
         VALUES ($1, 'validating_files', $2, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'none', 0, 0, 0, \
         '[]', 0, 0.0, '[]') RETURNING *",
    )
    .bind(id.to_string())
    .bind(now)
    .bind(&new.model)
    .bind(new.training_file.to_string())
    .bind(new.validation_file.map(|id| id.to_string()))
    .bind(&new.suffix)
    .bind(new.seed)
    .bind(&new.task)
    .bind(json("method", &new.method)?)
    .bind(json("spec", &new.spec)?)
    .bind(json("request", &new.request)?)
    .bind(json("metadata", &new.metadata)?)
    .bind(new.priority)
    .bind(new.estimate_bytes)
    .fetch_one(conn)
    .await?;
    JobRow::read(&row)
}
