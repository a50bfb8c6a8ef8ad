//! Listing, looking up and deleting jobs.

use axum::Json;
use axum::extract::{RawQuery, State};
use tunesmith_store::{JobFilter, JobId, JobState, Order};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use super::object::JobObject;
use super::{find, parse_id};
use crate::api::error::{ApiError, ErrorBody, shorten};
use crate::api::extract::ApiPath;
use crate::api::files::Deleted;
use crate::api::paging::{List, page};
use crate::api::state::AppState;

/// The routes; filing a job stands under the list's path.
pub fn routes(create: UtoipaMethodRouter<AppState>) -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(create).routes(routes!(list_jobs)).routes(routes!(get_job, delete_job))
}

/// List jobs, newest first
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "fine-tuning",
    params(
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<u32>, Query, description = "Most jobs to answer", minimum = 1, maximum = 100),
        ("status" = Option<String>, Query, description = "Only jobs in this state"),
        ("metadata" = Option<HashMap<String, String>>, Query, description = "Only jobs with these pairs: `metadata[key]=value`", style = DeepObject, explode)),
    responses((status = 200, description = "A page of jobs", body = List<JobObject>)))]
async fn list_jobs(State(state): State<AppState>, RawQuery(query): RawQuery) -> Result<Json<List<JobObject>>, ApiError> {
    let query = ListQuery::parse(query.as_deref().unwrap_or_default())?;
    let paged = page::<JobId>(query.after.as_deref(), query.limit, 20, 100, Order::Desc)?;
    let rows = state.store.list_jobs(&paged, &query.filter).await?;
    let has_more = rows.has_more;
    let mut data = Vec::with_capacity(rows.items.len());
    for row in rows.items {
        data.push(JobObject::of(&state, row).await?);
    }
    Ok(Json(List {
        object: "list",
        first_id: data.first().map(|j| j.id.clone()),
        last_id: data.last().map(|j| j.id.clone()),
        has_more,
        data,
    }))
}

/// The list's query. Not a serde type, since `metadata[key]=value` has its key in the parameter's name.
#[derive(Debug, Default)]
struct ListQuery {
    after: Option<String>,
    limit: Option<u32>,
    filter: JobFilter,
}

impl ListQuery {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parsed = Self::default();
        let pairs: Vec<(String, String)> = serde_urlencoded_pairs(query)?;
        for (name, value) in pairs {
            match name.as_str() {
                "after" => parsed.after = Some(value),
                "limit" => {
                    let limit = value.parse().map_err(|_| {
                        ApiError::field("limit", format!("`limit` is `{}`; it must be a number between 1 and 100.", shorten(&value)))
                    })?;
                    parsed.limit = Some(limit);
                }
                "status" => {
                    let state: JobState = value.parse().map_err(|e: String| ApiError::field("status", e))?;
                    parsed.filter.states.push(state);
                }
                // Without a key it filters nothing; "null" would ask for jobs without metadata, and all have some.
                "metadata" if value.is_empty() => {}
                _ => match name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']')) {
                    Some(key) => {
                        parsed.filter.metadata.insert(key.to_owned(), value);
                    }
                    None => {
                        let message =
                            format!("Unknown parameter `{}`; the list takes after, limit, status, metadata[key].", shorten(&name));
                        return Err(ApiError::field(shorten(&name), message));
                    }
                },
            }
        }
        Ok(parsed)
    }
}

fn serde_urlencoded_pairs(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let uri = axum::http::Uri::builder()
        .path_and_query(format!("/?{query}"))
        .build()
        .map_err(|e| ApiError::bad_request(format!("The query cannot be read: {e}.")))?;
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).map(|pairs| pairs.0).map_err(|e| ApiError::bad_request(e.body_text()))
}

/// Look up a job
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}", tag = "fine-tuning", params(("job_id" = String, Path, description = "The job's id")), responses(
    (status = 200, description = "The job", body = JobObject),
    (status = 404, description = "No such job", body = ErrorBody)))]
async fn get_job(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Json<JobObject>, ApiError> {
    let row = find(&state, &id).await?;
    Ok(Json(JobObject::of(&state, row).await?))
}

/// Delete a finished job
///
/// Its events, metrics and checkpoints go; its model and its result files stay.
#[utoipa::path(delete, path = "/v1/fine_tuning/jobs/{job_id}", tag = "fine-tuning", params(("job_id" = String, Path, description = "The job's id")), responses(
    (status = 200, description = "It is gone", body = Deleted),
    (status = 404, description = "No such job", body = ErrorBody),
    (status = 409, description = "It has not ended", body = ErrorBody)))]
async fn delete_job(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Json<Deleted>, ApiError> {
    state.store.delete_job(parse_id(&id)?).await?;
    Ok(Json(Deleted { id, object: "fine_tuning.job", deleted: true }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn metadata_filters_are_read_in_openais_form() {
        let query = ListQuery::parse("limit=3&metadata%5Bteam%5D=a%20b&metadata[x]=&status=running").unwrap();
        assert_eq!(query.limit, Some(3));
        assert_eq!(query.filter.metadata["team"], "a b");
        assert_eq!(query.filter.metadata["x"], "");
        assert_eq!(query.filter.states, [JobState::Running]);
    }

    #[test]
    fn unknown_and_wrong_parameters_are_named() {
        assert_eq!(ListQuery::parse("stauts=running").unwrap_err().param(), Some("stauts"));
        assert_eq!(ListQuery::parse("status=done").unwrap_err().param(), Some("status"));
        assert_eq!(ListQuery::parse("limit=-1").unwrap_err().param(), Some("limit"));
    }
}
