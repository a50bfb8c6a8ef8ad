//! One answer in the making: its tokens, its sampler, and the sink that its text goes to.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::constraint::Constraint;
use super::decoder::{ServedAdapter, ServedDecoder};
use super::page_pool::{Owner, PageTable};
use super::sampling::{Sampler, Sampling, log_probabilities};
use super::text_stream::{Piece, TextStream};
use crate::nn::Adapter;

/// What is asked of a model.
pub struct Request {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// The adapter, or the base model alone.
    pub adapter: Option<Arc<ServedAdapter>>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer; 0 answers with the prompt's log-probabilities alone.
    pub max_tokens: usize,
    /// Texts that end the answer and do not stand in it.
    pub stop: Vec<String>,
    /// Tokens that end the answer.
    pub stop_tokens: BTreeSet<u32>,
    /// How many alternatives to list at each token; absent: no log-probabilities.
    pub logprobs: Option<usize>,
    /// The same for tokens of the prompt.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Whether the text shows special tokens.
    pub show_special: bool,
    /// A grammar that the answer keeps to.
    pub constraint: Option<Constraint>,
    /// Where the answer goes.
    pub sink: Box<dyn Sink>,
}

/// Which of a prompt's tokens are told with their log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// Alternatives to list at each token.
    pub top: usize,
    /// The first token that is told; what stands before it may come out of the cache.
    pub from: usize,
}

/// The receiver of an answer.
pub trait Sink: Send {
    /// Takes what is new. Must not block.
    fn send(&mut self, event: Event);
    /// Whether nobody waits for the answer any more.
    fn is_closed(&self) -> bool;
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenInfo {
    /// The token.
    pub id: u32,
    /// Its log-probability; none for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its place.
    pub top: Vec<(u32, f32)>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt is computed; with its log-probabilities if they were asked for.
    Prompt(Vec<TokenInfo>),
    /// One more token.
    Token {
        /// Text that is certain by now; may be empty.
        text: String,
        /// The token, where log-probabilities were asked for.
        info: Option<TokenInfo>,
    },
    /// The answer has ended.
    Done {
        /// Text that was held back.
        text: String,
        /// Why.
        finish: Finish,
        /// Counts.
        usage: Usage,
    },
    /// The answer cannot be given.
    Failed(Failure),
}

/// Why an answer cannot be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub why: String,
    /// Whether the format that the request asked for turned out to be too much.
    pub by_format: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By an end token, a stop string or a finished grammar.
    Stop,
    /// By its length.
    Length,
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose keys and values were there already.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
}

/// A request in work.
pub struct Sequence {
    /// Prompt and answer.
    pub tokens: Vec<u32>,
    /// How many of them are in the cache.
    pub computed: usize,
    /// Their pages.
    pub table: PageTable,
    prompt: usize,
    cached: usize,
    request: Request,
    sampler: Sampler,
    stream: TextStream,
    prompt_infos: Vec<TokenInfo>,
    prompt_told: bool,
    finished: bool,
}

impl Sequence {
    /// A request before its first step; prompt and answer together have at most `room` tokens.
    pub fn new(mut request: Request, room: usize) -> Self {
        request.max_tokens = request.max_tokens.min(room.saturating_sub(request.prompt.len()));
        let tokens = request.prompt.clone();
        Self {
            prompt: tokens.len(),
            computed: 0,
            table: PageTable::default(),
            cached: 0,
            sampler: Sampler::new(request.sampling.clone(), &tokens),
            stream: TextStream::new(request.stop.clone()),
            prompt_infos: Vec::new(),
            prompt_told: false,
            finished: false,
            tokens,
            request,
        }
    }

    /// The tokens whose rows it can do without, so that they may be shared.
    pub fn shareable(&self) -> &[u32] {
        &self.tokens[..self.first_told().unwrap_or(self.tokens.len())]
    }

    /// The first token of the prompt whose log-probability is still wanted; the row before it gives that.
    fn first_told(&self) -> Option<usize> {
        self.request.prompt_logprobs.filter(|_| !self.prompt_told).map(|p| p.from.clamp(1, self.prompt))
    }

    /// Lets go of what was computed: it begins again.
    pub fn give_way(&mut self) {
        self.computed = 0;
        self.prompt_infos.clear();
    }

    /// Remembers how much of the prompt was shared when it first joined.
    pub fn note_shared(&mut self) {
        if self.tokens.len() == self.prompt {
            self.cached = self.computed;
        }
    }

    /// What computes its keys and values.
    pub fn owner(&self) -> Owner {
        self.request.adapter.as_ref().map_or(0, |a| a.owner)
    }

    /// Its adapter.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.request.adapter.as_ref().map(|a| &a.adapter)
    }

    /// Whether nobody waits for it.
    pub fn is_abandoned(&self) -> bool {
        self.request.sink.is_closed()
    }

    /// Whether its last event is sent.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Ends it with an error.
    pub fn fail(mut self, why: &str) {
        self.request.sink.send(Event::Failed(Failure { why: why.to_owned(), by_format: false }));
    }

    /// Of the positions `start..end`, those whose logits are needed.
    pub fn rows_with_logits(&self, start: usize, end: usize) -> Range<usize> {
        // The last row says what comes next, which nobody asks where nothing is generated.
        let generates = self.request.max_tokens > 0;
        let last = if generates { end } else { end.min(self.prompt - 1) };
        match self.first_told() {
            Some(first) if end >= first => start.max(first - 1).min(last)..last,
            None if end == self.tokens.len() && generates => end - 1..end,
            _ => end..end,
        }
    }

    /// Takes the logits of [`Self::rows_with_logits`], which began at position `first`. Chooses the next token if the last row is
    /// among them.
    pub fn take_logits(&mut self, logits: &mut [Vec<f32>], first: usize, model: &ServedDecoder) {
        if let Some(PromptLogprobs { top, from }) = self.request.prompt_logprobs
            && !self.prompt_told
        {
            if self.prompt_infos.is_empty() && from == 0 {
                self.prompt_infos.push(TokenInfo { id: self.tokens[0], logprob: None, top: Vec::new() });
            }
            for (i, row) in logits.iter().enumerate() {
                let Some(&id) = self.tokens.get(first + i + 1).filter(|_| first + i + 1 < self.prompt) else { break };
                let (logprob, top) = log_probabilities(row, id, top);
                self.prompt_infos.push(TokenInfo { id, logprob: Some(logprob), top });
            }
        }
        if self.computed < self.tokens.len() {
            return;
        }
        if !self.prompt_told {
            self.prompt_told = true;
            self.request.sink.send(Event::Prompt(std::mem::take(&mut self.prompt_infos)));
        }
        if self.request.max_tokens == 0 {
            return self.end(String::new(), Finish::Length);
        }
        if let Some(row) = logits.last_mut() {
            self.choose(row, model);
        }
    }

    fn choose(&mut self, row: &mut [f32], model: &ServedDecoder) {
        let raw = self.request.logprobs.map(|top| (row.to_vec(), top));
        let id = match &mut self.request.constraint {
            None => self.sampler.next(row, None),
            Some(constraint) => match constraint.allowed() {
                Ok(allowed) => {
                    // The grammar knows one of the tokens that end an answer; where it may end, the others are as good.
                    let ends = &self.request.stop_tokens;
                    self.sampler.next(row, Some(&|id| allowed.is_allowed(id) || allowed.may_end && ends.contains(&id)))
                }
                Err(why) => return self.break_off(&why),
            },
        };
        let info = raw.map(|(row, top)| {
            let (logprob, top) = log_probabilities(&row, id, top);
            TokenInfo { id, logprob: Some(logprob), top }
        });
        self.tokens.push(id);
        if self.request.stop_tokens.contains(&id) {
            let text = self.rest();
            return self.end(text, Finish::Stop);
        }
        let complete = match &mut self.request.constraint {
            None => false,
            Some(constraint) => match constraint.accept(id) {
                Ok(complete) => complete,
                Err(why) => return self.break_off(&why),
            },
        };
        let (text, stopped) = match self.stream.push(model.bytes_of(id, self.request.show_special)) {
            Piece::Text(text) => (text, false),
            Piece::Stopped(text) => (text, true),
        };
        self.request.sink.send(Event::Token { text, info });
        if stopped {
            self.end(String::new(), Finish::Stop);
        } else if complete {
            let text = self.rest();
            self.end(text, Finish::Stop);
        } else if self.tokens.len() - self.prompt >= self.request.max_tokens {
            let text = self.rest();
            self.end(text, Finish::Length);
        }
    }

    /// Text that was held back.
    fn rest(&mut self) -> String {
        match std::mem::take(&mut self.stream).finish() {
            Piece::Text(text) | Piece::Stopped(text) => text,
        }
    }

    fn end(&mut self, text: String, finish: Finish) {
        let completion_tokens = self.tokens.len() - self.prompt;
        let usage = Usage { prompt_tokens: self.prompt, cached_tokens: self.cached, completion_tokens };
        self.request.sink.send(Event::Done { text, finish, usage });
        self.finished = true;
    }

    /// The format leads no further.
    fn break_off(&mut self, why: &str) {
        self.request.sink.send(Event::Failed(Failure { why: why.to_owned(), by_format: true }));
        self.finished = true;
    }
}
