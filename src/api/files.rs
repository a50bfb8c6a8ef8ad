//! Files that were uploaded, and results that jobs wrote: list, look up, read, delete.
//!
//! Uploading is in `upload.rs`. Bytes are streamed from the blob store, whatever their size.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tunesmith_store::{FileId, FileRow, Kind, Order, StoreError};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ApiError, ErrorBody, shorten};
use super::extract::{ApiPath, ApiQuery};
use super::paging::{List, page};
use super::state::AppState;

/// The routes of files.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list_files)).routes(routes!(get_file, delete_file)).routes(routes!(file_content))
}

/// A file.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileObject {
    /// The id.
    pub id: String,
    /// Always `file`.
    pub object: &'static str,
    /// Its size.
    pub bytes: i64,
    /// When it was stored, in seconds since 1970.
    pub created_at: i64,
    /// Files stay until they are deleted.
    pub expires_at: Option<i64>,
    /// The name that its sender gave it.
    pub filename: String,
    /// What it is for.
    pub purpose: String,
    /// Always `processed`: a file that fails is not stored.
    pub status: String,
    /// Always null, as OpenAI deprecates it.
    pub status_details: Option<String>,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// What parsing found: format, columns, counts; null for a file that is not parsed.
    #[schema(value_type = Option<Object>)]
    pub summary: Option<serde_json::Value>,
}

impl FileObject {
    /// The object of a row.
    pub fn of(row: FileRow) -> Self {
        Self {
            id: row.id.to_string(),
            object: "file",
            bytes: row.bytes,
            created_at: row.created_at / 1000,
            expires_at: None,
            filename: row.filename,
            purpose: row.purpose,
            status: row.status,
            status_details: None,
            sha256: row.sha256,
            summary: row.summary.is_object().then_some(row.summary),
        }
    }
}

/// What a summary tells in a list: the counts, without the columns, which may hold a thousand labels each.
fn brief(mut file: FileObject) -> FileObject {
    if let Some(summary) = file.summary.as_mut().and_then(serde_json::Value::as_object_mut) {
        summary.remove("columns");
    }
    file
}

/// What is left of something that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deleted {
    /// What had this id.
    pub id: String,
    /// Its kind.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// The query of the list of files.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct FileListParams {
    /// The last id of the page before.
    after: Option<String>,
    /// Most files to answer.
    #[param(minimum = 1, maximum = 10_000, default = 10_000)]
    limit: Option<u32>,
    /// By age.
    #[param(inline)]
    order: Option<ListOrder>,
    /// Only files of this purpose.
    purpose: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ListOrder {
    Asc,
    Desc,
}

/// Finds a file; an id that cannot be one is as unknown as any other.
pub async fn find(state: &AppState, id: &str) -> Result<FileRow, ApiError> {
    let id = id.parse::<FileId>().map_err(|_| ApiError::file_not_found(id))?;
    Ok(state.store.file(id).await?)
}

/// List files
///
/// Their summaries come without the columns.
#[utoipa::path(get, path = "/v1/files", tag = "files", params(FileListParams), responses(
    (status = 200, description = "A page of files", body = List<FileObject>)))]
async fn list_files(State(state): State<AppState>, ApiQuery(params): ApiQuery<FileListParams>) -> Result<Json<List<FileObject>>, ApiError> {
    let order = match params.order {
        Some(ListOrder::Asc) => Order::Asc,
        Some(ListOrder::Desc) | None => Order::Desc,
    };
    let query = page::<FileId>(params.after.as_deref(), params.limit, 10_000, 10_000, order)?;
    let rows = state.store.list_files(&query, params.purpose.as_deref()).await?;
    Ok(Json(List::of(rows, |row| brief(FileObject::of(row)), |f| f.id.clone())))
}

/// Look up a file
#[utoipa::path(get, path = "/v1/files/{file_id}", tag = "files", params(("file_id" = String, Path, description = "The file's id")), responses(
    (status = 200, description = "The file", body = FileObject),
    (status = 404, description = "No such file", body = ErrorBody)))]
async fn get_file(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Json<FileObject>, ApiError> {
    Ok(Json(FileObject::of(find(&state, &id).await?)))
}

/// Delete a file
///
/// Refused while an unfinished job needs it.
#[utoipa::path(delete, path = "/v1/files/{file_id}", tag = "files", params(("file_id" = String, Path, description = "The file's id")), responses(
    (status = 200, description = "It is gone", body = Deleted),
    (status = 404, description = "No such file", body = ErrorBody),
    (status = 409, description = "An unfinished job needs it", body = ErrorBody)))]
async fn delete_file(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Json<Deleted>, ApiError> {
    let parsed = id.parse::<FileId>().map_err(|_| ApiError::file_not_found(&id))?;
    state.store.delete_file(parsed).await?;
    Ok(Json(Deleted { id, object: "file", deleted: true }))
}

/// A file's bytes
#[utoipa::path(get, path = "/v1/files/{file_id}/content", tag = "files", params(("file_id" = String, Path, description = "The file's id")), responses(
    (status = 200, description = "The bytes as they were uploaded", content_type = "application/octet-stream"),
    (status = 404, description = "No such file", body = ErrorBody)))]
async fn file_content(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Response, ApiError> {
    let file = find(&state, &id).await?;
    let blob = match state.store.blobs().get_stream(&file.blob_key).await {
        // It was deleted between the two questions.
        Err(StoreError::NotFound { kind: Kind::Blob, .. }) => return Err(ApiError::file_not_found(&id)),
        other => other?,
    };
    let mut response = Response::new(Body::from_stream(blob.stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(blob.size));
    headers.insert(header::CONTENT_DISPOSITION, attachment(&file.filename));
    Ok(response)
}

/// A Content-Disposition header that gives a download its name (RFC 6266, RFC 5987).
pub fn attachment(name: &str) -> HeaderValue {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || " ._-".contains(c) { c } else { '_' }).collect();
    let encoded: String = name
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"._-".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect();
    HeaderValue::from_str(&format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"))
        .unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

/// Looks a file up for a job: it must have been parsed for training.
pub async fn training_data(state: &AppState, id: &str, param: &str) -> Result<(FileRow, tunesmith_data::Summary), ApiError> {
    let file = find(state, id).await.map_err(|e| e.at_field(param))?;
    if file.purpose != "fine-tune" {
        let message = format!("`{param}`: {} has purpose `{}`; upload it with purpose `fine-tune`.", shorten(id), file.purpose);
        return Err(ApiError::field(param, message));
    }
    let summary = serde_json::from_value(file.summary.clone()).map_err(ApiError::internal)?;
    Ok((file, summary))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_download_keeps_its_name_in_any_script() {
        let header = attachment("é \"x\".csv");
        assert_eq!(header.to_str().unwrap(), "attachment; filename=\"_ _x_.csv\"; filename*=UTF-8''%C3%A9%20%22x%22.csv");
    }
}
