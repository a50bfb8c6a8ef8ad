//! `POST /v1/completions`: a text or a list of tokens goes on.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use futures::stream::{SelectAll, StreamExt};
use serde::{Deserialize, Serialize};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tunesmith_ml::infer::{Event, TokenInfo, Usage};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::chat::StreamOptions;
use super::chat_object::{UsageObject, reason};
use super::chat_stream::{data, sse_error};
use super::format::ResponseFormat;
use super::knobs::{Knobs, Settings};
use super::prompts::Prompt;
use super::run::{Wanted, collect, failed, language, now, submit};
use super::stop::Stop;
use super::tokens::{CompletionLogprobs, Places};
use crate::api::classify::model_name;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::extract::ApiJson;
use crate::api::passages::{self, Passages};
use crate::api::sse;
use crate::api::state::AppState;
use crate::serve::{Events, Language};

/// The route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(completions))
}

/// A text to go on with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CompletionRequest {
    /// The model: one of `GET /v1/models`.
    model: Option<String>,
    /// An adapter on that model; alone it is enough (not OpenAI's).
    adapter_id: Option<String>,
    /// What goes on.
    #[schema(schema_with = passages::schema)]
    prompt: Passages,
    /// Whether the prompt stands before the answer.
    echo: Option<bool>,
    /// Most tokens of an answer [default: 16]; 0 with `echo` and `logprobs` scores the prompt.
    #[schema(minimum = 0)]
    max_tokens: Option<i64>,
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
    /// What the answer keeps to (not OpenAI's).
    response_format: Option<ResponseFormat>,
    /// Answers to each prompt [default: 1].
    #[schema(minimum = 1, maximum = 128)]
    n: Option<i64>,
    /// Alternatives to list at each token; with it the tokens' log-probabilities are told.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<i64>,
    /// Whether to send the answer piece by piece.
    stream: Option<bool>,
    /// What a stream tells beside the text.
    stream_options: Option<StreamOptions>,
    /// Refused unless it is `n`.
    best_of: Option<i64>,
    /// Refused: models here only go on at the end.
    suffix: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// What a completion answers.
#[derive(Debug, Serialize, ToSchema)]
struct Completion {
    /// `cmpl-` and a number.
    id: String,
    /// Always `text_completion`.
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    /// The model that answered.
    model: String,
    /// The answers, prompt by prompt.
    choices: Vec<CompletionChoice>,
    /// Tokens; in a stream only in the last piece, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageObject>>,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
struct CompletionChoice {
    /// Its place.
    index: usize,
    /// The text.
    text: String,
    /// Log-probabilities of its tokens.
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream null until the end.
    finish_reason: Option<&'static str>,
}

impl CompletionRequest {
    fn settings(&mut self) -> Result<Settings, ApiError> {
        if self.suffix.as_ref().is_some_and(|s| !s.is_empty()) {
            return Err(ApiError::field("suffix", "`suffix` is not available: models here only go on at the end."));
        }
        if self.best_of.is_some_and(|b| b != self.n.unwrap_or(1)) {
            return Err(ApiError::field("best_of", "`best_of` is not available; `n` gives several answers."));
        }
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
            max_tokens: Some(self.max_tokens.unwrap_or(16)),
            max_tokens_field: "max_tokens",
            least_tokens: i64::from(!self.echo.unwrap_or(false)),
        };
        let format = self.response_format.take().map(ResponseFormat::answer_format).transpose()?.flatten();
        Ok(Settings { format, ..knobs.settings()? })
    }
}

/// Go on with a text
///
/// With `echo`, `logprobs` and `max_tokens` 0 it tells how likely the prompt itself is.
#[utoipa::path(post, path = "/v1/completions", tag = "inference", request_body = CompletionRequest, responses(
    (status = 200, description = "The answers; with `stream` an event stream of pieces", body = Completion),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn completions(State(state): State<AppState>, ApiJson(mut request): ApiJson<CompletionRequest>) -> Result<Response, ApiError> {
    let settings = request.settings()?;
    let logprobs = match request.logprobs {
        Some(n) if !(0..=20).contains(&n) => {
            return Err(ApiError::field("logprobs", format!("`logprobs` is {n}; it must be between 0 and 20.")));
        }
        n => n.map(|n| n as usize),
    };
    let (stream, echo) = (request.stream.unwrap_or(false), request.echo.unwrap_or(false));
    if request.stream_options.is_some() && !stream {
        return Err(ApiError::field("stream_options", "`stream_options` needs `stream` to be true."));
    }
    let name = model_name(&state, request.model, request.adapter_id).await?;
    let language = language(&state, &name).await?;
    let least = usize::from(settings.max_tokens != Some(0));
    let prompts = Prompt::read_all(request.prompt, &language, least).await?;
    let most = state.config.budgets.generation_requests;
    if prompts.len().saturating_mul(settings.n) > most {
        let message = format!(
            "{} prompts with `n` {} ask for more answers than a request may: {most} (budgets.generation_requests).",
            prompts.len(),
            settings.n
        );
        return Err(ApiError::field("n", message));
    }
    let wanted = Wanted { logprobs, prompt_logprobs: logprobs.filter(|_| echo), show_special: false };
    let ids: Vec<&[u32]> = prompts.iter().map(|p| &p.ids[..]).collect();
    let events = submit(&language, &ids, &settings, wanted).await?;
    let head = Head { id: format!("cmpl-{}", uuid::Uuid::now_v7().simple()), created: now(), model: name };
    if stream {
        let usage = request.stream_options.and_then(|o| o.include_usage).unwrap_or(false);
        let prompt_tokens = prompts.iter().map(|p| p.ids.len()).sum();
        let echoed = if echo { prompts } else { Vec::new() };
        let told = Told { logprobs: logprobs.is_some(), usage, echoed, each: settings.n, prompt_tokens };
        return Ok(respond(state, head, language, events, told));
    }
    let mut choices = Vec::with_capacity(events.len());
    let mut usage = UsageObject::default();
    for (index, events) in events.into_iter().enumerate() {
        let answer = collect(events, &state).await?;
        if index % settings.n == 0 {
            usage.prompt_tokens += answer.usage.prompt_tokens;
            usage.prompt_tokens_details.cached_tokens += answer.usage.cached_tokens;
        }
        usage.completion_tokens += answer.usage.completion_tokens;
        let prompt = Some(&prompts[index / settings.n]).filter(|_| echo);
        let mut lists = Lists::after(prompt, &language);
        let told = prompt.map(|p| lists.of_prompt(p, &answer.prompt)).unwrap_or_default();
        let lists = answer.tokens.iter().fold(told, |told, token| lists.with(told, token));
        let text = prompt.map(|p| p.text.clone()).unwrap_or_default() + &answer.text;
        let finish_reason = Some(reason(answer.finish, false));
        choices.push(CompletionChoice { index, text, logprobs: logprobs.is_some().then_some(lists), finish_reason });
    }
    usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
    Ok(Json(head.object(choices, Some(Some(usage)))).into_response())
}

/// The log-probabilities of one answer, piece by piece.
struct Lists<'a> {
    language: &'a Language,
    places: Places,
}

impl<'a> Lists<'a> {
    /// Of an answer after this prompt, where the text begins with one.
    fn after(prompt: Option<&Prompt>, language: &'a Language) -> Self {
        Self { language, places: Places::after(prompt.map_or(0, |p| p.text.chars().count())) }
    }

    fn of_prompt(&self, prompt: &Prompt, tokens: &[TokenInfo]) -> CompletionLogprobs {
        let mut lists = CompletionLogprobs::default();
        tokens.iter().zip(&prompt.places).for_each(|(t, place)| lists.push(t, self.language.model.tokenizer(), *place));
        lists
    }

    /// With the answer's next token.
    fn with(&mut self, mut lists: CompletionLogprobs, token: &TokenInfo) -> CompletionLogprobs {
        let tokenizer = self.language.model.tokenizer();
        lists.push(token, tokenizer, self.places.next(tokenizer.bytes_of(token.id, false)));
        lists
    }
}

/// What every piece of an answer repeats.
struct Head {
    id: String,
    created: i64,
    model: String,
}

impl Head {
    fn object(&self, choices: Vec<CompletionChoice>, usage: Option<Option<UsageObject>>) -> Completion {
        let (id, model) = (self.id.clone(), self.model.clone());
        Completion { id, object: "text_completion", created: self.created, model, choices, usage }
    }
}

/// What a stream tells beside the answers' texts.
struct Told {
    logprobs: bool,
    usage: bool,
    /// The prompts, where they stand before their answers.
    echoed: Vec<Prompt>,
    /// Answers to each prompt.
    each: usize,
    prompt_tokens: usize,
}

fn respond(state: AppState, head: Head, language: std::sync::Arc<Language>, events: Vec<Events>, told: Told) -> Response {
    let Told { logprobs, usage: with_usage, echoed, each, prompt_tokens } = told;
    let mut left = events.len();
    let mut all = SelectAll::new();
    for (index, events) in events.into_iter().enumerate() {
        all.push(UnboundedReceiverStream::new(events).map(move |event| (index, event)).boxed());
    }
    let stream = async_stream::stream! {
        let mut usages: Vec<Usage> = Vec::new();
        let mut lists: Vec<Lists> = (0..left).map(|index| Lists::after(echoed.get(index / each), &language)).collect();
        let none = || with_usage.then_some(None);
        while left > 0 {
            let next = tokio::select! {
                next = all.next() => next,
                () = state.last_words.cancelled() => None,
            };
            match next {
                Some((_, Event::Failed(failure))) => {
                    yield sse_error(failed(failure));
                    return;
                }
                Some((index, Event::Prompt(tokens))) => {
                    if let Some(prompt) = echoed.get(index / each) {
                        let logprobs = logprobs.then(|| lists[index].of_prompt(prompt, &tokens));
                        let choice = CompletionChoice { index, text: prompt.text.clone(), logprobs, finish_reason: None };
                        yield data(&head.object(vec![choice], none()));
                    }
                }
                Some((index, Event::Token { text, info })) => {
                    if !text.is_empty() || logprobs {
                        let logprobs = info.map(|token| lists[index].with(CompletionLogprobs::default(), &token));
                        let choice = CompletionChoice { index, text, logprobs, finish_reason: None };
                        yield data(&head.object(vec![choice], none()));
                    }
                }
                Some((index, Event::Done { text, finish, usage })) => {
                    left -= 1;
                    usages.push(usage);
                    let choice = CompletionChoice { index, text, logprobs: None, finish_reason: Some(reason(Some(finish), false)) };
                    yield data(&head.object(vec![choice], none()));
                }
                None => {
                    yield sse_error(ApiError::shutting_down());
                    return;
                }
            }
        }
        if with_usage {
            let completion_tokens = usages.iter().map(|u| u.completion_tokens).sum();
            let total_tokens = prompt_tokens + completion_tokens;
            let usage = UsageObject { prompt_tokens, completion_tokens, total_tokens, ..UsageObject::default() };
            yield data(&head.object(Vec::new(), Some(Some(usage))));
        }
        yield SseEvent::default().data("[DONE]");
    };
    sse::respond(stream.map(Ok::<_, Infallible>))
}
