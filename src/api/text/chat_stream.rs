//! A chat's answers as an event stream, piece by piece as they come.

use std::convert::Infallible;

use axum::response::Response;
use axum::response::sse::Event as SseEvent;
use futures::stream::{SelectAll, StreamExt};
use serde::Serialize;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tunesmith_chat::{StreamPiece, ToolStream};
use tunesmith_ml::infer::{Event, Finish, TokenInfo, Usage};

use super::chat::Prepared;
use super::chat_object::{ChatChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta, UsageObject, reason};
use super::run::{failed, now};
use super::tokens::{ChatLogprobs, ChatToken};
use super::tools::new_call_id;
use crate::api::error::ApiError;
use crate::api::sse;
use crate::api::state::AppState;
use crate::serve::Events;

/// What a stream knows before its first piece.
pub struct Start {
    /// The server.
    pub state: AppState,
    /// The answer's id.
    pub id: String,
    /// The model's name.
    pub model: String,
    /// The conversation.
    pub prepared: Prepared,
    /// Whether log-probabilities go with the text.
    pub logprobs: bool,
    /// Whether the last piece tells the tokens.
    pub usage: bool,
}

/// One answer on its way.
struct OnItsWay {
    tools: Option<ToolStream>,
    calls: usize,
    /// Log-probabilities of tokens whose text is not certain yet.
    pending: Vec<ChatToken>,
}

struct Chunks {
    start: Start,
    created: i64,
    answers: Vec<OnItsWay>,
    usages: Vec<Usage>,
}

/// A message of a stream as JSON.
pub fn data(value: &impl Serialize) -> SseEvent {
    // Our objects have string keys only, so they are always JSON.
    SseEvent::default().data(serde_json::to_string(value).unwrap_or_default())
}

/// The stream of `events`, one receiver for each answer.
pub fn respond(start: Start, events: Vec<Events>) -> Response {
    let answers = events.iter().map(|_| OnItsWay { tools: start.prepared.tools.map(ToolStream::new), calls: 0, pending: Vec::new() });
    let mut chunks = Chunks { answers: answers.collect(), created: now(), usages: Vec::new(), start };
    let mut all = SelectAll::new();
    for (index, events) in events.into_iter().enumerate() {
        all.push(UnboundedReceiverStream::new(events).map(move |event| (index, event)).boxed());
    }
    let stream = async_stream::stream! {
        for index in 0..chunks.answers.len() {
            yield chunks.first(index);
        }
        let mut left = chunks.answers.len();
        while left > 0 {
            let next = tokio::select! {
                next = all.next() => next,
                () = chunks.start.state.last_words.cancelled() => None,
            };
            match next {
                Some((_, Event::Failed(failure))) => {
                    yield sse_error(failed(failure));
                    return;
                }
                Some((index, event)) => {
                    left -= usize::from(matches!(event, Event::Done { .. }));
                    for piece in chunks.take(index, event) {
                        yield piece;
                    }
                }
                None => {
                    yield sse_error(ApiError::shutting_down());
                    return;
                }
            }
        }
        if chunks.start.usage {
            yield chunks.last();
        }
        yield SseEvent::default().data("[DONE]");
    };
    sse::respond(stream.map(Ok::<_, Infallible>))
}

/// An error in the middle of a stream.
pub fn sse_error(error: ApiError) -> SseEvent {
    data(&error.body())
}

impl Chunks {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<UsageObject>) -> SseEvent {
        data(&ChatChunk {
            id: self.start.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.start.model.clone(),
            choices,
            usage: self.start.usage.then_some(usage),
        })
    }

    fn first(&self, index: usize) -> SseEvent {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None)
    }

    fn last(&self) -> SseEvent {
        self.chunk(Vec::new(), Some(UsageObject::of(self.usages.iter().copied())))
    }

    fn take(&mut self, index: usize, event: Event) -> Vec<SseEvent> {
        match event {
            Event::Prompt(_) | Event::Failed(_) => Vec::new(),
            Event::Token { text, info } => {
                self.remember(index, info);
                self.pieces(index, &text, false)
            }
            Event::Done { text, finish, usage } => {
                self.usages.push(usage);
                let mut out = self.pieces(index, &text, true);
                out.extend(self.piece(index, String::new(), Vec::new(), Some(finish)));
                out
            }
        }
    }

    fn remember(&mut self, index: usize, info: Option<TokenInfo>) {
        let tokenizer = self.start.prepared.language.model.tokenizer();
        self.answers[index].pending.extend(info.map(|info| ChatToken::of(&info, tokenizer)));
    }

    /// What is certain of an answer by now, text and calls in their order.
    fn pieces(&mut self, index: usize, text: &str, end: bool) -> Vec<SseEvent> {
        let Some(tools) = &mut self.answers[index].tools else { return self.piece(index, text.to_owned(), Vec::new(), None) };
        let mut all = tools.push(text);
        if end {
            all.extend(tools.finish());
        }
        let mut out = Vec::new();
        for piece in all {
            let (text, call) = match piece {
                StreamPiece::Text(text) => (text, None),
                StreamPiece::Call { id, name } => (String::new(), Some(self.beginning(index, id, name))),
                StreamPiece::Arguments(arguments) => {
                    let place = self.answers[index].calls.saturating_sub(1);
                    let function = FunctionDelta { name: None, arguments };
                    (String::new(), Some(ToolCallDelta { index: place, id: None, kind: None, function }))
                }
            };
            out.extend(self.piece(index, text, call.into_iter().collect(), None));
        }
        out
    }

    fn beginning(&mut self, index: usize, id: Option<String>, name: String) -> ToolCallDelta {
        let answer = &mut self.answers[index];
        answer.calls += 1;
        let function = FunctionDelta { name: Some(name), arguments: String::new() };
        ToolCallDelta { index: answer.calls - 1, id: Some(id.unwrap_or_else(new_call_id)), kind: Some("function"), function }
    }

    fn piece(&mut self, index: usize, text: String, tool_calls: Vec<ToolCallDelta>, finish: Option<Finish>) -> Vec<SseEvent> {
        let answer = &mut self.answers[index];
        let flush = !text.is_empty() || finish.is_some();
        let content = if flush { std::mem::take(&mut answer.pending) } else { Vec::new() };
        let logprobs = (self.start.logprobs && !content.is_empty()).then_some(ChatLogprobs { content, refusal: () });
        if text.is_empty() && tool_calls.is_empty() && finish.is_none() {
            return Vec::new();
        }
        let finish_reason = finish.map(|f| reason(Some(f), answer.calls > 0));
        let delta = Delta { role: None, content: (!text.is_empty()).then_some(text), tool_calls };
        vec![self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason }], None)]
    }
}
