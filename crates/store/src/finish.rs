//! A job's good end: model, result files, report, event and `succeeded` in one transaction.
//!
//! Called by workers as their last act. The one thing to know: whoever sees `succeeded` finds the
//! model's row, and its folder was written before.

use serde_json::{Value, json};

use crate::row::to_json;
use crate::{JobReport, JobRow, JobState, LeaseToken, ModelKind, NewEvent, NewFile, Result, Store, events, files, lease, metrics, models};

/// The model that a job made; its folder is written already.
#[derive(Debug, Clone)]
pub struct NewModel {
    /// Its name in requests: [`crate::model_name`].
    pub name: String,
    /// What its folder holds.
    pub kind: ModelKind,
    /// The base model's name as requested.
    pub base_name: String,
    /// Where the base came from, never a path of one machine.
    pub base_source: String,
    /// The base's revision or checksum, where its source has one.
    pub base_revision: Option<String>,
    /// The task's name.
    pub task: String,
    /// The labels in the order of their ids.
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

/// All that a job leaves behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The model.
    pub model: NewModel,
    /// Files for `result_files`, the CSV of metrics first; their blobs are written already.
    pub result_files: Vec<NewFile>,
    /// Tokens trained on, repeated ones included.
    pub trained_tokens: Option<i64>,
    /// The report.
    pub report: Option<JobReport>,
}

impl Store {
    /// See the file's head.
    pub async fn succeed(&self, lease: &LeaseToken, finished: &Finished) -> Result<JobRow> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = lease::hold(&mut tx, lease, now).await?;
        models::insert(&mut tx, lease.job, &finished.model, now).await?;
        let mut ids = Vec::new();
        for file in &finished.result_files {
            ids.push(files::insert(&mut tx, file, now).await?.id);
        }
        if let Some(report) = &finished.report {
            metrics::write_report(&mut tx, lease.job, report).await?;
        }
        sqlx::query(
            "UPDATE jobs SET fine_tuned_model = $1, result_files = $2, trained_tokens = COALESCE($3, trained_tokens) \
             WHERE id = $4",
        )
        .bind(&finished.model.name)
        .bind(to_json("jobs", "result_files", &ids)?)
        .bind(finished.trained_tokens)
        .bind(lease.job.to_string())
        .execute(&mut *tx)
        .await?;
        let ended = lease::end_lease(&mut tx, &job, JobState::Succeeded, None, now).await?;
        let told = [
            NewEvent::info(format!("New fine-tuned model created: {}", finished.model.name)).with(json!({"model": finished.model.name})),
            NewEvent::info("The job has successfully completed").with(json!({"state": "succeeded", "model": finished.model.name})),
        ];
        events::append(&mut tx, &**self.clock(), lease.job, &told).await?;
        tx.commit().await?;
        Ok(ended)
    }
}
