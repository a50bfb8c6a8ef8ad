//! A job's checkpoints, newest first.
//!
//! Each is a model that answers under its own name until it expires; the name of an expired one stays in the list.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use tunesmith_store::CheckpointRow;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::find;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::{ApiPath, ApiQuery};
use crate::api::paging::{List, PageParams};
use crate::api::state::AppState;

/// The route of checkpoints.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list_checkpoints))
}

/// A checkpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointObject {
    /// The id.
    pub id: String,
    /// Always `fine_tuning.job.checkpoint`.
    pub object: &'static str,
    /// When, in seconds since 1970.
    pub created_at: i64,
    /// The model's name in requests.
    pub fine_tuned_model_checkpoint: String,
    /// The job.
    pub fine_tuning_job_id: String,
    /// What was measured at that step: OpenAI's names and those of `trainer_state.json`.
    #[schema(value_type = Object)]
    pub metrics: serde_json::Value,
    /// The optimiser step.
    pub step_number: i64,
    /// Whether its model files are kept, so that it answers.
    pub available: bool,
    /// Whether the job can be resumed from it.
    pub resumable: bool,
    /// Whether it is the job's best.
    pub best: bool,
}

impl CheckpointObject {
    fn of(row: CheckpointRow) -> Self {
        Self {
            id: row.id.to_string(),
            object: "fine_tuning.job.checkpoint",
            created_at: row.created_at / 1000,
            fine_tuned_model_checkpoint: row.model_name,
            fine_tuning_job_id: row.job_id.to_string(),
            metrics: row.metrics,
            step_number: row.step,
            available: row.has_model,
            resumable: row.has_state,
            best: row.is_best,
        }
    }
}

/// A job's checkpoints, newest first
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/checkpoints", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "The job's id"), PageParams),
    responses((status = 200, description = "A page of checkpoints", body = List<CheckpointObject>),
        (status = 404, description = "No such job", body = ErrorBody)))]
async fn list_checkpoints(
    State(state): State<AppState>,
    ApiPath(id): ApiPath<String>,
    ApiQuery(params): ApiQuery<PageParams>,
) -> Result<Json<List<CheckpointObject>>, ApiError> {
    let job = find(&state, &id).await?.id;
    let page = state.store.list_checkpoints(job, &params.query()?).await?;
    Ok(Json(List::of(page, CheckpointObject::of, |c| c.id.clone())))
}
