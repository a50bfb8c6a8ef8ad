//! A response on its way: events of the engine become its record, and the record becomes an answer, a stream, or a kept row.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};
use tunesmith_chat::ToolStream;
use tunesmith_ml::infer::{Event, Finish, Usage};
use tunesmith_store::ResponseRow;

use super::items::new_id;
use super::live::{Live, Place, respond};
use super::output::Output;
use super::request::ResponseRequest;
use super::transcript::{Cursor, Transcript};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::api::text::chat::Prepared;
use crate::api::text::run::{next, now};
use crate::api::text::tokens::ChatToken;
use crate::serve::Events;

/// A response on its way.
pub struct Run {
    state: AppState,
    id: String,
    /// The response as it is told.
    body: Value,
    input: Vec<Value>,
    previous: Option<String>,
    kept: bool,
    prepared: Prepared,
    events: Events,
    output: Output,
    live: Arc<Live>,
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
        let live = Live::new(Transcript::new(body.clone()));
        let (previous, kept) = (request.previous_response_id.clone(), request.store.unwrap_or(true));
        Self { state, id, body, input, previous, kept, prepared, events, output, live }
    }

    /// Takes an event of the engine in; true once the answer is whole.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Prompt(_) | Event::Failed(_) => false,
            Event::Token { text, info } => {
                let tokenizer = self.prepared.language.model.tokenizer();
                let token = info.map(|info| ChatToken::of(&info, tokenizer));
                self.live.with(|transcript| self.output.push(transcript, &text, token));
                false
            }
            Event::Done { text, finish, usage } => {
                let status = if finish == Finish::Length { "incomplete" } else { "completed" };
                self.live.with(|transcript| self.output.finish(transcript, &text, status));
                self.close(status);
                self.body["usage"] = told_usage(usage);
                self.body["completed_at"] = json!(now());
                if finish == Finish::Length {
                    self.body["incomplete_details"] = json!({"reason": "max_output_tokens"});
                }
                true
            }
        }
    }

    /// The response ends with what there is.
    fn close(&mut self, status: &str) {
        self.body["status"] = json!(status);
        self.body["output"] = self.live.with(|transcript| {
            transcript.close("incomplete");
            transcript.output()
        });
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
            pieces: self.live.with(|transcript| transcript.pieces()),
        }
    }

    async fn keep(&self) -> Result<(), ApiError> {
        match self.kept {
            true => Ok(self.state.store.insert_response(&self.row(false)).await?),
            false => Ok(()),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.close("failed");
        self.body["error"] = json!({"code": "server_error", "message": error.to_string()});
    }

    /// The whole answer.
    pub async fn whole(mut self) -> Result<Value, ApiError> {
        while !self.step().await? {}
        self.keep().await?;
        Ok(self.body)
    }

    /// The answer's beginning, and the answer as it goes on while nobody need wait.
    pub async fn in_background(mut self) -> Result<(Value, Arc<Live>), ApiError> {
        self.state.store.insert_response(&self.row(true)).await?;
        let (told, live) = (self.body.clone(), self.live.clone());
        let place = Place::take(self.state.background.clone(), &self.id, live.clone());
        tokio::spawn(async move {
            loop {
                let step = tokio::select! {
                    () = self.live.stop.cancelled() => {
                        self.close("cancelled");
                        break;
                    }
                    step = next(&mut self.events, &self.state) => step,
                };
                match step.map(|event| self.take(event)) {
                    Ok(false) => continue,
                    Ok(true) => break,
                    Err(error) => {
                        self.fail(&error);
                        break;
                    }
                }
            }
            // Frees the place in the engine, if the answer was cut off.
            self.events.close();
            let row = self.row(false);
            if let Err(error) = self.state.store.finish_response(&row.id, &row.body, &row.pieces).await {
                tracing::error!(response = self.id, %error, "a response could not be kept");
                self.fail(&error.into());
            }
            self.live.with(|transcript| transcript.end(self.body));
            drop(place);
        });
        Ok((told, live))
    }

    /// The answer as a stream of typed events; it ends when its client leaves.
    pub fn stream(mut self) -> Response {
        respond(async_stream::stream! {
            let mut cursor = Cursor::default();
            let mut going = true;
            while !cursor.has_ended() {
                for event in self.live.events(&mut cursor) {
                    yield event;
                }
                match if going { self.step().await } else { Ok(false) } {
                    Ok(false) => continue,
                    Ok(true) => {}
                    Err(error) => self.fail(&error),
                }
                going = false;
                if self.body["status"] != json!("failed") && let Err(error) = self.keep().await {
                    self.fail(&error);
                }
                let body = self.body.clone();
                self.live.with(|transcript| transcript.end(body));
            }
        })
    }
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
