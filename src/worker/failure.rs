//! What goes wrong in a job, and how its user reads it.

use tunesmith_data::DataError;
use tunesmith_hub::HubError;
use tunesmith_ml::error::MlError;
use tunesmith_store::{JobError, StoreError};

use super::data::VALIDATION_FILE;

/// Why a worker leaves a job unfinished.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The base model cannot be had.
    #[error("{0}")]
    Hub(#[from] HubError),
    /// A data file cannot be read, or holds what it should not.
    #[error("{source}")]
    Data {
        /// The field of the request that names the file.
        param: &'static str,
        /// What is wrong with it.
        source: DataError,
    },
    /// The model, the data or a setting do not go together, or training failed.
    #[error("{0}")]
    Ml(#[from] MlError),
    /// The store failed, or the lease is lost.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A file could not be written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A defect of ours.
    #[error("the worker failed: {0}; this is a defect of tunesmith, its log says more")]
    Panic(String),
}

impl Failure {
    /// Whether the job is no longer this worker's, so that nothing more may be written.
    pub fn lost_lease(&self) -> bool {
        matches!(self, Self::Store(StoreError::Fenced { .. }))
    }

    /// The job's error object.
    pub fn to_job_error(&self) -> JobError {
        let (code, param) = match self {
            Self::Hub(_) => ("model_unavailable", Some("model")),
            Self::Data { param: VALIDATION_FILE, .. } => ("invalid_validation_file", Some(VALIDATION_FILE)),
            Self::Data { param, .. } => ("invalid_training_file", Some(*param)),
            Self::Ml(MlError::Setting { param, .. }) => ("invalid_setting", Some(param.as_str())),
            Self::Ml(MlError::NotFinite { .. } | MlError::Diverged { .. }) => ("not_finite", Some("training.learning_rate")),
            Self::Ml(MlError::Io { source, .. }) if is_full(source) => ("disk_full", None),
            Self::Io(source) if is_full(source) => ("disk_full", None),
            Self::Store(StoreError::DiskFull { .. }) => ("disk_full", None),
            Self::Ml(MlError::Architecture { .. } | MlError::Format(_) | MlError::Tokenizer(_)) => ("unsupported_model", Some("model")),
            Self::Ml(_) => ("training_failed", None),
            Self::Store(_) | Self::Io(_) | Self::Panic(_) => ("internal_error", None),
        };
        let message = match self {
            _ if code == "disk_full" => {
                format!("No space is left on the worker's disk: {self}. Free some (`tunesmith gc` shows what may go) and resume the job.")
            }
            Self::Ml(MlError::Setting { param, message }) => format!("`{param}`: {message}"),
            Self::Data { param, source } => format!("`{param}`: {source}"),
            Self::Ml(MlError::NotFinite { .. }) => format!("{self}. Try a smaller `training.learning_rate`, or look at those rows."),
            Self::Ml(MlError::Diverged { .. }) => {
                format!("{self}. Try a smaller `training.learning_rate`, or more `training.warmup_steps`.")
            }
            other => other.to_string(),
        };
        JobError { code: code.to_owned(), message, param: param.map(str::to_owned) }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do_whatever_meets_it() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        for failure in [
            Failure::Io(full()),
            Failure::Ml(MlError::io("checkpoint-8", full())),
            Failure::Store(StoreError::DiskFull { what: "a checkpoint".to_owned() }),
        ] {
            let error = failure.to_job_error();
            assert_eq!(error.code, "disk_full");
            assert!(error.message.contains("resume the job"), "{}", error.message);
        }
    }
}
