//! What training measured: the history as JSON, CSV and a picture, the confusion matrix, the evaluation's rows.
//!
//! The history carries the names of `trainer_state.json`. All of it can be read while the job trains.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunesmith_ml::spec::Task;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{charts, find, metrics_csv};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{ApiPath, ApiQuery};
use crate::api::state::AppState;

/// The routes of metrics.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(metrics)).routes(routes!(loss_svg)).routes(routes!(confusion_svg)).routes(routes!(predictions))
}

/// What training measured.
#[derive(Debug, Serialize, ToSchema)]
pub struct Metrics {
    /// Always `fine_tuning.job.metrics`.
    pub object: &'static str,
    /// Entries by step: `loss`, `learning_rate`, `grad_norm`, `samples_per_second`; at evaluations `eval_loss`, `eval_f1`, …
    #[schema(value_type = Vec<Object>)]
    pub log_history: Vec<Value>,
    /// Of the saved model's evaluation; rows are the true classes.
    #[schema(value_type = Option<Object>)]
    pub confusion_matrix: Option<Value>,
    /// The most memory that the worker had.
    pub peak_memory_bytes: Option<u64>,
    /// Numbers that were trained.
    pub trainable_parameters: Option<u64>,
    /// Numbers in all.
    pub total_parameters: Option<u64>,
    /// How long it trained, pauses left out.
    pub duration_seconds: Option<f64>,
    /// The saved model's evaluation, and what else the worker reported.
    #[schema(value_type = Option<Object>)]
    pub report: Option<Value>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MetricsParams {
    /// `json` or `csv`.
    #[param(inline)]
    format: Option<MetricsFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum MetricsFormat {
    Json,
    Csv,
}

/// What training measured
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/metrics", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "The job's id"), MetricsParams),
    responses(
        (status = 200, description = "The history and the final report", content((Metrics = "application/json"), (String = "text/csv"))),
        (status = 404, description = "No such job", body = ErrorBody)))]
async fn metrics(
    State(state): State<AppState>,
    ApiPath(id): ApiPath<String>,
    ApiQuery(params): ApiQuery<MetricsParams>,
) -> Result<Response, ApiError> {
    let job = find(&state, &id).await?.id;
    let history = history(&state, job).await?;
    if params.format == Some(MetricsFormat::Csv) {
        let csv = metrics_csv::write(&history);
        return Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv).into_response());
    }
    let report = state.store.report(job).await?.map(|r| r.report);
    let field = |name: &str| report.as_ref().and_then(|r| r.get(name)).filter(|v| !v.is_null());
    Ok(Json(Metrics {
        object: "fine_tuning.job.metrics",
        log_history: history,
        confusion_matrix: field("confusion_matrix").cloned(),
        peak_memory_bytes: field("peak_memory_bytes").and_then(Value::as_u64),
        trainable_parameters: field("trainable_parameters").and_then(Value::as_u64),
        total_parameters: field("total_parameters").and_then(Value::as_u64),
        duration_seconds: field("duration_seconds").and_then(Value::as_f64),
        report,
    })
    .into_response())
}

async fn history(state: &AppState, job: tunesmith_store::JobId) -> Result<Vec<Value>, ApiError> {
    let entries = state.store.metrics(job).await?;
    Ok(entries.into_iter().map(|e| e.entry).collect())
}

/// The loss as a picture
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/metrics/loss.svg", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "Training and evaluation loss over steps", body = String, content_type = "image/svg+xml"),
        (status = 404, description = "No such job", body = ErrorBody)))]
async fn loss_svg(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Response, ApiError> {
    let job = find(&state, &id).await?.id;
    Ok(svg(charts::loss(&history(&state, job).await?)))
}

/// The confusion matrix as a picture
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/metrics/confusion.svg", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "Rows are the true classes", body = String, content_type = "image/svg+xml"),
        (status = 404, description = "No such job, or it has no confusion matrix (yet)", body = ErrorBody)))]
async fn confusion_svg(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Response, ApiError> {
    let job = find(&state, &id).await?;
    let report = state.store.report(job.id).await?.map(|r| r.report).unwrap_or_default();
    match charts::confusion(&report["confusion_matrix"]) {
        Some(picture) => Ok(svg(picture)),
        None => Err(ApiError::not_found(format!(
            "{id} is {} and has no confusion matrix; single-label jobs get one with their final evaluation.",
            job.state
        ))),
    }
}

/// The evaluation's rows with label, prediction and score
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/metrics/predictions.jsonl", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "One JSON object a line", body = String, content_type = "application/jsonl"),
        (status = 404, description = "No such job, or it has no predictions (yet), as those of language models", body = ErrorBody)))]
async fn predictions(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Response, ApiError> {
    let job = find(&state, &id).await?;
    // Their workers write the file of every task, empty where there is nothing to predict.
    if Task::by_name(&job.task).is_some_and(Task::is_language) {
        return Err(ApiError::not_found(format!(
            "{id} has the task {} and no predictions: a language model has no labels. Its figures are in `GET …/metrics`, its samples in the events.",
            job.task
        )));
    }
    let key = state.store.report(job.id).await?.and_then(|r| r.predictions_key);
    let Some(key) = key else {
        return Err(ApiError::not_found(format!(
            "{id} is {} and has no predictions; they are written with the final evaluation.",
            job.state
        )));
    };
    let blob = state.store.blobs().get_stream(&key).await?;
    let headers = [(header::CONTENT_TYPE, "application/jsonl".to_owned()), (header::CONTENT_LENGTH, blob.size.to_string())];
    Ok((headers, Body::from_stream(blob.stream)).into_response())
}

fn svg(picture: String) -> Response {
    // A picture that is opened by itself must not run anything, whatever a label says.
    let headers =
        [(header::CONTENT_TYPE, "image/svg+xml"), (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'")];
    (headers, picture).into_response()
}
