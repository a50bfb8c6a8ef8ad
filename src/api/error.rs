//! One error for the whole API: OpenAI's object `{"error":{"message","type","param","code"}}` with the right status.
//!
//! Every handler returns it. What the caller did wrong is told in full; what went wrong inside is logged with the request's
//! span and answered as "internal error", so that no path or row leaks.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// A failed request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u64>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// OpenAI's error object.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// The fact and the remedy.
    pub message: String,
    /// The family of errors.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of the field that is meant, such as `training.learning_rate`.
    pub param: Option<String>,
    /// A name that programs can compare.
    pub code: Option<String>,
}

impl ApiError {
    /// An error of any status; the more specific constructors are below.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// 400: the request as a whole is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: one field is wrong; `param` is its path.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request(message).with_param(param)
    }

    /// 404 for a model that no source knows.
    pub fn model_not_found(name: &str) -> Self {
        let message = format!("The model `{}` does not exist; `GET /v1/models` lists those that do.", shorten(name));
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("model")
    }

    /// 404 for a file.
    pub fn file_not_found(id: &str) -> Self {
        let message = format!("No such file: {}. `GET /v1/files` lists the files.", shorten(id));
        Self::new(StatusCode::NOT_FOUND, "file_not_found", message)
    }

    /// 404 for a job.
    pub fn job_not_found(id: &str) -> Self {
        let message = format!("No such fine-tuning job: {}. `GET /v1/fine_tuning/jobs` lists the jobs.", shorten(id));
        Self::new(StatusCode::NOT_FOUND, "job_not_found", message)
    }

    /// 404 for what is neither of these.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 429: a queue has no room.
    pub fn queue_full(message: impl Into<String>, retry_after: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message).retry_after(retry_after)
    }

    /// 503: the model is on its way.
    pub fn model_loading(message: impl Into<String>, retry_after: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_loading", message).retry_after(retry_after)
    }

    /// 503: the server is about to end.
    pub fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "The server is shutting down; try again in a moment.").retry_after(5)
    }

    /// 507: no space.
    pub fn disk_full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", message)
    }

    /// 500: a fault of ours. The cause goes to the log and not to the client.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(cause = %cause, "request failed inside");
        let message = "Internal error. The server's log has the cause under this answer's X-Request-Id.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// Names the field that is meant.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Names the field that is meant, in the message too: for requests with several of a kind.
    #[must_use]
    pub fn at_field(mut self, param: &str) -> Self {
        self.message = format!("`{param}`: {}", self.message);
        self.with_param(param)
    }

    /// Seconds after which another try makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The status that will be answered.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The path of the field that is meant.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// The name that programs compare.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

impl ApiError {
    /// OpenAI's object, as it stands in an answer or in a stream.
    pub fn body(&self) -> ErrorBody {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorBody { error: ErrorObject { message, kind: kind.to_owned(), param, code: Some(self.code.to_owned()) } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Whether the cause is a full disk or quota.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Cuts what a client sent to a length that a message can carry.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn parts(error: ApiError) -> (StatusCode, axum::http::HeaderMap, serde_json::Value) {
        let response = error.into_response();
        let (head, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 16).await.unwrap();
        (head.status, head.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn the_body_is_openais_object() {
        let (status, _, body) = parts(ApiError::field("training.learning_rate", "must be positive")).await;
        assert_eq!(status, 400);
        assert_eq!(body["error"]["param"], "training.learning_rate");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["code"], "invalid_request_error");
    }

    #[tokio::test]
    async fn a_full_queue_says_when_to_come_back() {
        let (status, headers, body) = parts(ApiError::queue_full("full", 2)).await;
        assert_eq!((status.as_u16(), headers["retry-after"].to_str().unwrap()), (429, "2"));
        assert_eq!(body["error"]["code"], "queue_full");
    }

    #[tokio::test]
    async fn the_cause_of_an_internal_error_stays_inside() {
        let (status, _, body) = parts(ApiError::internal("/secret/path")).await;
        assert_eq!(status, 500);
        assert!(!body.to_string().contains("secret"));
    }

    #[test]
    fn long_input_is_cut_between_characters() {
        assert_eq!(shorten(&"é".repeat(200)).chars().count(), 121);
    }
}
