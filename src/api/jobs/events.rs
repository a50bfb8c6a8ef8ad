//! What happened to a job: pages newest first, or a live stream oldest first.
//!
//! The same path answers both, by the Accept header. A stream begins after `Last-Event-ID`, misses nothing, and closes
//! after the job's final event.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;
use tokio::sync::watch;
use tunesmith_store::{EventId, EventRow, JobId, Kind, StoreError};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::find;
use crate::api::error::{ApiError, ErrorBody, shorten};
use crate::api::extract::{ApiPath, ApiQuery};
use crate::api::paging::{List, PageParams};
use crate::api::sse;
use crate::api::state::AppState;

/// Rows that a stream reads at once.
const BATCH: u32 = 200;

/// The route of events.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list_events))
}

/// An event of a job.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventObject {
    /// The id.
    pub id: String,
    /// Always `fine_tuning.job.event`.
    pub object: &'static str,
    /// When, in seconds since 1970.
    pub created_at: i64,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// A sentence for people.
    pub message: String,
    /// `message` or `metrics`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An object for programs.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    /// Its place among all events.
    pub seq: i64,
}

impl EventObject {
    fn of(row: EventRow) -> Self {
        Self {
            id: row.id.to_string(),
            object: "fine_tuning.job.event",
            created_at: row.created_at / 1000,
            level: row.level.as_str().to_owned(),
            message: row.message,
            kind: row.kind,
            data: row.data,
            seq: row.seq,
        }
    }
}

/// A job's events
///
/// Pages, newest first. With `Accept: text/event-stream` a live stream instead, oldest first, which begins after
/// `Last-Event-ID` and closes after the job's final event.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/events", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "The job's id"), PageParams,
        ("Last-Event-ID" = Option<String>, Header, description = "For streams: the last event that was received")),
    responses(
        (status = 200, description = "A page of events, or a stream of them", content(
            (List<EventObject> = "application/json"),
            (String = "text/event-stream"))),
        (status = 404, description = "No such job", body = ErrorBody)))]
async fn list_events(
    State(state): State<AppState>,
    ApiPath(id): ApiPath<String>,
    ApiQuery(params): ApiQuery<PageParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&state, &id).await?.id;
    if sse::wants_stream(&headers) {
        let after = last_event(&state, job, &headers).await?;
        return Ok(sse::respond(Follow::new(state, job, after).into_stream()));
    }
    let page = state.store.list_events(job, &params.query()?).await.map_err(unknown_cursor("after"))?;
    Ok(Json(List::of(page, EventObject::of, |e| e.id.clone())).into_response())
}

/// A cursor that names no event of this job is the caller's mistake, not a missing resource.
fn unknown_cursor(param: &'static str) -> impl Fn(StoreError) -> ApiError {
    move |error| match error {
        StoreError::NotFound { kind: Kind::Event, id } => {
            ApiError::field(param, format!("`{param}` is {id}, which is no event of this job."))
        }
        other => other.into(),
    }
}

/// Where a stream begins: after the event that the client has seen, or at the beginning.
async fn last_event(state: &AppState, job: JobId, headers: &HeaderMap) -> Result<i64, ApiError> {
    const NAME: &str = "Last-Event-ID";
    let Some(value) = headers.get(NAME).filter(|v| !v.is_empty()) else { return Ok(0) };
    let text = value.to_str().unwrap_or_default();
    let id: EventId =
        text.parse().map_err(|_| ApiError::field(NAME, format!("`{NAME}` is `{}`, which is no event's id.", shorten(text))))?;
    state.store.event_seq(job, id).await.map_err(unknown_cursor(NAME))
}

/// A client that follows a job.
struct Follow {
    state: AppState,
    job: JobId,
    /// The place of the last event that was read.
    seq: i64,
    news: watch::Receiver<i64>,
    pending: VecDeque<EventRow>,
}

impl Follow {
    fn new(state: AppState, job: JobId, after: i64) -> Self {
        let news = state.tail.listen();
        Self { state, job, seq: after, news, pending: VecDeque::new() }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send {
        futures::stream::unfold(self, |mut follow| async move {
            let event = follow.next().await?;
            Some((Ok(event), follow))
        })
    }

    /// The next event; none when the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(row) = self.pending.pop_front() {
                return Some(to_sse(row));
            }
            match self.read().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    tracing::warn!(%error, job_id = %self.job, "an event stream ends early");
                    return None;
                }
            }
        }
    }

    /// Reads what is new, or waits for it. False when there will be nothing more.
    async fn read(&mut self) -> Result<bool, StoreError> {
        self.news.mark_unchanged();
        // The state is read before the events: the final event was written together with the final state.
        let ended = match self.state.store.job(self.job).await {
            Ok(job) => job.state.is_final(),
            Err(StoreError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let rows = self.state.store.job_events_since(self.job, self.seq, BATCH).await?;
        if let Some(last) = rows.last() {
            self.seq = last.seq;
            self.pending = rows.into();
            return Ok(true);
        }
        if ended {
            return Ok(false);
        }
        tokio::select! {
            () = self.state.shutdown.cancelled() => Ok(false),
            changed = self.news.changed() => Ok(changed.is_ok()),
        }
    }
}

fn to_sse(row: EventRow) -> Event {
    let object = EventObject::of(row);
    let data = serde_json::to_string(&object).expect("an event is strings, numbers and JSON");
    Event::default().id(object.id).event(object.kind).data(data)
}
