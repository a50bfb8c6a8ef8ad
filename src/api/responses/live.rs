//! Responses that are being made, and who follows them.
//!
//! A follower walks the record at its own speed, so that a slow one costs nothing, and leaves when it wants: only a response that
//! is not in the background ends with its client.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use axum::response::sse::Event as SseEvent;
use futures::Stream;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::transcript::{Cursor, Transcript};
use crate::api::sse;

/// Events that a follower takes at a time.
const AT_A_TIME: usize = 64;

/// A response that is being made.
#[derive(Debug)]
pub struct Live {
    transcript: Mutex<Transcript>,
    changed: watch::Sender<()>,
    /// Asks for its end.
    pub stop: CancellationToken,
}

impl Live {
    /// A response of which nothing was said yet.
    pub fn new(transcript: Transcript) -> Arc<Self> {
        Arc::new(Self { transcript: Mutex::new(transcript), changed: watch::Sender::new(()), stop: CancellationToken::new() })
    }

    /// Reads or changes the record.
    pub fn with<T>(&self, work: impl FnOnce(&mut Transcript) -> T) -> T {
        let done = work(&mut self.transcript.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        done
    }

    /// The events that are there from the cursor on, some at a time.
    pub fn events(&self, cursor: &mut Cursor) -> Vec<Value> {
        let transcript = self.transcript.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| cursor.next(&transcript)).take(AT_A_TIME).collect()
    }

    /// Waits for the end.
    pub async fn ended(&self) {
        let mut changed = self.changed.subscribe();
        // The sender is in `self`, so waiting cannot fail.
        while !self.transcript.lock().unwrap_or_else(PoisonError::into_inner).has_ended() && changed.changed().await.is_ok() {}
    }
}

/// The events of a response after the one with the number `after`, until its end.
pub fn follow(live: Arc<Live>, after: Option<u64>) -> Response {
    respond(async_stream::stream! {
        let mut cursor = Cursor::default();
        let mut changed = live.changed.subscribe();
        while !cursor.has_ended() {
            changed.mark_unchanged();
            let events = live.events(&mut cursor);
            if events.is_empty() && changed.changed().await.is_err() {
                break;
            }
            for event in events.into_iter().filter(|e| after.is_none_or(|after| e["sequence_number"].as_u64() > Some(after))) {
                yield event;
            }
        }
    })
}

/// Typed events as an answer.
pub fn respond(events: impl Stream<Item = Value> + Send + 'static) -> Response {
    use futures::StreamExt;
    let told = |event: Value| SseEvent::default().event(event["type"].as_str().unwrap_or_default()).data(event.to_string());
    sse::respond(events.map(move |event| Ok::<_, Infallible>(told(event))))
}

/// Responses that are made in the background, by their ids.
#[derive(Debug, Default)]
pub struct Background(Mutex<HashMap<String, Arc<Live>>>);

impl Background {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Live>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response of that id, if it is being made.
    pub fn find(&self, id: &str) -> Option<Arc<Live>> {
        self.map().get(id).cloned()
    }

    /// Asks a response to end, if it is being made.
    pub fn stop(&self, id: &str) -> Option<Arc<Live>> {
        self.find(id).inspect(|live| live.stop.cancel())
    }
}

/// A response's place in [`Background`]; given back when it is dropped.
pub struct Place {
    background: Arc<Background>,
    id: String,
    live: Arc<Live>,
}

impl Place {
    /// Enters a response.
    pub fn take(background: Arc<Background>, id: &str, live: Arc<Live>) -> Self {
        background.map().insert(id.to_owned(), live.clone());
        Self { background, id: id.to_owned(), live }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.background.map().remove(&self.id);
        // Only where its maker broke off: nobody may wait for an end that never comes.
        self.live.with(|transcript| {
            if !transcript.has_ended() {
                let mut body = transcript.beginning().clone();
                body["status"] = serde_json::json!("failed");
                transcript.end(body);
            }
        });
    }
}
