//! Adapters that were trained elsewhere: load, unload, list.
//!
//! An adapter comes from below `--model-dir`, from the hub, or as an uploaded zip. Every tensor is checked against the base
//! before it gets its name; the error names the one that does not fit.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tunesmith_store::{AdapterRow, FileId, Keys, NewAdapter, Staging, StoreError};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::adapter_zip;
use super::error::{ApiError, ErrorBody, shorten};
use super::extract::ApiJson;
use super::files::Deleted;
use super::state::AppState;
use crate::config::AllowPull;
use crate::serve::Fitted;

/// The routes of adapters.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(load)).routes(routes!(unload)).routes(routes!(list))
}

/// An adapter to load, in vLLM's words.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LoadRequest {
    /// Its name in requests.
    #[schema(min_length = 1, max_length = 128)]
    lora_name: String,
    /// A folder below `--model-dir`, or a hub id.
    lora_path: Option<String>,
    /// An uploaded zip with a PEFT folder (purpose `adapter`).
    file_id: Option<String>,
    /// The model that it stands on [default: what its adapter_config.json names].
    base_model: Option<String>,
    /// vLLM's number of an adapter; accepted and without effect.
    #[serde(rename = "lora_int_id")]
    _lora_int_id: Option<i64>,
}

/// An adapter to unload.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UnloadRequest {
    /// Its name.
    lora_name: String,
    /// vLLM's number of an adapter; accepted and without effect.
    #[serde(rename = "lora_int_id")]
    _lora_int_id: Option<i64>,
}

/// A loaded adapter.
#[derive(Debug, Serialize, ToSchema)]
struct AdapterObject {
    /// Its name in requests.
    id: String,
    /// Always `adapter`.
    object: &'static str,
    /// When it was loaded, in seconds since 1970.
    created_at: i64,
    /// The model that it stands on.
    base_model: String,
    /// Where it came from.
    source: Option<String>,
    /// PEFT's task.
    task_type: Option<String>,
    /// Rank of modules that no pattern names.
    r: Option<u64>,
    /// The scale is this by the rank, or by its root where the adapter is rank-stabilised.
    lora_alpha: Option<f64>,
    /// Whether it is rank-stabilised.
    use_rslora: Option<bool>,
    /// The modules that it updates: their names, or one pattern.
    target_modules: Vec<String>,
    /// Numbers in its file, a classifier's included.
    parameters: Option<u64>,
    /// Its labels in the order of their ids.
    labels: Vec<String>,
    /// What its user should know, such as that it changes nothing.
    warnings: Vec<String>,
}

/// All adapters.
#[derive(Debug, Serialize, ToSchema)]
struct AdapterList {
    /// Always `list`.
    object: &'static str,
    /// The adapters, newest first.
    data: Vec<AdapterObject>,
}

impl AdapterObject {
    fn of(row: AdapterRow) -> Self {
        let info = |name: &str| row.info.get(name);
        let texts = |name: &str| -> Vec<String> {
            let one = info(name).filter(|v| v.is_string());
            let items = info(name).and_then(|v| v.as_array()).into_iter().flatten();
            items.chain(one).filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let number = |name: &str| info(name).and_then(serde_json::Value::as_u64);
        Self {
            object: "adapter",
            created_at: row.created_at / 1000,
            task_type: info("task_type").and_then(|v| v.as_str()).map(str::to_owned),
            r: number("r"),
            lora_alpha: info("lora_alpha").and_then(serde_json::Value::as_f64),
            use_rslora: info("use_rslora").and_then(serde_json::Value::as_bool),
            target_modules: texts("target_modules"),
            parameters: number("parameters"),
            labels: texts("labels"),
            warnings: texts("warnings"),
            source: row.source.clone().or_else(|| row.info.get("file_id").and_then(|v| v.as_str()).map(str::to_owned)),
            id: row.name,
            base_model: row.base_model,
        }
    }
}

/// Load an adapter
///
/// From `lora_path` or `file_id`. It answers under its name at once.
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "adapters", request_body = LoadRequest, responses(
    (status = 200, description = "The adapter", body = AdapterObject),
    (status = 400, description = "It does not fit (`adapter_mismatch` names the tensor), or a field is wrong", body = ErrorBody),
    (status = 404, description = "No such folder, file or base", body = ErrorBody),
    (status = 409, description = "The name is taken", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn load(State(state): State<AppState>, ApiJson(request): ApiJson<LoadRequest>) -> Result<Json<AdapterObject>, ApiError> {
    check_name(&state, &request.lora_name).await?;
    let found = match (&request.lora_path, &request.file_id) {
        (Some(path), None) => outside(&state, path).await?,
        (None, Some(id)) => uploaded(&state, id).await?,
        (Some(_), Some(_)) => return Err(ApiError::field("file_id", "`lora_path` and `file_id` exclude each other; give one of them.")),
        (None, None) => {
            return Err(ApiError::field("lora_path", "Say where the adapter is: `lora_path`, or `file_id` of an uploaded zip."));
        }
    };
    let is_told = request.base_model.is_some();
    let mut base = base_model(&found.folder, request.base_model).await?;
    let mut fitted = state.registry.try_adapter(found.folder.clone(), &base).await.map_err(|e| blame(e.into(), &base));
    // What was trained on a folder here names that folder and not the path to it, which would say nothing elsewhere.
    if !is_told
        && fitted.as_ref().is_err_and(|e| e.code() == "model_not_found")
        && let Some(local) = below_model_dir(&state, &base).await?
    {
        fitted = state.registry.try_adapter(found.folder.clone(), &local).await.map_err(|e| blame(e.into(), &local));
        base = local;
    }
    let fitted = fitted?;
    let new = NewAdapter {
        name: request.lora_name,
        base_model: base,
        folder_key: found.keep(&state).await?,
        source: found.source,
        info: told(fitted, request.file_id),
    };
    let kept = new.folder_key.clone();
    match state.store.insert_adapter(&new).await {
        Ok(row) => Ok(Json(AdapterObject::of(row))),
        Err(error) => {
            if let Some(key) = kept {
                // Best effort: the sweep at the next start finds what stays.
                state.store.blobs().delete_prefix(&key).await.ok();
            }
            Err(error.into())
        }
    }
}

/// What the row keeps of an adapter beside its places.
fn told(fitted: Fitted, file_id: Option<String>) -> serde_json::Value {
    let mut info = json!({"labels": fitted.labels, "warnings": fitted.warnings, "file_id": file_id});
    if let Some(facts) = fitted.facts {
        info["task_type"] = json!(facts.task_type);
        info["r"] = json!(facts.r);
        info["lora_alpha"] = json!(facts.lora_alpha);
        info["use_rslora"] = json!(facts.use_rslora);
        info["target_modules"] = facts.target_modules;
        info["parameters"] = json!(facts.parameters);
    }
    info
}

/// An adapter's folder, and what must live as long as it is looked at.
struct Found {
    folder: PathBuf,
    /// Where it can be found again, for one that stays outside.
    source: Option<String>,
    /// For one that was unpacked here.
    unpacked: Option<Staging>,
}

impl Found {
    /// Moves an unpacked folder into the blob store and answers its key.
    async fn keep(&self, state: &AppState) -> Result<Option<String>, ApiError> {
        if self.unpacked.is_none() {
            return Ok(None);
        }
        // A key of its own: the same zip may be loaded under several names.
        let key = Keys::adapter(FileId::generate(&**state.store.clock()));
        state.store.blobs().put_folder(&key, &self.folder).await?;
        Ok(Some(key))
    }
}

/// A name that no model and no adapter has, and that can stand in a path.
async fn check_name(state: &AppState, name: &str) -> Result<(), ApiError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b));
    if name.is_empty() || name.len() > 128 || !plain {
        return Err(ApiError::field("lora_name", "`lora_name` takes 1 to 128 letters, digits, `.`, `_`, `-`, `/`, `:`, `@`."));
    }
    let reserved = name.starts_with("ft:") || name.starts_with("file:") || tunesmith_hub::find_in_catalogue(name).is_some();
    let taken = reserved || !matches!(state.store.model(name).await, Err(StoreError::NotFound { .. }));
    if taken {
        let message = format!("`lora_name` `{}` is the name of a model; choose another.", shorten(name));
        return Err(ApiError::new(StatusCode::CONFLICT, "in_use", message).with_param("lora_name"));
    }
    match state.store.adapter(name).await {
        Ok(_) => {
            let message = format!("`lora_name` `{}` is loaded already; unload it first, or choose another name.", shorten(name));
            Err(ApiError::new(StatusCode::CONFLICT, "in_use", message).with_param("lora_name"))
        }
        Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A folder below `--model-dir`, or a repository of the hub where requests may name those.
async fn outside(state: &AppState, path: &str) -> Result<Found, ApiError> {
    let (config, hub, path) = (state.config.clone(), state.hub.clone(), path.to_owned());
    let work = move || -> Result<(String, String), ApiError> {
        if let Some(folder) = config.below_model_dir(std::path::Path::new(path.trim_start_matches("file:"))) {
            let source = format!("file:{}", folder.display());
            return Ok((source.clone(), source));
        }
        let is_path = path.starts_with(['/', '.']) || path.starts_with("file:");
        if is_path || config.allow_pull != AllowPull::Hub {
            let message = format!(
                "`lora_path` `{}` is no folder below --model-dir; hub ids need a server that was started with --allow-pull=hub.",
                shorten(&path)
            );
            return Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("lora_path"));
        }
        let name = hub
            .allowed(&path, config.allow_pull.into(), config.model_dir.as_deref())
            .map_err(|e| ApiError::from(e).with_param("lora_path"))?;
        Ok((name, path))
    };
    let (name, source) = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??;
    let pulled = state.hub.pull(&name, |_| ()).await.map_err(|e| ApiError::from(e).with_param("lora_path"))?;
    Ok(Found { folder: pulled.folder, source: Some(source), unpacked: None })
}

/// The folder in an uploaded zip, unpacked for a look.
async fn uploaded(state: &AppState, id: &str) -> Result<Found, ApiError> {
    let file = super::files::find(state, id).await.map_err(|e| e.with_param("file_id"))?;
    if file.purpose != "adapter" {
        let message = format!("`file_id`: {id} has purpose `{}`; upload it with purpose `adapter`.", file.purpose);
        return Err(ApiError::field("file_id", message));
    }
    let blobs = state.store.blobs().clone();
    let staging = blobs.staging("adapter")?;
    let zip = blobs.local_path(&file.blob_key).ok_or_else(|| ApiError::internal("the file's blob is not on this machine"))?;
    let limit = state.config.limits.max_unpacked_bytes;
    let _turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let work = move || adapter_zip::unpack(&zip, staging.path(), limit).map(|folder| (folder, staging));
    let (folder, staging) = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??;
    Ok(Found { folder, source: None, unpacked: Some(staging) })
}

/// The request's base, or the one that the adapter's own configuration names.
async fn base_model(folder: &std::path::Path, asked: Option<String>) -> Result<String, ApiError> {
    if let Some(base) = asked {
        return Ok(base);
    }
    let text = tokio::fs::read(folder.join("adapter_config.json")).await;
    let text = text.map_err(|_| mismatch("The folder has no adapter_config.json; a PEFT folder is wanted."))?;
    let config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| mismatch(format!("adapter_config.json is not valid JSON: {e}.")))?;
    match config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(ApiError::field("base_model", "adapter_config.json names no base model; name it in `base_model`.")),
    }
}

/// Levels below `--model-dir` that are searched for a base by its name.
const LEVELS: usize = 3;

/// The one folder or file of that name below `--model-dir`, as `file:<path>`; the one nearest to the top if there are several.
async fn below_model_dir(state: &AppState, name: &str) -> Result<Option<String>, ApiError> {
    let Some(top) = state.config.below_model_dir(std::path::Path::new("")) else { return Ok(None) };
    let name = name.to_owned();
    let search = move || {
        let mut level = vec![top.clone()];
        for _ in 0..LEVELS {
            let mut entries: Vec<PathBuf> = level.iter().flat_map(std::fs::read_dir).flatten().flatten().map(|e| e.path()).collect();
            entries.sort_unstable();
            let mut found = entries.iter().filter(|path| path.file_name().is_some_and(|n| n == name.as_str()));
            match (found.next(), found.next()) {
                (Some(one), None) => return one.strip_prefix(&top).ok().map(|path| format!("file:{}", path.display())),
                (Some(_), Some(_)) => return None,
                _ => level = entries.into_iter().filter(|path| path.is_dir()).collect(),
            }
        }
        None
    };
    tokio::task::spawn_blocking(search).await.map_err(ApiError::internal)
}

fn mismatch(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "adapter_mismatch", message)
}

/// An unknown base is the fault of `base_model`, and a folder that is no adapter is a mismatch.
fn blame(error: ApiError, base: &str) -> ApiError {
    match (error.code(), error.param()) {
        ("model_not_found", _) => {
            let message = format!("The adapter's base `{}` is not known here; name it in `base_model`. {error}", shorten(base));
            ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).with_param("base_model")
        }
        ("invalid_request_error", Some("model")) => mismatch(error.to_string()),
        _ => error,
    }
}

/// Unload an adapter
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "adapters", request_body = UnloadRequest, responses(
    (status = 200, description = "It is gone", body = Deleted),
    (status = 404, description = "No such adapter", body = ErrorBody)))]
async fn unload(State(state): State<AppState>, ApiJson(request): ApiJson<UnloadRequest>) -> Result<Json<Deleted>, ApiError> {
    let name = request.lora_name;
    state.store.delete_adapter(&name).await.map_err(|e| ApiError::from(e).with_param("lora_name"))?;
    state.registry.forget(&name);
    Ok(Json(Deleted { id: name, object: "adapter", deleted: true }))
}

/// List loaded adapters
#[utoipa::path(get, path = "/v1/adapters", tag = "adapters", responses((status = 200, description = "The adapters", body = AdapterList)))]
async fn list(State(state): State<AppState>) -> Result<Json<AdapterList>, ApiError> {
    let rows = state.store.list_adapters().await?;
    Ok(Json(AdapterList { object: "list", data: rows.into_iter().map(AdapterObject::of).collect() }))
}
