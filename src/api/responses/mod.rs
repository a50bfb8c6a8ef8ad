//! `/v1/responses`: OpenAI's main interface. A response goes on from another one by its id, since both are kept.

mod items;
mod live;
mod output;
mod query;
mod request;
mod run;
mod transcript;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use tunesmith_store::{ResponseRow, StoreError};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::live::{Live, follow};
use self::query::{ItemsQuery, RetrieveQuery};
use self::request::ResponseRequest;
use self::run::Run;
use self::transcript::Transcript;
use super::error::{ApiError, ErrorBody, shorten};
use super::extract::{ApiJson, ApiPath, ApiQuery, NoFields};
use super::files::Deleted;
use super::paging::List;
use super::state::AppState;
use super::text::chat::prepare;
use super::text::run::{Wanted, submit};

pub use self::items::read_part;
pub use self::live::Background;

/// The routes of responses.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(create)).routes(routes!(retrieve, delete)).routes(routes!(input_items)).routes(routes!(cancel))
}

/// A response.
#[derive(Debug, Serialize, ToSchema)]
struct ResponseObject {
    /// `resp_` and a number.
    id: String,
    /// Always `response`.
    object: String,
    /// Seconds since 1970.
    created_at: i64,
    /// `in_progress`, `completed`, `incomplete`, `failed` or `cancelled`.
    status: String,
    /// The model that answered.
    model: String,
    /// Messages and function calls.
    #[schema(value_type = Vec<Object>)]
    output: Vec<Value>,
    /// Tokens, once there is an answer.
    #[schema(value_type = Option<Object>)]
    usage: Option<Value>,
    /// Why it failed.
    #[schema(value_type = Option<Object>)]
    error: Option<Value>,
    /// Why it is incomplete.
    #[schema(value_type = Option<Object>)]
    incomplete_details: Option<Value>,
}

/// Answer
///
/// With `stream` the typed events come as a stream; with `previous_response_id` the conversation goes on. With `background` the
/// response goes on when its client leaves, and its stream too can be left and picked up again.
#[utoipa::path(post, path = "/v1/responses", tag = "inference", request_body = ResponseRequest, responses(
    (status = 200, description = "The response with every field of the request that it kept to; with `stream` an event stream", body = ResponseObject),
    (status = 404, description = "No such model, or no such previous response", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn create(State(state): State<AppState>, ApiJson(request): ApiJson<ResponseRequest>) -> Result<Response, ApiError> {
    request.refuse_unavailable()?;
    let mut settings = request.settings()?;
    let logprobs = request.wanted_logprobs()?;
    let tools = request.chat_tools()?;
    let name =
        request.model.clone().ok_or_else(|| ApiError::field("model", "`model` is missing; `GET /v1/models` lists what there is."))?;
    let input = request.input.as_ref().ok_or_else(|| ApiError::field("input", "`input` is missing; send a text or a list of items."))?;
    let input = items::read_input(input)?;
    let mut context = match &request.previous_response_id {
        Some(id) => context_of(&state, id).await.map_err(|e| e.told("previous_response_id"))?,
        None => Vec::new(),
    };
    context.extend(input.iter().cloned());
    let prepared = loop {
        let mut messages = items::to_messages(&context)?;
        if let Some(text) = request.instructions.as_deref().filter(|t| !t.is_empty()) {
            messages.insert(0, tunesmith_chat::Message::new(tunesmith_chat::Role::System, text));
        }
        match prepare(&state, &name, messages, tools.as_ref(), Default::default(), "input").await {
            Err(error)
                if error.code() == "context_length_exceeded" && request.truncation.as_deref() == Some("auto") && context.len() > 1 =>
            {
                context.remove(0);
                // An output without its call is no conversation.
                while context.len() > 1 && context[0]["type"] == "function_call_output" {
                    context.remove(0);
                }
            }
            other => break other?,
        }
    };
    let wanted = Wanted { logprobs, show_special: prepared.tools.is_some(), ..Wanted::default() };
    settings.format = prepared.answer_format(settings.format, tools.as_ref());
    let events = submit(&prepared.language, &[&prepared.prompt], &settings, wanted).await?.remove(0);
    let run = Run::new(state, name, &request, input, prepared, events, logprobs.is_some());
    match (request.stream.unwrap_or(false), request.background.unwrap_or(false)) {
        (true, false) => Ok(run.stream()),
        (true, true) => Ok(follow(run.in_background().await?.1, None)),
        (false, true) => Ok(Json(run.in_background().await?.0).into_response()),
        (false, false) => Ok(Json(run.whole().await?).into_response()),
    }
}

/// Why what a response goes on from cannot be read.
enum NoContext {
    /// The first that is gone, of those that `id` goes on from or itself.
    Gone { id: String, gone: String },
    /// It is still being made.
    Unfinished(String),
    /// Any other failure.
    Store(StoreError),
}

impl NoContext {
    /// The error where the response was named by this field.
    fn told(self, field: &str) -> ApiError {
        let gone = "does not exist any more (it was deleted, or is older than 30 days)";
        let remedy = "Send the conversation itself in `input`, without `previous_response_id`.";
        match self {
            Self::Gone { id, gone: same } if id == same => {
                let id = shorten(&id);
                let message = format!("`{field}`: the response `{id}` was never kept here, or {gone}. {remedy}");
                ApiError::not_found(message).with_param(field)
            }
            Self::Gone { id, gone: ancestor } => {
                let (id, ancestor) = (shorten(&id), shorten(&ancestor));
                let message = format!("`{field}`: the response `{id}` goes on from `{ancestor}`, which {gone}. {remedy}");
                ApiError::not_found(message).with_param(field)
            }
            Self::Unfinished(id) => {
                let message = format!("`{field}`: the response `{}` is not finished; wait until its status says so.", shorten(&id));
                ApiError::field(field, message)
            }
            Self::Store(StoreError::TooLong { id, most }) => {
                let message = format!("`{field}`: the response `{}` goes on from {most} others or more. {remedy}", shorten(&id));
                ApiError::field(field, message)
            }
            Self::Store(other) => other.into(),
        }
    }
}

/// The items of a response and of all that it goes on from, with their answers.
async fn context_of(state: &AppState, id: &str) -> Result<Vec<Value>, NoContext> {
    let chain = state.store.response_chain(id).await.map_err(|e| match e {
        StoreError::NotFound { id: gone, .. } => NoContext::Gone { id: id.to_owned(), gone },
        other => NoContext::Store(other),
    })?;
    if chain.last().is_some_and(|row| row.unfinished) {
        return Err(NoContext::Unfinished(id.to_owned()));
    }
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    Ok(chain.iter().flat_map(|row| items(&row.input).into_iter().chain(items(&row.body["output"]))).collect())
}

/// Read a response
///
/// With `stream` the events are those of the response's own stream, with the same numbers. They are made from the text and the
/// pieces in which it was told, so a long one takes no more memory than its text. A response that was kept by an earlier version
/// has one event for the text of each message.
#[utoipa::path(get, path = "/v1/responses/{response_id}", tag = "inference", params(("response_id" = String, Path), RetrieveQuery), responses(
    (status = 200, description = "The response; with `stream` an event stream", body = ResponseObject),
    (status = 404, description = "No such response", body = ErrorBody),
    (status = 409, description = "With `stream`: nobody makes it any more, and it has no end", body = ErrorBody)))]
async fn retrieve(
    State(state): State<AppState>,
    ApiPath(id): ApiPath<String>,
    ApiQuery(query): ApiQuery<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let query = RetrieveQuery::read(query)?;
    let mut row = state.store.response(&id).await?;
    if query.stream != Some(true) {
        return Ok(Json(row.body).into_response());
    }
    if row.unfinished {
        if let Some(live) = state.background.find(&id) {
            return Ok(follow(live, query.starting_after));
        }
        // It may have ended between the two looks.
        row = state.store.response(&id).await?;
    }
    if row.unfinished {
        let message =
            format!("The response `{}` cannot be followed: its end could not be written. It is failed at the next start.", shorten(&id));
        return Err(ApiError::new(StatusCode::CONFLICT, "response_abandoned", message));
    }
    Ok(follow(Live::new(Transcript::kept(row.body, &row.pieces)), query.starting_after))
}

/// Delete a response
///
/// Those that went on from it stay, but nothing new can.
#[utoipa::path(delete, path = "/v1/responses/{response_id}", tag = "inference", params(("response_id" = String, Path)), responses(
    (status = 200, description = "It is gone", body = Deleted),
    (status = 404, description = "No such response", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn delete(State(state): State<AppState>, ApiPath(id): ApiPath<String>) -> Result<Json<Deleted>, ApiError> {
    state.store.delete_response(&id).await?;
    state.background.stop(&id);
    Ok(Json(Deleted { id, object: "response", deleted: true }))
}

/// List what a response answered
///
/// Every item that the model read, those of earlier responses included.
#[utoipa::path(get, path = "/v1/responses/{response_id}/input_items", tag = "inference",
    params(("response_id" = String, Path), ItemsQuery), responses(
    (status = 200, description = "The items", body = List<Object>),
    (status = 404, description = "No such response", body = ErrorBody)))]
async fn input_items(
    State(state): State<AppState>,
    ApiPath(id): ApiPath<String>,
    ApiQuery(query): ApiQuery<Vec<(String, String)>>,
) -> Result<Json<List<Value>>, ApiError> {
    let query = ItemsQuery::read(query)?;
    let row = state.store.response(&id).await?;
    let mut items = match &row.previous_id {
        Some(previous) => context_of(&state, previous).await.map_err(|e| match e {
            NoContext::Gone { gone, .. } => {
                let message = format!(
                    "The response `{}` goes on from `{}`, which does not exist any more, so what it answered cannot be listed whole.",
                    shorten(&id),
                    shorten(&gone)
                );
                ApiError::not_found(message).with_param("response_id")
            }
            other => other.told("response_id"),
        })?,
        None => Vec::new(),
    };
    items.extend(row.input.as_array().cloned().unwrap_or_default());
    match query.order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::field("order", "`order` must be \"asc\" or \"desc\".")),
    }
    let limit = query.limit.unwrap_or(20);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::field("limit", format!("`limit` is {limit}; it must be between 1 and 100.")));
    }
    let start = match &query.after {
        None => 0,
        Some(after) => {
            let found = items.iter().position(|item| item["id"] == after.as_str());
            found.ok_or_else(|| ApiError::field("after", format!("`after` is `{}`, which is no id of this list.", shorten(after))))? + 1
        }
    };
    let has_more = items.len() > start + limit;
    let data: Vec<Value> = items.into_iter().skip(start).take(limit).collect();
    let id_of = |item: Option<&Value>| item.and_then(|i| i["id"].as_str()).map(str::to_owned);
    Ok(Json(List { object: "list", first_id: id_of(data.first()), last_id: id_of(data.last()), has_more, data }))
}

/// Cancel a response in the background
#[utoipa::path(post, path = "/v1/responses/{response_id}/cancel", tag = "inference", params(("response_id" = String, Path)), responses(
    (status = 200, description = "The response, cancelled or as it had ended", body = ResponseObject),
    (status = 400, description = "It was not made in the background", body = ErrorBody),
    (status = 404, description = "No such response", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn cancel(State(state): State<AppState>, ApiPath(id): ApiPath<String>, _: NoFields) -> Result<Json<Value>, ApiError> {
    let row = state.store.response(&id).await?;
    if row.body["background"] != json!(true) {
        return Err(ApiError::bad_request("Only a response that was made with `background` can be cancelled."));
    }
    if row.unfinished {
        match state.background.stop(&id) {
            // Its maker writes what there is of it.
            Some(live) => live.ended().await,
            None => {
                let mut body = row.body;
                body["status"] = json!("cancelled");
                state.store.finish_response(&id, &body, &row.pieces).await?;
            }
        }
    }
    Ok(Json(state.store.response(&id).await?.body))
}

/// Tells responses that a server's end cut off that they failed; called once at its next start.
pub async fn fail_abandoned(store: &tunesmith_store::Store) -> Result<(), StoreError> {
    for ResponseRow { id, mut body, pieces, .. } in store.unfinished_responses().await? {
        body["status"] = json!("failed");
        body["error"] = json!({"code": "server_error", "message": "The server ended before the response did."});
        store.finish_response(&id, &body, &pieces).await?;
    }
    Ok(())
}
