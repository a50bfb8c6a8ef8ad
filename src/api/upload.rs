//! Uploading a file: streamed to the disk, parsed, then stored; nothing is kept of one that fails.
//!
//! A request of any size costs a fixed amount of memory, and one that is too large is answered at the byte that is too
//! many. The form's parts may come in any order.

use std::path::Path;

use axum::Json;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use sha2::{Digest, Sha256};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;
use tunesmith_store::{FileId, Keys, NewFile};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::conversations::Conversations;
use super::error::{ApiError, ErrorBody, is_full, shorten};
use super::extract::{body_stalled, unsupported};
use super::files::FileObject;
use super::state::AppState;

/// Purposes that a client may give; what OpenAI knows, and adapters.
const PURPOSES: &[&str] = &["fine-tune", "adapter", "assistants", "batch", "vision", "user_data", "evals"];
/// Longest value of a part that is not the file.
const LONGEST_TEXT: usize = 1024;
/// Longest name that is kept.
const LONGEST_NAME: usize = 255;

/// The upload's route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(upload))
}

/// The form's parts.
#[derive(ToSchema)]
#[allow(dead_code)] // Only the description is made of it; the parts are read one by one.
struct UploadForm {
    /// The file itself: JSONL, CSV, TSV, parquet or plain text (each line that is not empty is a row with the column `text`), or gzip
    /// of one of these, for `fine-tune`; a zip for `adapter`.
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    file: Vec<u8>,
    /// What it is for. Files for `fine-tune` are parsed at once.
    #[schema(value_type = Purpose)]
    purpose: String,
}

/// What an uploaded file is for.
#[derive(ToSchema)]
#[allow(dead_code)] // As above.
#[schema(rename_all = "snake_case")]
enum Purpose {
    #[schema(rename = "fine-tune")]
    FineTune,
    Adapter,
    Assistants,
    Batch,
    Vision,
    UserData,
    Evals,
}

/// Upload a file
///
/// With purpose `fine-tune` every row is parsed, conversations included; the first 20 problems are listed by line and field, and
/// nothing is stored.
#[utoipa::path(post, path = "/v1/files", tag = "files",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file", body = FileObject),
        (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn upload(State(state): State<AppState>, request: Request) -> Result<Json<FileObject>, ApiError> {
    let limit = state.config.limits.max_file_bytes;
    // The form's own lines around the file are small; what is declared beyond that cannot fit.
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > limit.saturating_add(64 << 10)) {
        return Err(too_large(limit));
    }
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| not_a_form(&e))?;
    let parts = read_form(&mut form, &state, limit).await?;
    let summary = match parts.purpose.as_str() {
        "fine-tune" => inspect(&state, &parts.file).await?,
        _ => serde_json::Value::Null,
    };
    let id = FileId::generate(&**state.store.clock());
    let key = Keys::file(id);
    state.store.blobs().put_file(&key, &parts.file.path).await?;
    let row = NewFile {
        id,
        filename: parts.file.name,
        purpose: parts.purpose,
        bytes: i64::try_from(parts.file.bytes).map_err(ApiError::internal)?,
        sha256: parts.file.sha256,
        blob_key: key.clone(),
        summary,
    };
    match state.store.insert_file(row).await {
        Ok(row) => Ok(Json(FileObject::of(row))),
        Err(error) => {
            // Best effort: the sweep at the next start finds what stays.
            if let Err(left) = state.store.blobs().delete(&key).await {
                tracing::warn!(error = %left, key, "a blob without a row stays until the next start");
            }
            Err(error.into())
        }
    }
}

struct Parts {
    file: Received,
    purpose: String,
}

/// A file on its way, deleted when dropped.
struct Received {
    path: TempPath,
    name: String,
    bytes: u64,
    sha256: String,
}

async fn read_form(form: &mut Multipart, state: &AppState, limit: u64) -> Result<Parts, ApiError> {
    let (mut file, mut purpose) = (None, None);
    while let Some(field) = form.next_field().await.map_err(broken_form)? {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "file" if file.is_some() => return Err(ApiError::field("file", "`file` is given twice; upload one file a request.")),
            "file" => file = Some(receive(field, &state.config.scratch_dir(), limit).await?),
            "purpose" => purpose = Some(read_purpose(field).await?),
            // OpenAI's expiry. Files stay until they are deleted, as `expires_at: null` in the answer says.
            "expires_after[anchor]" | "expires_after[seconds]" => {
                read_text(field, &name).await?;
            }
            _ => {
                let message = format!("Unknown part `{}`; the form has `file`, `purpose` and `expires_after`.", shorten(&name));
                return Err(ApiError::field(shorten(&name), message));
            }
        }
    }
    Ok(Parts {
        purpose: purpose
            .ok_or_else(|| ApiError::field("purpose", format!("`purpose` is missing; it is one of {}.", PURPOSES.join(", "))))?,
        file: file.ok_or_else(|| ApiError::field("file", "`file` is missing; send the file as a part of that name."))?,
    })
}

async fn read_purpose(field: Field<'_>) -> Result<String, ApiError> {
    let purpose = read_text(field, "purpose").await?;
    if PURPOSES.contains(&purpose.as_str()) {
        return Ok(purpose);
    }
    let message = format!("`purpose` is `{}`; it must be one of {}.", shorten(&purpose), PURPOSES.join(", "));
    Err(ApiError::field("purpose", message))
}

async fn read_text(mut field: Field<'_>, name: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken_form)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LONGEST_TEXT {
            return Err(ApiError::field(name, format!("`{name}` is longer than {LONGEST_TEXT} bytes.")));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, format!("`{name}` is not UTF-8.")))
}

/// Writes the part to a temporary file and digests it on the way.
async fn receive(mut field: Field<'_>, folder: &Path, limit: u64) -> Result<Received, ApiError> {
    let name = tidy_name(field.file_name().unwrap_or("upload"));
    tokio::fs::create_dir_all(folder).await.map_err(disk)?;
    let (file, path) = tempfile::Builder::new().prefix("upload-").tempfile_in(folder).map_err(disk)?.into_parts();
    let mut writer = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::from_std(file));
    let (mut digest, mut bytes) = (Sha256::new(), 0u64);
    while let Some(chunk) = field.chunk().await.map_err(broken_form)? {
        bytes += chunk.len() as u64;
        if bytes > limit {
            return Err(too_large(limit));
        }
        digest.update(&chunk);
        writer.write_all(&chunk).await.map_err(disk)?;
    }
    writer.flush().await.map_err(disk)?;
    Ok(Received { path, name, bytes, sha256: hex(&digest.finalize()) })
}

/// Parses every row off the async threads; at most as many at once as there are cores.
async fn inspect(state: &AppState, file: &Received) -> Result<serde_json::Value, ApiError> {
    let _turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let limits = state.config.data_limits();
    let (path, name) = (file.path.to_path_buf(), file.name.clone());
    let look = move || {
        let mut conversations = Conversations::default();
        let mut summary = tunesmith_data::inspect_with(&path, &name, &limits, &mut |row| conversations.check(row))?;
        summary.conversation_faults = conversations.faults();
        Ok::<_, tunesmith_data::DataError>(summary)
    };
    let summary = tokio::task::spawn_blocking(look).await.map_err(ApiError::internal)??;
    serde_json::to_value(summary).map_err(ApiError::internal)
}

fn not_a_form(rejection: &MultipartRejection) -> ApiError {
    match rejection {
        MultipartRejection::InvalidBoundary(_) => unsupported("The body must be a form: `Content-Type: multipart/form-data; boundary=…`."),
        other => ApiError::bad_request(other.body_text()),
    }
}

fn broken_form(error: MultipartError) -> ApiError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if e.is::<tower_http::timeout::TimeoutError>() {
            return body_stalled();
        }
        cause = e.source();
    }
    ApiError::bad_request(format!("The form cannot be read: {}.", error.body_text()))
}

fn too_large(limit: u64) -> ApiError {
    let message = format!("The file is larger than {limit} bytes (limits.max_file_bytes); split it, or pack it with gzip.");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", message).with_param("file")
}

fn disk(error: std::io::Error) -> ApiError {
    if is_full(&error) {
        return ApiError::disk_full(
            "No space is left for the upload; delete files or models (`tunesmith gc` shows what may go) and try again.",
        );
    }
    ApiError::internal(error)
}

/// The name's last segment without control characters: it goes into headers and logs.
fn tidy_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let tidy: String = last.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    if tidy.is_empty() { "upload".to_owned() } else { tidy }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_carry_a_path_or_a_header() {
        assert_eq!(tidy_name("../../etc/passwd"), "passwd");
        assert_eq!(tidy_name("C:\\data\\rows.csv"), "rows.csv");
        assert_eq!(tidy_name("a\r\nX: y"), "aX: y");
        assert_eq!(tidy_name("dir/"), "upload");
        assert_eq!(tidy_name("名前.jsonl"), "名前.jsonl");
    }

    #[test]
    fn digests_are_written_in_hexadecimal() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
    }
}
