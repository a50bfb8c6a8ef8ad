//! Fine-tuning jobs over HTTP: filing, looking up, steering, following.
//!
//! `request.rs` is what clients may send, `resolve.rs` what becomes of it, `object.rs` what they get back. Training itself
//! happens in worker processes that share nothing with the API but the store.

mod actions;
mod charts;
mod checkpoints;
mod create;
mod dry_run;
mod echo;
mod estimate;
mod events;
mod language;
mod list;
mod metrics;
pub mod metrics_csv;
mod object;
mod openai;
mod request;
mod resolve;
pub mod tail;
mod training;
mod unions;

use tunesmith_store::{JobId, JobRow};
use utoipa_axum::router::OpenApiRouter;

use super::error::ApiError;
use super::state::AppState;

pub use echo::Echo;
pub use object::JobObject;

/// The routes of jobs.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .merge(list::routes(create::create_route()))
        .merge(actions::routes())
        .merge(events::routes())
        .merge(checkpoints::routes())
        .merge(metrics::routes())
}

/// Reads an id; one that cannot be a job's is as unknown as any other.
fn parse_id(id: &str) -> Result<JobId, ApiError> {
    id.parse().map_err(|_| ApiError::job_not_found(id))
}

/// Finds a job.
async fn find(state: &AppState, id: &str) -> Result<JobRow, ApiError> {
    Ok(state.store.job(parse_id(id)?).await?)
}
