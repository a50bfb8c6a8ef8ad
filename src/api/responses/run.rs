//! A response on its way: events of the engine become output, and the output becomes an answer, a stream, or a kept row.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use axum::response::Response;
use axum::response::sse::Event as SseEvent;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tunesmith_chat::ToolStream;
use tunesmith_ml::infer::{Event, Finish, Usage};
use tunesmith_store::ResponseRow;

use super::items::new_id;
use super::output::Output;
use super::request::ResponseRequest;
use crate::api::error::ApiError;
use crate::api::sse;
use crate::api::state::AppState;
use crate::api::text::chat::Prepared;
use crate::api::text::run::{next, now};
use crate::api::text::tokens::ChatToken;
use crate::serve::Events;

/// Responses that are made in the background, by their ids.
#[derive(Debug, Default)]
pub struct Background(Mutex<HashMap<String, CancellationToken>>);

impl Background {
    fn enter(&self, id: &str) -> CancellationToken {
        let token = CancellationToken::new();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), token.clone());
        token
    }

    /// Stops one, if it is still made.
    pub fn stop(&self, id: &str) {
        if let Some(token) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id) {
            token.cancel();
        }
    }
}

/// A response on its way.
pub struct Run {
    state: AppState,
    id: String,
    /// The response as it is told, but for its output.
    body: Value,
    input: Vec<Value>,
    previous: Option<String>,
    kept: bool,
    prepared: Prepared,
    events: Events,
    output: Output,
}

impl Run {
    /// A response whose answer arrives by `events`.
    pub fn new(
        state: AppState,
        model: String,
        request: &ResponseRequest,
        input: Vec<Value>,
        prepared: Prepared,
        events: Events,
        logprobs: bool,
    ) -> Self {
        let id = new_id("resp");
        let mut body = request.told();
        body["id"] = json!(id);
        body["object"] = json!("response");
        body["created_at"] = json!(now());
        body["model"] = json!(model);
        body["status"] = json!("in_progress");
        body["output"] = json!([]);
        for absent in ["usage", "error", "incomplete_details", "completed_at"] {
            body[absent] = Value::Null;
        }
        let output = Output::new(prepared.tools.map(ToolStream::new), logprobs);
        let (previous, kept) = (request.previous_response_id.clone(), request.store.unwrap_or(true));
        Self { state, id, body, input, previous, kept, prepared, events, output }
    }

    /// Takes an event of the engine in; true once the answer is whole.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Prompt(_) | Event::Failed(_) => false,
            Event::Token { text, info } => {
                let tokenizer = self.prepared.language.model.tokenizer();
                let token = info.map(|info| ChatToken::of(&info, tokenizer));
                self.output.push(&text, token);
                false
            }
            Event::Done { text, finish, usage } => {
                let status = if finish == Finish::Length { "incomplete" } else { "completed" };
                self.output.finish(&text, status);
                self.body["status"] = json!(status);
                self.body["output"] = json!(self.output.items());
                self.body["usage"] = told_usage(usage);
                self.body["completed_at"] = json!(now());
                if finish == Finish::Length {
                    self.body["incomplete_details"] = json!({"reason": "max_output_tokens"});
                }
                true
            }
        }
    }

    async fn step(&mut self) -> Result<bool, ApiError> {
        let event = next(&mut self.events, &self.state).await?;
        Ok(self.take(event))
    }

    fn row(&self, unfinished: bool) -> ResponseRow {
        ResponseRow {
            id: self.id.clone(),
            previous_id: self.previous.clone(),
            unfinished,
            input: json!(self.input),
            body: self.body.clone(),
        }
    }

    async fn keep(&self) -> Result<(), ApiError> {
        match self.kept {
            true => Ok(self.state.store.insert_response(&self.row(false)).await?),
            false => Ok(()),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.body["status"] = json!("failed");
        self.body["output"] = json!(self.output.items());
        self.body["error"] = json!({"code": "server_error", "message": error.to_string()});
    }

    /// The whole answer.
    pub async fn whole(mut self) -> Result<Value, ApiError> {
        while !self.step().await? {}
        self.keep().await?;
        Ok(self.body)
    }

    /// The answer's beginning; the rest is made while nobody waits.
    pub async fn in_background(mut self) -> Result<Value, ApiError> {
        self.state.store.insert_response(&self.row(true)).await?;
        let told = self.body.clone();
        let stop = self.state.background.enter(&self.id);
        tokio::spawn(async move {
            loop {
                let step = tokio::select! {
                    // Dropping the receiver frees the place in the engine.
                    () = stop.cancelled() => return,
                    step = self.step() => step,
                };
                match step {
                    Ok(false) => continue,
                    Ok(true) => break,
                    Err(error) => {
                        self.fail(&error);
                        break;
                    }
                }
            }
            if let Err(error) = self.state.store.finish_response(&self.id, &self.body).await {
                tracing::error!(response = self.id, %error, "a response could not be kept");
            }
            self.state.background.stop(&self.id);
        });
        Ok(told)
    }

    /// The answer as a stream of typed events.
    pub fn stream(mut self) -> Response {
        let stream = async_stream::stream! {
            let told = json!({"response": self.body});
            self.output.event("response.created", told.clone());
            self.output.event("response.in_progress", told);
            loop {
                for event in self.output.take_events() {
                    yield sse_event(&event);
                }
                match self.step().await {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(error) => {
                        self.fail(&error);
                        break;
                    }
                }
            }
            if self.body["status"] != json!("failed") && let Err(error) = self.keep().await {
                self.fail(&error);
            }
            let last = format!("response.{}", self.body["status"].as_str().unwrap_or("failed"));
            self.output.event(&last, json!({"response": self.body}));
            for event in self.output.take_events() {
                yield sse_event(&event);
            }
        };
        use futures::StreamExt;
        sse::respond(stream.map(Ok::<_, Infallible>))
    }
}

fn sse_event(event: &Value) -> SseEvent {
    SseEvent::default().event(event["type"].as_str().unwrap_or_default()).data(event.to_string())
}

fn told_usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
