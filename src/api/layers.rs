//! What surrounds every route: request ids, log spans, panics, CORS, compression, time-outs.
//!
//! `api::router` puts the layers on; their order is told there. Routes know nothing of them.

use std::any::Any;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, NotForContentType, Predicate};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;

use super::error::ApiError;
use super::state::AppState;

/// The header that names a request in answers and in the log.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives each request an id, the client's own if it is a plain one, and a span with it.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(&REQUEST_ID)
        .filter(|value| is_plain(value.as_bytes()))
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("req-{}", uuid::Uuid::now_v7().simple())).ok())
        .unwrap_or_else(|| HeaderValue::from_static("req-unknown"));
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let span = tracing::info_span!(
        "request",
        request_id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
    );
    let start = std::time::Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    span.in_scope(|| tracing::debug!(status = response.status().as_u16(), milliseconds, "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// An id that may stand in a log line and a header as it is.
fn is_plain(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// A panic in a handler becomes a 500 like any other.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    ApiError::internal(format_args!("a handler panicked: {}", text.unwrap_or("no message"))).into_response()
}

/// Answers 503 where the answer does not begin in time.
pub async fn deadline(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let limit = state.config.request_timeout();
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("No answer within {} seconds; try again.", limit.as_secs());
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message).retry_after(5).into_response()
        }
    }
}

/// Nothing answers cross-origin questions unless origins are configured.
pub fn cors(origins: &[String]) -> CorsLayer {
    let truncated = HeaderName::from_static("x-truncated-tokens");
    let exposed = [REQUEST_ID, header::RETRY_AFTER, header::CONTENT_DISPOSITION, truncated];
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(std::time::Duration::from_secs(600));
    if origins.iter().any(|o| o == "*") {
        return layer.allow_origin(tower_http::cors::Any);
    }
    layer.allow_origin(AllowOrigin::list(origins.iter().filter_map(|o| HeaderValue::from_str(o).ok())))
}

/// gzip for what shrinks; event streams would be held back by it, and archives do not shrink.
pub fn compression() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new().compress_when(
        DefaultPredicate::new()
            .and(NotForContentType::const_new("application/zip"))
            .and(NotForContentType::const_new("application/octet-stream")),
    )
}

/// 404 for a path that no route has.
pub async fn no_route(request: Request) -> ApiError {
    let path = super::error::shorten(request.uri().path());
    ApiError::not_found(format!("There is no `{path}`; GET /openapi.yaml lists what there is."))
}

/// 405 for a method that a route does not have; axum adds the Allow header.
pub async fn no_method(request: Request) -> ApiError {
    let message = format!("{} is not allowed here; the Allow header lists what is.", request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_500_that_tells_nothing_of_it() {
        use tower::ServiceExt;
        async fn broken() {
            panic!("a secret")
        }
        let app =
            axum::Router::new().route("/", axum::routing::get(broken)).layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked));
        let response = app.oneshot(Request::get("/").body(axum::body::Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 500);
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(body["error"]["code"], "internal_error");
        assert!(!body.to_string().contains("secret"));
    }

    #[test]
    fn only_plain_request_ids_are_taken_over() {
        assert!(is_plain(b"trace-1.a_B"));
        assert!(!is_plain(b"") && !is_plain(b"a b") && !is_plain(b"a\"") && !is_plain(&[b'a'; 129]));
    }
}
