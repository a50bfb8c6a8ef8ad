//! Models that can be named in requests: what was trained here, and the catalogue's bases.
//!
//! Names have colons and may have slashes, which clients send as `%2F`. The card tells base, revision, task, data, metrics and
//! licence.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tunesmith_ml::spec::Task;
use tunesmith_store::{AdapterRow, CheckpointLookup, CheckpointRow, Kind, ModelKind, ModelRow, StoreError};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::download;
use super::error::{ApiError, ErrorBody, shorten};
use super::extract::ApiPath;
use super::files::Deleted;
use super::state::AppState;

/// The routes of models.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list_models)).routes(routes!(get_model, delete_model)).routes(routes!(download_model))
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelObject {
    /// The name in requests.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When it was made, in seconds since 1970; 0 for the catalogue's.
    pub created: i64,
    /// Who made it: `org-local` or the catalogue.
    pub owned_by: &'static str,
    /// What it is.
    pub kind: ModelObjectKind,
    /// The task that it was trained for.
    pub task: Option<String>,
    /// The model that it was trained from.
    pub base_model: Option<String>,
    /// The labels of a classifier in the order of their ids.
    pub labels: Option<Vec<String>>,
    /// The number of tokens that it reads; of a language model its context, prompt and answer together.
    pub max_length: Option<i64>,
    /// The job that made it.
    pub job_id: Option<String>,
    /// Base, revision, data, settings, metrics, licence.
    #[schema(value_type = Option<Object>)]
    pub card: Option<serde_json::Value>,
}

/// What a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelObjectKind {
    /// A whole model that was trained here.
    Full,
    /// An adapter on a base model, trained here or loaded.
    Adapter,
    /// A state of a job on its way.
    Checkpoint,
    /// A base model of the catalogue.
    Base,
}

/// The list of models. OpenAI's has no pages.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// The models, newest first.
    pub data: Vec<ModelObject>,
}

impl ModelObject {
    fn of_model(row: ModelRow) -> Self {
        Self {
            id: row.name,
            object: "model",
            created: row.created_at / 1000,
            owned_by: "org-local",
            kind: match row.kind {
                ModelKind::Full => ModelObjectKind::Full,
                ModelKind::Adapter => ModelObjectKind::Adapter,
            },
            // Language models have none, which is not the same as an empty list.
            labels: (row.task == Task::Classification.name()).then_some(row.labels),
            task: Some(row.task),
            base_model: Some(row.base_name),
            max_length: row.max_length,
            job_id: row.job_id.map(|id| id.to_string()),
            card: Some(row.card).filter(serde_json::Value::is_object),
        }
    }

    fn of_checkpoint(row: CheckpointRow) -> Self {
        Self {
            id: row.model_name,
            created: row.created_at / 1000,
            kind: ModelObjectKind::Checkpoint,
            job_id: Some(row.job_id.to_string()),
            card: Some(serde_json::json!({"step": row.step, "metrics": row.metrics})),
            ..Self::base("")
        }
    }

    fn of_adapter(row: AdapterRow) -> Self {
        let labels = row.info.get("labels").and_then(|l| serde_json::from_value(l.clone()).ok());
        Self {
            id: row.name,
            created: row.created_at / 1000,
            kind: ModelObjectKind::Adapter,
            base_model: Some(row.base_model),
            labels,
            card: Some(row.info).filter(serde_json::Value::is_object),
            ..Self::base("")
        }
    }

    fn of_entry(entry: &tunesmith_hub::Entry) -> Self {
        let sources: Vec<String> = entry.sources().iter().map(ToString::to_string).collect();
        Self {
            owned_by: "catalogue",
            card: Some(serde_json::json!({"licence": entry.licence, "sources": sources, "aliases": entry.aliases})),
            ..Self::base(entry.name)
        }
    }

    fn base(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            object: "model",
            created: 0,
            owned_by: "org-local",
            kind: ModelObjectKind::Base,
            task: None,
            base_model: None,
            labels: None,
            max_length: None,
            job_id: None,
            card: None,
        }
    }
}

/// Where a name leads.
enum Found {
    Model(ModelRow),
    Adapter(AdapterRow),
    Checkpoint(CheckpointRow),
    Base(&'static tunesmith_hub::Entry),
}

async fn find(state: &AppState, name: &str) -> Result<Found, ApiError> {
    match state.store.model(name).await {
        Ok(row) => return Ok(Found::Model(row)),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match state.store.adapter(name).await {
        Ok(row) => return Ok(Found::Adapter(row)),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match state.store.checkpoint_by_name(name).await? {
        CheckpointLookup::Found(row) => return Ok(Found::Checkpoint(row)),
        CheckpointLookup::Expired(row) => return Err(expired(&row)),
        CheckpointLookup::NotFound => {}
    }
    match tunesmith_hub::find_in_catalogue(name) {
        Some(entry) if entry.kind == tunesmith_hub::Kind::Model => Ok(Found::Base(entry)),
        _ => Err(ApiError::model_not_found(name)),
    }
}

fn expired(row: &CheckpointRow) -> ApiError {
    let message = format!(
        "The checkpoint `{}` has expired: only the last `training.save_total_limit` and the best are kept. `GET /v1/fine_tuning/jobs/{}/checkpoints` lists those that are left.",
        shorten(&row.model_name),
        row.job_id
    );
    ApiError::new(axum::http::StatusCode::NOT_FOUND, "checkpoint_expired", message).with_param("model")
}

/// List models
///
/// What was trained here, loaded adapters, then the catalogue's base models.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, description = "The models", body = ModelList)))]
async fn list_models(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let models = state.store.list_models().await?;
    let adapters = state.store.list_adapters().await?;
    let bases = tunesmith_hub::catalogue_entries().iter().filter(|e| e.kind == tunesmith_hub::Kind::Model);
    let data = models
        .into_iter()
        .map(ModelObject::of_model)
        .chain(adapters.into_iter().map(ModelObject::of_adapter))
        .chain(bases.map(ModelObject::of_entry))
        .collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// Look up a model
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models", params(("model" = String, Path, description = "The name; slashes as %2F")), responses(
    (status = 200, description = "The model", body = ModelObject),
    (status = 404, description = "No such model", body = ErrorBody)))]
async fn get_model(State(state): State<AppState>, ApiPath(name): ApiPath<String>) -> Result<Json<ModelObject>, ApiError> {
    Ok(Json(match find(&state, &name).await? {
        Found::Model(row) => ModelObject::of_model(row),
        Found::Adapter(row) => ModelObject::of_adapter(row),
        Found::Checkpoint(row) => ModelObject::of_checkpoint(row),
        Found::Base(entry) => ModelObject::of_entry(entry),
    }))
}

/// Delete a model that was trained here
///
/// Its checkpoints' names go with it; requests that run end on it. Refused while adapters stand on it.
#[utoipa::path(delete, path = "/v1/models/{model}", tag = "models", params(("model" = String, Path, description = "The name; slashes as %2F")), responses(
    (status = 200, description = "It is gone", body = Deleted),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 409, description = "Adapters or unfinished jobs stand on it", body = ErrorBody)))]
async fn delete_model(State(state): State<AppState>, ApiPath(name): ApiPath<String>) -> Result<Json<Deleted>, ApiError> {
    match state.store.delete_model(&name).await {
        Ok(_) => state.registry.forget(&name),
        Err(StoreError::NotFound { kind: Kind::Model, .. }) => return Err(cannot_delete(find(&state, &name).await?, &name)),
        Err(error) => return Err(error.into()),
    }
    Ok(Json(Deleted { id: name, object: "model", deleted: true }))
}

/// A name that leads somewhere, and not to a model that was trained here.
fn cannot_delete(found: Found, name: &str) -> ApiError {
    let name = shorten(name);
    let why = match found {
        Found::Adapter(_) => format!("`{name}` is a loaded adapter; POST /v1/unload_lora_adapter removes it."),
        Found::Checkpoint(row) => format!("`{name}` is a checkpoint; it goes with its job {}.", row.job_id),
        Found::Base(_) | Found::Model(_) => format!("`{name}` is a base model of the catalogue; there is nothing of it to delete."),
    };
    ApiError::new(axum::http::StatusCode::CONFLICT, "in_use", why).with_param("model")
}

/// A model's folder as a zip
///
/// A Hugging Face folder for a full model, a PEFT folder for an adapter. Stored, not packed, and written as it is sent.
#[utoipa::path(get, path = "/v1/models/{model}/download", tag = "models", params(("model" = String, Path, description = "The name; slashes as %2F")), responses(
    (status = 200, description = "The zip", content_type = "application/zip"),
    (status = 404, description = "No such model, or nothing of it here", body = ErrorBody)))]
async fn download_model(State(state): State<AppState>, ApiPath(name): ApiPath<String>) -> Result<Response, ApiError> {
    let folder = match find(&state, &name).await? {
        Found::Model(row) => row.folder_key,
        Found::Checkpoint(row) => format!("{}/model", row.folder_key),
        Found::Adapter(AdapterRow { folder_key: Some(key), .. }) => key,
        Found::Adapter(_) | Found::Base(_) => {
            let message = format!("`{}` was not made here; get it from where it came from.", shorten(&name));
            return Err(ApiError::not_found(message).with_param("model"));
        }
    };
    download::folder(&state, &folder, &name).await
}
