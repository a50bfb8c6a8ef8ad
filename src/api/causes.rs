//! What the layers below report, as answers of the API.
//!
//! One place decides which faults are the caller's, and with which status and code. Whatever is not named here is ours: 500.

use axum::http::StatusCode;
use tunesmith_data::{DataError, PlanError};
use tunesmith_hub::HubError;
use tunesmith_ml::error::MlError;
use tunesmith_store::{JobError, Kind, StoreError};

use super::error::{ApiError, is_full};
use crate::serve::{LocateError, ServeError};

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> Self {
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, error.to_string());
        match error {
            StoreError::NotFound { kind: Kind::File, id } => Self::file_not_found(id),
            StoreError::NotFound { kind: Kind::Job, id } => Self::job_not_found(id),
            StoreError::NotFound { kind: Kind::Model | Kind::Adapter, id } => Self::model_not_found(id),
            // A row without its blob is a fault of ours, not of the caller.
            StoreError::NotFound { kind: Kind::Blob, .. } => Self::internal(error),
            StoreError::NotFound { .. } => Self::not_found(format!("{error}.")),
            StoreError::AlreadyExists { .. } | StoreError::InUse { .. } => conflict("in_use"),
            StoreError::BadId { .. } => Self::bad_request(error.to_string()),
            StoreError::InvalidState { .. } => conflict("invalid_job_state"),
            StoreError::IdempotencyConflict { .. } => conflict("idempotency_conflict"),
            StoreError::DiskFull { .. } => Self::disk_full(error.to_string()),
            StoreError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_busy", error.to_string()).retry_after(1),
            _ => Self::internal(error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<&HubError> for ApiError {
    fn from(error: &HubError) -> Self {
        match error {
            // To a caller, a name that it may not use, or that nothing can have, does not exist; the message says why.
            HubError::BadSource { .. }
            | HubError::NotAllowed { .. }
            | HubError::NotFound { .. }
            | HubError::Missing { .. }
            | HubError::Offline => Self::new(StatusCode::NOT_FOUND, "model_not_found", error.to_string()).with_param("model"),
            HubError::Io { source, .. } if is_full(source) => {
                Self::disk_full("No space is left for the model's files; free some disk space and try again.")
            }
            HubError::Io { .. } => Self::internal(error),
            _ => Self::model_loading(error.to_string(), 10),
        }
    }
}

impl From<HubError> for ApiError {
    fn from(error: HubError) -> Self {
        Self::from(&error)
    }
}

impl From<DataError> for ApiError {
    fn from(error: DataError) -> Self {
        match &error {
            DataError::Io(source) if is_full(source) => Self::disk_full("No space is left; free some disk space and try again."),
            DataError::Io(_) => Self::internal(&error),
            DataError::FileTooLarge { .. } | DataError::UnpackedTooLarge { .. } | DataError::RatioTooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", error.to_string()).with_param("file")
            }
            _ => Self::field("file", error.to_string()),
        }
    }
}

impl From<PlanError> for ApiError {
    fn from(error: PlanError) -> Self {
        Self::field(error.param.clone(), error.to_string())
    }
}

impl From<&MlError> for ApiError {
    fn from(error: &MlError) -> Self {
        match error {
            MlError::AdapterMismatch(_) => Self::new(StatusCode::BAD_REQUEST, "adapter_mismatch", error.to_string()),
            MlError::Format(_) | MlError::Architecture { .. } | MlError::Tokenizer(_) => Self::field("model", error.to_string()),
            MlError::Setting { param, message } => Self::field(param.clone(), message.clone()),
            MlError::Io { source, .. } if is_full(source) => Self::disk_full("No space is left; free some disk space and try again."),
            _ => Self::internal(error),
        }
    }
}

impl From<&LocateError> for ApiError {
    fn from(error: &LocateError) -> Self {
        match error {
            LocateError::Expired(_) => Self::new(StatusCode::NOT_FOUND, "checkpoint_expired", error.to_string()).with_param("model"),
            LocateError::Store(error) => error.into(),
        }
    }
}

impl From<ServeError> for ApiError {
    fn from(error: ServeError) -> Self {
        match &error {
            ServeError::Locate(error) => Self::from(&**error),
            ServeError::Hub(error) => Self::from(&**error),
            ServeError::Model(error) => Self::from(&**error),
            ServeError::WrongKind(_) => Self::field("model", format!("{error}.")),
            ServeError::Loading(_) => Self::model_loading(error.to_string(), 10),
            ServeError::Internal(_) => Self::internal(&error),
        }
    }
}

/// What a dry run meets: the same that would stand in the `error` of the job.
impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        let answer = match error.code.as_str() {
            "disk_full" => Self::disk_full(error.message),
            "internal_error" => Self::internal(error.message),
            _ => Self::bad_request(error.message),
        };
        match error.param {
            Some(param) => answer.with_param(param),
            None => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_507_whatever_layer_meets_it() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = || std::path::PathBuf::from("x");
        for error in [
            ApiError::from(StoreError::DiskFull { what: "x".into() }),
            ApiError::from(DataError::Io(full())),
            ApiError::from(HubError::Io { path: path(), source: full() }),
            ApiError::from(&MlError::Io { path: path(), source: full() }),
            ApiError::from(JobError { code: "disk_full".into(), message: "x".into(), param: None }),
        ] {
            assert_eq!((error.status().as_u16(), error.code()), (507, "disk_full"));
        }
    }

    #[test]
    fn what_a_caller_may_not_name_does_not_exist() {
        let error = HubError::NotAllowed { name: "org/x".into(), why: "start the server with --allow-pull=hub".into() };
        let error = ApiError::from(error);
        assert_eq!((error.status().as_u16(), error.code()), (404, "model_not_found"));
        assert!(error.to_string().contains("--allow-pull"));
    }
}
