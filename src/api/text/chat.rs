//! `POST /v1/chat/completions`: a conversation goes on, whole or as a stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use tunesmith_chat::{Message, RenderOptions, ToolFormat, check_results, left_out_call, parse_tool_calls};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::chat_object::{AssistantMessage, ChatCompletion, Choice, UsageObject, reason};
use super::chat_stream;
use super::format::ResponseFormat;
use super::knobs::{AnswerFormat, Knobs, Settings};
use super::run::{Answer, Wanted, check_length, collect, language, now, off_thread, submit};
use super::stop::Stop;
use super::tokens::{ChatLogprobs, ChatToken};
use super::tools::{CheckedTools, call_object, checked_tools, with_calls};
use crate::api::classify::model_name;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::ApiJson;
use crate::api::state::AppState;
use crate::serve::Language;

/// The route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(chat))
}

/// A conversation to go on with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// The model: one of `GET /v1/models`.
    model: Option<String>,
    /// An adapter on that model; alone it is enough (not OpenAI's).
    adapter_id: Option<String>,
    /// The conversation so far.
    #[schema(value_type = Vec<Object>, min_items = 1)]
    messages: Vec<Message>,
    /// 0 takes the likeliest token each time [default: 1].
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    /// Draw only from the likeliest tokens that together reach this probability [default: 1].
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Draw only from so many of the likeliest tokens (not OpenAI's).
    top_k: Option<i64>,
    /// Draw only from tokens at least so likely, relative to the likeliest (not OpenAI's).
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    /// Divides the logits of tokens that were there already [default: 1] (not OpenAI's).
    repetition_penalty: Option<f32>,
    /// Taken off the logits of tokens in the answer.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    /// The same, once for each time.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, by their ids.
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed gives the same answer, whatever else the server does.
    seed: Option<i64>,
    /// Texts that end the answer, at most 16.
    stop: Option<Stop>,
    /// Answers to give [default: 1].
    #[schema(minimum = 1, maximum = 128)]
    n: Option<i64>,
    /// Most tokens of an answer [default: what fits].
    #[schema(minimum = 1)]
    max_completion_tokens: Option<i64>,
    /// The same, by its older name.
    #[schema(minimum = 1)]
    max_tokens: Option<i64>,
    /// Whether to tell the tokens' log-probabilities.
    logprobs: Option<bool>,
    /// Alternatives to list at each token.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// What the answer keeps to.
    response_format: Option<ResponseFormat>,
    /// Whether to send the answer piece by piece.
    stream: Option<bool>,
    /// What a stream tells beside the text.
    stream_options: Option<StreamOptions>,
    /// Functions that the model may call, for models whose template knows of them.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, one function: `{"type": "function", "function": {"name": "…"}}`, or some of them: `{"type":
    /// "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "…"}}]}}`.
    #[schema(value_type = Option<Object>)]
    tool_choice: Option<Value>,
    /// Variables of the chat template (not OpenAI's).
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether an answer may have several calls [default: true].
    parallel_tool_calls: Option<bool>,
    /// Accepted and without effect.
    #[serde(rename = "user")]
    _user: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "metadata")]
    #[schema(value_type = Option<Object>)]
    _metadata: Option<Value>,
    /// Accepted and without effect.
    #[serde(rename = "service_tier")]
    _service_tier: Option<String>,
    /// Accepted and without effect: nothing is kept.
    #[serde(rename = "store")]
    _store: Option<bool>,
    /// Accepted and without effect: equal beginnings are always shared.
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "prompt_cache_options")]
    #[schema(value_type = Option<Object>)]
    _prompt_cache_options: Option<Value>,
    /// Accepted and without effect.
    #[serde(rename = "prompt_cache_retention")]
    _prompt_cache_retention: Option<String>,
    /// Accepted and without effect: it could only save time.
    #[serde(rename = "prediction")]
    #[schema(value_type = Option<Object>)]
    _prediction: Option<Value>,
    /// Refused unless it is `["text"]`.
    modalities: Option<Vec<String>>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    audio: Option<Value>,
    /// Refused; `tools` has taken its place.
    #[schema(value_type = Option<Object>)]
    functions: Option<Value>,
    /// Refused; `tool_choice` has taken its place.
    #[schema(value_type = Option<Object>)]
    function_call: Option<Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    moderation: Option<Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    web_search_options: Option<Value>,
    /// Refused unless it is `none`: `chat_template_kwargs` sets what a template knows.
    reasoning_effort: Option<String>,
    /// Refused unless it is `medium`.
    verbosity: Option<String>,
}

/// What a stream tells beside the text.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// A last piece with the tokens' counts.
    pub include_usage: Option<bool>,
    /// Accepted and without effect.
    #[serde(rename = "include_obfuscation")]
    pub _include_obfuscation: Option<bool>,
}

impl ChatRequest {
    fn refuse_unavailable(&self) -> Result<(), ApiError> {
        let set = |v: &Option<Value>| v.as_ref().is_some_and(|v| !v.is_null());
        let refusals = [
            ("audio", set(&self.audio), "a local language model neither hears nor speaks"),
            ("functions", set(&self.functions), "use `tools`"),
            ("function_call", set(&self.function_call), "use `tool_choice`"),
            ("moderation", set(&self.moderation), "there is no moderation here"),
            ("web_search_options", set(&self.web_search_options), "a local model searches nothing"),
            ("modalities", self.modalities.as_ref().is_some_and(|m| m != &["text"]), "only `[\"text\"]` is available"),
            (
                "reasoning_effort",
                self.reasoning_effort.as_ref().is_some_and(|e| e != "none"),
                "models here have no such setting; `chat_template_kwargs` sets what a template knows",
            ),
            ("verbosity", self.verbosity.as_ref().is_some_and(|v| v != "medium"), "models here have no such setting"),
        ];
        match refusals.iter().find(|(_, given, _)| *given) {
            Some((name, _, why)) => Err(ApiError::field(*name, format!("`{name}` is not available: {why}."))),
            None => Ok(()),
        }
    }

    fn settings(&mut self) -> Result<Settings, ApiError> {
        let (max_tokens, max_tokens_field) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(_), Some(_)) => {
                return Err(ApiError::field("max_tokens", "`max_tokens` is the older name of `max_completion_tokens`; give one of them."));
            }
            (Some(n), None) => (Some(n), "max_completion_tokens"),
            (None, n) => (n, "max_tokens"),
        };
        let knobs = Knobs {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.take(),
            seed: self.seed,
            stop: self.stop.take(),
            n: self.n,
            max_tokens,
            max_tokens_field,
            least_tokens: 1,
        };
        let format = self.response_format.take().map(ResponseFormat::answer_format).transpose()?.flatten();
        Ok(Settings { format, ..knobs.settings()? })
    }

    fn wanted_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (_, Some(n)) if !(0..=20).contains(&n) => {
                Err(ApiError::field("top_logprobs", format!("`top_logprobs` is {n}; it must be between 0 and 20.")))
            }
            (false, Some(n)) if n > 0 => Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs` to be true.")),
            (false, _) => Ok(None),
            (true, n) => Ok(Some(n.unwrap_or(0) as usize)),
        }
    }
}

/// A conversation that is ready to be answered.
pub struct Prepared {
    /// The model.
    pub language: Arc<Language>,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// How the model spells calls of tools, where it may call any.
    pub tools: Option<ToolFormat>,
}

impl Prepared {
    /// What answers keep to: the format that the request asks for, and calls of tools where there may be any.
    pub fn answer_format(&self, text: Option<AnswerFormat>, tools: Option<&CheckedTools>) -> Option<AnswerFormat> {
        match (self.tools, tools) {
            (Some(format), Some(tools)) => Some(with_calls(format, tools, text)),
            _ => text,
        }
    }
}

/// Renders a conversation by the model's template and tokenises it.
pub async fn prepare(
    state: &AppState,
    name: &str,
    messages: Vec<Message>,
    tools: Option<&CheckedTools>,
    extra: Map<String, Value>,
    field: &'static str,
) -> Result<Prepared, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field(field, format!("`{field}` is empty; a conversation has at least one message.")));
    }
    let language = language(state, name).await?;
    let template = match language.template.clone() {
        Some(Ok(template)) => template,
        Some(Err(why)) => return Err(ApiError::field("model", format!("`{name}` cannot chat: {why}; ask /v1/completions."))),
        None => {
            let message = format!("`{name}` has no chat template, so it cannot chat; ask /v1/completions.");
            return Err(ApiError::field("model", message));
        }
    };
    let format = match tools {
        None => None,
        Some(_) => Some(
            template
                .tool_format()
                .ok_or_else(|| ApiError::field("tools", format!("The chat template of `{name}` knows no tools; leave `tools` out.")))?,
        ),
    };
    let model = language.clone();
    let tools = tools.map(|t| t.tools.clone());
    let prompt = off_thread(move || {
        let options = RenderOptions { tools: tools.as_deref(), add_generation_prompt: true, extra, ..RenderOptions::default() };
        let text = template
            .render(&messages, &options)
            .map_err(|e| ApiError::field(field, format!("The conversation cannot be rendered: {e}.")))?;
        if let Some(i) = left_out_call(&messages, &text) {
            let message = format!("message {i} of the conversation calls a tool, and the model's chat template leaves calls out; choose a model that knows tools.");
            return Err(ApiError::field(field, format!("`{field}`: {message}")));
        }
        model.model.tokenizer().encode(&text, false).map_err(ApiError::internal)
    })
    .await?;
    check_length(&language, prompt.len(), field)?;
    Ok(Prepared { language, prompt, tools: format })
}

/// Chat
///
/// The same seed gives the same answer whatever else the server does; `temperature` 0 needs none.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "inference", request_body = ChatRequest, responses(
    (status = 200, description = "The answer; with `stream` an event stream of pieces", body = ChatCompletion),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn chat(State(state): State<AppState>, ApiJson(mut request): ApiJson<ChatRequest>) -> Result<Response, ApiError> {
    request.refuse_unavailable()?;
    let mut settings = request.settings()?;
    let logprobs = request.wanted_logprobs()?;
    let tools = checked_tools(request.tools.take(), request.tool_choice.take(), request.parallel_tool_calls, false)?;
    check_results(&request.messages, "messages").map_err(|e| ApiError::field(e.path.clone(), format!("{e}.")))?;
    let stream = request.stream.unwrap_or(false);
    if request.stream_options.is_some() && !stream {
        return Err(ApiError::field("stream_options", "`stream_options` needs `stream` to be true."));
    }
    let name = model_name(&state, request.model.take(), request.adapter_id.take()).await?;
    let extra = request.chat_template_kwargs.take().unwrap_or_default();
    let prepared = prepare(&state, &name, std::mem::take(&mut request.messages), tools.as_ref(), extra, "messages").await?;
    settings.format = prepared.answer_format(settings.format, tools.as_ref());
    let wanted = Wanted { logprobs, show_special: prepared.tools.is_some(), ..Wanted::default() };
    let events = submit(&prepared.language, &[&prepared.prompt], &settings, wanted).await?;
    let id = format!("chatcmpl-{}", uuid::Uuid::now_v7().simple());
    if stream {
        let usage = request.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
        return Ok(chat_stream::respond(
            chat_stream::Start { state, id, model: name, prepared, logprobs: logprobs.is_some(), usage },
            events,
        ));
    }
    let mut choices = Vec::with_capacity(events.len());
    let mut usages = Vec::with_capacity(events.len());
    for (index, events) in events.into_iter().enumerate() {
        let answer = collect(events, &state).await?;
        usages.push(answer.usage);
        choices.push(choice(index, answer, &prepared, logprobs.is_some()));
    }
    let usage = UsageObject::of(usages);
    Ok(Json(ChatCompletion { id, object: "chat.completion", created: now(), model: name, choices, usage }).into_response())
}

fn choice(index: usize, answer: Answer, prepared: &Prepared, logprobs: bool) -> Choice {
    let tokenizer = prepared.language.model.tokenizer();
    let content = answer.tokens.iter().map(|t| ChatToken::of(t, tokenizer)).collect();
    let (text, calls) = match prepared.tools {
        Some(format) => parse_tool_calls(format, &answer.text),
        None => (answer.text, Vec::new()),
    };
    let tool_calls: Vec<_> = calls.into_iter().map(call_object).collect();
    let finish_reason = reason(answer.finish, !tool_calls.is_empty());
    let content_text = if text.is_empty() && !tool_calls.is_empty() { None } else { Some(text) };
    Choice {
        index,
        message: AssistantMessage { role: "assistant", content: content_text, refusal: (), tool_calls },
        logprobs: logprobs.then_some(ChatLogprobs { content, refusal: () }),
        finish_reason,
    }
}
