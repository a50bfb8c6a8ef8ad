//! A job as clients see it: OpenAI's `fine_tuning.job` and what OpenAI does not tell.
//!
//! Every handler that answers a job makes it here from the row; the resolved settings are echoed as the worker reads them.

use std::collections::BTreeMap;

use serde::Serialize;
use tunesmith_store::{JobRow, JobState};
use utoipa::ToSchema;

use super::echo::Echo;
use super::openai::{Hyperparameters, Method};
use crate::api::error::ApiError;
use crate::api::state::AppState;

/// A fine-tuning job.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobObject {
    /// The id.
    pub id: String,
    /// Always `fine_tuning.job`.
    pub object: &'static str,
    /// The base model as requested.
    pub model: String,
    /// When it was filed, in seconds since 1970.
    pub created_at: i64,
    /// When it first trained.
    pub started_at: Option<i64>,
    /// When it ended.
    pub finished_at: Option<i64>,
    /// The model that it made.
    pub fine_tuned_model: Option<String>,
    /// Always `org-local`.
    pub organization_id: &'static str,
    /// Files that it wrote; the first is the CSV of its metrics.
    pub result_files: Vec<String>,
    /// Where in its life it is.
    pub status: Status,
    /// The file that it trains on.
    pub training_file: String,
    /// The file that it evaluates on.
    pub validation_file: Option<String>,
    /// OpenAI's three settings as resolved.
    pub hyperparameters: Hyperparameters,
    /// Tokens trained on, repeated ones included.
    pub trained_tokens: Option<i64>,
    /// Why it failed.
    pub error: Option<JobFault>,
    /// The seed, drawn where the request had none.
    pub seed: i64,
    /// When it will probably be done, while it runs.
    pub estimated_finish: Option<i64>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub integrations: Vec<serde_json::Value>,
    /// The caller's own texts.
    pub metadata: Option<BTreeMap<String, String>>,
    /// OpenAI's form of the settings.
    pub method: Method,
    /// The part of the model's name that the request gave.
    pub user_provided_suffix: Option<String>,
    /// The task.
    pub task: String,
    /// How the rows are read, resolved: the fields that the task has.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    /// Which parameters are trained, resolved: the fields that the task has.
    #[schema(value_type = Object)]
    pub tuning: serde_json::Value,
    /// The training loop, resolved: the fields that the task has.
    #[schema(value_type = Object)]
    pub training: serde_json::Value,
    /// Higher is earlier.
    pub priority: i64,
    /// Whether it is about to pause: a checkpoint is being written.
    pub pausing: bool,
    /// Its place in line, while it waits.
    pub queue: Option<Queue>,
    /// How far it is.
    pub progress: JobProgress,
    /// How many workers were lost on it since it was filed or resumed.
    pub attempts: i64,
}

/// The states of a job.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its worker checks the data with the model.
    ValidatingFiles,
    /// It waits for a worker.
    Queued,
    /// It trains.
    Running,
    /// It was stopped, to be resumed.
    Paused,
    /// Its model answers.
    Succeeded,
    /// It ended by an error; it can be resumed.
    Failed,
    /// Its user ended it.
    Cancelled,
}

impl From<JobState> for Status {
    fn from(state: JobState) -> Self {
        match state {
            JobState::ValidatingFiles => Self::ValidatingFiles,
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Paused => Self::Paused,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobFault {
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
}

/// A waiting job's place.
#[derive(Debug, Serialize, ToSchema)]
pub struct Queue {
    /// 1 for the next one.
    pub position: i64,
    /// How many wait in all.
    pub waiting: i64,
    /// Why it waits.
    pub reason: String,
}

/// How far a job is.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobProgress {
    /// Optimiser steps done.
    pub step: i64,
    /// Optimiser steps in all, once known.
    pub total_steps: Option<i64>,
    /// Epochs done.
    pub epoch: f64,
    /// Seconds that it still needs, while it runs.
    pub eta_seconds: Option<f64>,
    /// What its worker does just now.
    pub phase: Option<String>,
}

impl JobObject {
    /// The object of a row, with its place in line.
    pub async fn of(state: &AppState, row: JobRow) -> Result<Self, ApiError> {
        let queue = queue(state, &row).await?;
        let method: Method = serde_json::from_value(row.method).map_err(ApiError::internal)?;
        let hyperparameters = method.supervised.as_ref().and_then(|s| s.hyperparameters.clone()).unwrap_or_default();
        let Echo { data, tuning, training } = Echo::of_stored(row.spec);
        let running = row.state == JobState::Running;
        let eta_ms = row.eta_ms.filter(|_| running);
        Ok(Self {
            id: row.id.to_string(),
            object: "fine_tuning.job",
            model: row.model,
            created_at: row.created_at / 1000,
            started_at: row.started_at.map(|ms| ms / 1000),
            finished_at: row.finished_at.map(|ms| ms / 1000),
            fine_tuned_model: row.fine_tuned_model,
            organization_id: "org-local",
            result_files: row.result_files.iter().map(ToString::to_string).collect(),
            status: row.state.into(),
            training_file: row.training_file.to_string(),
            validation_file: row.validation_file.map(|id| id.to_string()),
            hyperparameters,
            trained_tokens: row.trained_tokens,
            error: row.error.map(|e| JobFault { code: e.code, message: e.message, param: e.param }),
            seed: row.seed,
            estimated_finish: eta_ms.map(|eta| (row.updated_at + eta) / 1000),
            integrations: Vec::new(),
            metadata: serde_json::from_value(row.metadata).map_err(ApiError::internal)?,
            method,
            user_provided_suffix: row.suffix,
            task: row.task,
            data,
            tuning,
            training,
            priority: row.priority,
            pausing: row.pausing,
            queue,
            progress: JobProgress {
                step: row.step,
                total_steps: row.total_steps,
                epoch: row.epoch,
                eta_seconds: eta_ms.map(|ms| ms as f64 / 1000.0),
                phase: row.phase.filter(|_| !row.state.is_final()),
            },
            attempts: row.attempts,
        })
    }
}

async fn queue(state: &AppState, row: &JobRow) -> Result<Option<Queue>, ApiError> {
    let waits = matches!(row.state, JobState::ValidatingFiles | JobState::Queued) && row.lease_owner.is_none();
    if !waits {
        return Ok(None);
    }
    let place = state.store.queue_position(row.id).await?;
    Ok(place.map(|place| Queue {
        reason: row.wait_reason.clone().unwrap_or_else(|| match place.position {
            1 => "waiting for a worker to be free".to_owned(),
            n => format!("waiting for a worker; {} before it", n - 1),
        }),
        position: place.position,
        waiting: place.waiting,
    }))
}
