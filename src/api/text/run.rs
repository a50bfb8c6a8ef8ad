//! From a model's name and a prompt to answers: the model is loaded, requests go to its engine, events come back.

use std::sync::Arc;

use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{Constraint, Event, Failure, Finish, PromptLogprobs, Request, TokenInfo, Usage};

use super::knobs::{AnswerFormat, Settings};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::serve::{Ask, Events, Language, Loaded};

/// What is wanted of answers beside their text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Alternatives to list at each token; absent: no log-probabilities.
    pub logprobs: Option<usize>,
    /// The same for the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Whether the text shows special tokens.
    pub show_special: bool,
}

/// Refuses a prompt that leaves no room for an answer.
pub fn check_length(language: &Language, tokens: usize, field: &str) -> Result<(), ApiError> {
    check_room(language, tokens, 1, field)
}

/// Refuses a prompt that leaves no room for an answer of `least` tokens; 0 where it is only read.
pub fn check_room(language: &Language, tokens: usize, least: usize, field: &str) -> Result<(), ApiError> {
    let (most, context) = (language.generator.max_length(), language.model.max_length());
    let limit = match most >= context {
        true => format!("the model's context is {context} tokens"),
        false => format!("the server's cache has room for {most} tokens"),
    };
    let remedy = if most >= context { "shorten it" } else { "shorten it, or raise `budgets.kv_cache_bytes`" };
    let message = match tokens {
        0 => return Err(ApiError::field(field, format!("`{field}` has no token; write something."))),
        n if n > most => format!("`{field}` has {n} tokens, but {limit}; {remedy}."),
        n if n + least > most => format!("`{field}` has {n} tokens, and {limit}: an answer needs room for at least one more; {remedy}."),
        _ => return Ok(()),
    };
    Err(ApiError::new(axum::http::StatusCode::BAD_REQUEST, "context_length_exceeded", message).with_param(field))
}

/// Queues `settings.n` answers to each prompt, prompt by prompt. What they keep to is compiled once.
pub async fn submit(language: &Arc<Language>, prompts: &[&[u32]], settings: &Settings, wanted: Wanted) -> Result<Vec<Events>, ApiError> {
    let words = language.model.config().vocab_size;
    if let Some((id, _)) = settings.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= words) {
        let message =
            format!("`logit_bias` names token {id}, but the model's vocabulary has {words} tokens; `/tokenize` tells the ids of a text.");
        return Err(ApiError::field("logit_bias", message));
    }
    let constraint = constraint(language, settings.format.clone()).await?;
    let mut events = Vec::with_capacity(prompts.len() * settings.n);
    for prompt in prompts {
        let asks = (0..settings.n).map(|i| ask(language, prompt, settings, wanted, constraint.clone(), i)).collect();
        events.extend(language.generator.submit(asks).map_err(|full| ApiError::queue_full(full.to_string(), 1))?);
    }
    Ok(events)
}

/// The request for answer `i` to a prompt.
fn ask(language: &Language, prompt: &[u32], settings: &Settings, wanted: Wanted, constraint: Option<Constraint>, i: usize) -> Ask {
    let mut sampling = settings.sampling.clone();
    // Answers beside each other are drawn apart, and the first one as if it were alone.
    sampling.seed = sampling.seed.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (prompt, adapter) = (prompt.to_vec(), language.adapter.clone());
    let (stop, stop_tokens) = (settings.stop.clone(), language.model.end_tokens().clone());
    let max_tokens = settings.max_tokens.unwrap_or(usize::MAX);
    Box::new(move |sink| Request {
        prompt,
        adapter,
        sampling,
        max_tokens,
        stop,
        stop_tokens,
        logprobs: wanted.logprobs,
        prompt_logprobs: wanted.prompt_logprobs.map(|top| PromptLogprobs { top, from: 0 }),
        show_special: wanted.show_special,
        constraint,
        sink,
    })
}

/// Compiles what answers keep to, off the async threads: a large schema takes its time.
async fn constraint(language: &Arc<Language>, format: Option<AnswerFormat>) -> Result<Option<Constraint>, ApiError> {
    let Some(AnswerFormat { grammar, field }) = format else { return Ok(None) };
    let model = language.model.clone();
    let compile = move || {
        model.constraint(&grammar).map(Some).map_err(|e| match e {
            MlError::Setting { message, .. } => ApiError::field(field, format!("`{field}`: {message}.")),
            other => ApiError::from(&other),
        })
    };
    off_thread(compile).await
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The prompt's tokens, where their log-probabilities were asked for.
    pub prompt: Vec<TokenInfo>,
    /// The answer's tokens, where theirs were.
    pub tokens: Vec<TokenInfo>,
    /// Why it ended.
    pub finish: Option<Finish>,
    /// Counts.
    pub usage: Usage,
}

/// The next event of an answer, or the error that it ends with.
pub async fn next(events: &mut Events, state: &AppState) -> Result<Event, ApiError> {
    let event = tokio::select! {
        event = events.recv() => event,
        () = state.last_words.cancelled() => return Err(ApiError::shutting_down()),
    };
    match event {
        Some(Event::Failed(failure)) => Err(failed(failure)),
        Some(event) => Ok(event),
        None => Err(ApiError::shutting_down()),
    }
}

/// An answer that cannot be given, as an error.
pub fn failed(failure: Failure) -> ApiError {
    match failure.by_format {
        true => ApiError::bad_request(format!("The answer cannot keep to the format that was asked for: {}.", failure.why)),
        false => ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "generation_failed", failure.why),
    }
}

/// Waits for an answer's end.
pub async fn collect(mut events: Events, state: &AppState) -> Result<Answer, ApiError> {
    let mut answer = Answer::default();
    loop {
        match next(&mut events, state).await? {
            Event::Prompt(tokens) => answer.prompt = tokens,
            Event::Token { text, info } => {
                answer.text.push_str(&text);
                answer.tokens.extend(info);
            }
            Event::Done { text, finish, usage } => {
                answer.text.push_str(&text);
                answer.finish = Some(finish);
                answer.usage = usage;
                return Ok(answer);
            }
            Event::Failed(_) => {}
        }
    }
}

/// Runs blocking work, such as rendering and tokenising, off the async threads.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}

/// The language model of that name.
pub async fn language(state: &AppState, name: &str) -> Result<Arc<Language>, ApiError> {
    language_of(&*state.registry.get(name).await?)
}

/// The language model that this one is.
pub fn language_of(loaded: &Loaded) -> Result<Arc<Language>, ApiError> {
    Ok(Arc::new(loaded.language()?.clone()))
}

/// Seconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
