//! How likely a model finds given endings of a prompt: what choices between labels are made by.

use std::sync::Arc;

use tunesmith_ml::infer::{PromptLogprobs, Request, Sampling};

use super::run::{check_room, collect, off_thread};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::serve::{Ask, Language};

/// Endings that are queued at the same time.
const SIDE_BY_SIDE: usize = 32;

/// A prompt and the endings that are compared.
#[derive(Debug, Clone)]
pub struct Endings {
    /// What stands before all of them.
    pub prompt: String,
    /// The endings.
    pub texts: Vec<String>,
    /// Whether the prompt was rendered by a template, so that the tokenizer adds nothing.
    pub rendered: bool,
}

/// What a model found.
#[derive(Debug, Clone, Default)]
pub struct Likelihoods {
    /// The logarithm of each ending's probability.
    pub logs: Vec<f64>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that were in the cache.
    pub cached_tokens: usize,
    /// Tokens of the endings.
    pub ending_tokens: usize,
}

/// Refuses a call at its beginning if the queue is full. Once let in, its endings wait for their turns, or a call with more of them
/// than the queue has room for would never be answered.
pub fn let_in(language: &Language) -> Result<(), ApiError> {
    language.generator.check_room().map_err(|full| ApiError::queue_full(full.to_string(), 1))
}

/// The endings' likelihoods, of a call that was [`let_in`]. The prompt is computed once: its pages are shared by all endings.
///
/// # Errors
/// If the prompt is too long, naming `field`, or the server ends.
pub async fn likelihoods(state: &AppState, language: &Arc<Language>, endings: Endings, field: &str) -> Result<Likelihoods, ApiError> {
    let model = language.clone();
    let (rows, from) = off_thread(move || tokens_of(&model, &endings)).await?;
    rows.iter().try_for_each(|row| check_room(language, row.len(), 0, field))?;
    let before = ask(state, language, std::slice::from_ref(&rows[0][..from].to_vec()), None).await?;
    let mut found = Likelihoods { prompt_tokens: from, cached_tokens: before[0].cached, ..Likelihoods::default() };
    for chunk in rows.chunks(SIDE_BY_SIDE.min(language.generator.most_at_once())) {
        for answer in ask(state, language, chunk, Some(from)).await? {
            found.logs.push(answer.log);
            found.ending_tokens += answer.tokens;
        }
    }
    Ok(found)
}

/// Each ending with its prompt as tokens, and how many tokens all of them begin with: an ending may change how the prompt's last
/// characters are cut into tokens.
fn tokens_of(language: &Language, endings: &Endings) -> Result<(Vec<Vec<u32>>, usize), ApiError> {
    let tokenizer = language.model.tokenizer();
    let encode = |text: &str| tokenizer.encode(text, !endings.rendered).map_err(ApiError::internal);
    let prompt = encode(&endings.prompt)?;
    let rows = endings.texts.iter().map(|e| encode(&format!("{}{e}", endings.prompt))).collect::<Result<Vec<_>, _>>()?;
    let common = |row: &Vec<u32>| row.iter().zip(&prompt).take_while(|(a, b)| a == b).count().min(row.len() - 1);
    let from = rows.iter().map(common).min().unwrap_or(0).max(1);
    Ok((rows, from))
}

struct Scored {
    log: f64,
    tokens: usize,
    cached: usize,
}

/// Queues texts of which nothing is generated, and sums the log-probabilities of the tokens from `from` on.
async fn ask(state: &AppState, language: &Language, rows: &[Vec<u32>], from: Option<usize>) -> Result<Vec<Scored>, ApiError> {
    let asks = rows.iter().map(|row| -> Ask {
        let (prompt, adapter) = (row.clone(), language.adapter.clone());
        Box::new(move |sink| Request {
            prompt,
            adapter,
            sampling: Sampling::default(),
            max_tokens: 0,
            stop: Vec::new(),
            stop_tokens: Default::default(),
            logprobs: None,
            prompt_logprobs: from.map(|from| PromptLogprobs { top: 0, from }),
            show_special: false,
            constraint: None,
            sink,
        })
    });
    let waiting = tokio::select! {
        waiting = language.generator.submit_in_turn(asks.collect()) => waiting,
        () = state.last_words.cancelled() => return Err(ApiError::shutting_down()),
    };
    let mut scored = Vec::with_capacity(waiting.len());
    for events in waiting {
        let answer = collect(events, state).await?;
        let log = answer.prompt.iter().filter_map(|t| t.logprob).map(f64::from).sum();
        scored.push(Scored { log, tokens: answer.prompt.len(), cached: answer.usage.cached_tokens });
    }
    Ok(scored)
}
