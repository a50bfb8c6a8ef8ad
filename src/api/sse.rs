//! Event streams: who asked for one, and what keeps it open.
//!
//! Used by every route that streams. Proxies and browsers drop silent connections, so a comment goes out every 15 seconds;
//! the server's end closes every stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures::Stream;

/// Time between two comments on a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Whether the client names event streams among what it accepts; `*/*` is no wish for one.
pub fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// A stream with comments in its silence, which no proxy may hold back or keep.
pub fn respond(stream: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("keep-alive");
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_named_wish_opens_a_stream() {
        let with = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_stream(&headers)
        };
        assert!(with("text/event-stream"));
        assert!(with("application/json;q=0.5, Text/Event-Stream;q=0.9"));
        assert!(!with("*/*") && !with("application/json") && !with("text/*"));
        assert!(!wants_stream(&HeaderMap::new()));
    }
}
