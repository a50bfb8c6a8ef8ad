//! Steering a job: cancel, pause, resume.
//!
//! The store decides what a state allows; repeating the state that a job is in already is fine.

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::object::JobObject;
use super::parse_id;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{ApiPath, NoFields};
use crate::api::state::AppState;

/// The routes of actions.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(cancel_job)).routes(routes!(pause_job)).routes(routes!(resume_job))
}

/// End a job
///
/// Any unfinished one; a running one stops within one step.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/cancel", tag = "fine-tuning", params(("job_id" = String, Path, description = "The job's id")), responses(
    (status = 200, description = "The job", body = JobObject),
    (status = 404, description = "No such job", body = ErrorBody),
    (status = 409, description = "Its state does not allow it", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody)))]
async fn cancel_job(State(state): State<AppState>, ApiPath(id): ApiPath<String>, _: NoFields) -> Result<Json<JobObject>, ApiError> {
    let row = state.store.cancel(parse_id(&id)?).await?;
    Ok(Json(JobObject::of(&state, row).await?))
}

/// Stop a job, to be resumed
///
/// A running one writes a checkpoint first and is `pausing` until then.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/pause", tag = "fine-tuning", params(("job_id" = String, Path, description = "The job's id")), responses(
    (status = 200, description = "The job", body = JobObject),
    (status = 404, description = "No such job", body = ErrorBody),
    (status = 409, description = "Its state does not allow it", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody)))]
async fn pause_job(State(state): State<AppState>, ApiPath(id): ApiPath<String>, _: NoFields) -> Result<Json<JobObject>, ApiError> {
    let row = state.store.pause(parse_id(&id)?).await?;
    Ok(Json(JobObject::of(&state, row).await?))
}

/// Go on with a paused or failed job, from its last checkpoint
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/resume", tag = "fine-tuning", params(("job_id" = String, Path, description = "The job's id")), responses(
    (status = 200, description = "The job", body = JobObject),
    (status = 404, description = "No such job", body = ErrorBody),
    (status = 409, description = "Its state does not allow it", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody)))]
async fn resume_job(State(state): State<AppState>, ApiPath(id): ApiPath<String>, _: NoFields) -> Result<Json<JobObject>, ApiError> {
    let row = state.store.resume(parse_id(&id)?).await?;
    Ok(Json(JobObject::of(&state, row).await?))
}
