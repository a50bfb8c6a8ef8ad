//! The states of a job, and the form of its error.
//!
//! Used by everything that speaks of jobs. The one thing to know: the names are OpenAI's, and
//! `paused`; which action leads from where to where is in `actions.rs` (users), `lease.rs`
//! (workers) and `watch.rs` (lost workers).

use serde::{Deserialize, Serialize};

use crate::Result;

/// The states of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Filed; the worker that takes it checks the data with the model first.
    ValidatingFiles,
    /// Waits for a worker.
    Queued,
    /// Trains.
    Running,
    /// Stopped by its user, to be resumed.
    Paused,
    /// Done: its model answers.
    Succeeded,
    /// Ended by an error; it can be resumed.
    Failed,
    /// Ended by its user.
    Cancelled,
}

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [JobState; 7] = [
        JobState::ValidatingFiles,
        JobState::Queued,
        JobState::Running,
        JobState::Paused,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// The name in the API and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::ValidatingFiles => "validating_files",
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Whether the job has ended: succeeded, failed or cancelled.
    pub fn is_final(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        JobState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no job state; states are {}", JobState::ALL.map(JobState::as_str).join(", ")))
    }
}

/// Why a job failed, in OpenAI's form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A word for programs, such as `nan_loss` or `worker_lost`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
}
