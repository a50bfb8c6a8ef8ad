//! Filing a job: everything that can be known without the model is checked within the request.
//!
//! The worker that takes the job checks the rest (tokens, truncation) in the state `validating_files`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tunesmith_store::{Created, Idempotency, NewEvent, NewJob};
use utoipa::ToSchema;
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_axum::routes;

use super::dry_run::DryRun;
use super::object::JobObject;
use super::openai::{Method, MethodKind, Supervised};
use super::request::JobRequest;
use super::resolve::{FileSummaries, Resolved, resolve};
use super::{dry_run, estimate};
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::ApiJson;
use crate::api::files::training_data;
use crate::api::state::AppState;

/// What filing a job answers.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code)] // Only the description is made of it.
enum Filed {
    /// The job.
    Job(Box<JobObject>),
    /// With `dry_run`: what it would do.
    Plan(Box<DryRun>),
}

/// The route, to stand beside the list's under the same path.
pub fn create_route() -> UtoipaMethodRouter<AppState> {
    routes!(create)
}

/// File a fine-tuning job
///
/// Only `model` and `training_file` are required. With an `Idempotency-Key` the same request files one job within 24 hours,
/// however often it is sent.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs", tag = "fine-tuning",
    params(("Idempotency-Key" = Option<String>, Header, description = "At most 255 characters; the same key and body file one job", max_length = 255)),
    request_body = JobRequest,
    responses((status = 200, description = "The job, or with `dry_run` what it would do", body = Filed),
        (status = 404, description = "No such file or model", body = ErrorBody),
        (status = 409, description = "The idempotency key came with another body", body = ErrorBody),
        (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn create(State(state): State<AppState>, headers: HeaderMap, ApiJson(request): ApiJson<JobRequest>) -> Result<Response, ApiError> {
    let idempotency = idempotency(&headers, &request)?;
    // Before anything else is looked at: the first request's file may be gone by now.
    if let Some(asked) = &idempotency
        && let Some(job) = state.store.earlier_job(asked).await?
    {
        return Ok(Json(JobObject::of(&state, job).await?).into_response());
    }
    let (train_row, train) = training_data(&state, &request.training_file, "training_file").await?;
    let (eval_row, eval) = match &request.validation_file {
        Some(id) => {
            let (row, summary) = training_data(&state, id, "validation_file").await?;
            (Some(row), Some(summary))
        }
        None => (None, None),
    };
    let files = FileSummaries { train: &train, eval: eval.as_ref() };
    let resolved = resolve(&request, &files, draw_seed())?;
    let name = estimate::allowed_name(&state, &request.model).await?;
    if request.dry_run == Some(true) {
        let plan = dry_run::plan(&state, &request.model, resolved.spec, train_row, eval_row, resolved.warnings).await?;
        return Ok(Json(plan).into_response());
    }
    let memory = estimate::memory(&state, name, &resolved.spec).await?;
    let new = new_job(&request, &resolved, train_row.id, eval_row.map(|row| row.id), memory, idempotency)?;
    let job = match state.store.create_job(new).await? {
        Created::Replayed(job) => job,
        Created::New(job) => {
            let warnings: Vec<NewEvent> = resolved.warnings.iter().map(|w| NewEvent::new(tunesmith_store::Level::Warn, w)).collect();
            state.store.append_server_events(job.id, &warnings).await?;
            job
        }
    };
    Ok(Json(JobObject::of(&state, job).await?).into_response())
}

fn new_job(
    request: &JobRequest,
    resolved: &Resolved,
    training_file: tunesmith_store::FileId,
    validation_file: Option<tunesmith_store::FileId>,
    estimate_bytes: i64,
    idempotency: Option<Idempotency>,
) -> Result<NewJob, ApiError> {
    let method = Method {
        kind: MethodKind::Supervised,
        supervised: Some(Supervised { hyperparameters: Some(resolved.hyperparameters.clone()) }),
        dpo: None,
        reinforcement: None,
    };
    let spec = serde_json::to_value(&resolved.spec).map_err(ApiError::internal)?;
    Ok(NewJob {
        model: request.model.clone(),
        training_file,
        validation_file,
        suffix: request.suffix.clone(),
        seed: i64::try_from(resolved.spec.seed).map_err(ApiError::internal)?,
        task: resolved.spec.task.name().to_owned(),
        method: json(&method)?,
        spec,
        request: json(request)?,
        metadata: json(&request.metadata.clone().unwrap_or_default())?,
        priority: request.priority.unwrap_or(0),
        estimate_bytes,
        idempotency,
    })
}

fn json(value: &impl Serialize) -> Result<serde_json::Value, ApiError> {
    serde_json::to_value(value).map_err(ApiError::internal)
}

/// The key, and a digest of what was asked; fields in another order are the same request.
fn idempotency(headers: &HeaderMap, request: &JobRequest) -> Result<Option<Idempotency>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let Some(key) = key else {
        return Err(ApiError::field("Idempotency-Key", "The header `Idempotency-Key` must be 1 to 255 ASCII characters."));
    };
    let bytes = serde_json::to_vec(request).map_err(ApiError::internal)?;
    Ok(Some(Idempotency { key: key.to_owned(), body_sha256: Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect() }))
}

/// A seed for a request without one, from the random part of a UUID.
fn draw_seed() -> u64 {
    // The lowest bits of a version 7 UUID are random. 31 of them fit wherever people copy a seed to.
    uuid::Uuid::now_v7().as_u128() as u64 & 0x7fff_ffff
}
