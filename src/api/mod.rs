//! The HTTP API: one file a resource, and around them the layers that every request passes.
//!
//! `cli::serve` calls [`router`]. A resource's file has its routes, its documentation and its handlers; the OpenAPI document
//! is made of the same routes, so that none can be served undocumented.

mod adapter_zip;
pub mod adapters;
pub mod answer;
pub mod auth;
mod causes;
pub mod classify;
mod conversations;
pub mod decisions;
pub mod docs;
mod download;
pub mod embeddings;
pub mod error;
pub mod extract;
pub mod files;
pub mod health;
pub mod host;
pub mod jobs;
pub mod layers;
mod linger;
mod listen;
pub mod models;
pub mod openapi;
pub mod paging;
mod passages;
pub mod responses;
pub mod sse;
pub mod state;
pub mod tei;
pub mod text;
pub mod upload;
mod zip_stream;

use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, header};
use axum::middleware::{from_fn, from_fn_with_state};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa_axum::router::OpenApiRouter;

pub use error::ApiError;
pub use listen::serve;
pub use state::AppState;

/// Every documented route. `quick` ones must begin to answer in time; uploads may take as long as bytes come.
fn routes(quick: impl FnOnce(OpenApiRouter<AppState>) -> OpenApiRouter<AppState>) -> OpenApiRouter<AppState> {
    let all_but_uploads = OpenApiRouter::default()
        .merge(health::routes())
        .merge(docs::routes())
        .merge(openapi::routes())
        .merge(files::routes())
        .merge(jobs::routes())
        .merge(models::routes())
        .merge(adapters::routes())
        .merge(classify::routes())
        .merge(embeddings::routes())
        .merge(tei::routes())
        .merge(text::chat::routes())
        .merge(text::completions::routes())
        .merge(responses::routes())
        .merge(decisions::routes());
    upload::routes().merge(quick(all_but_uploads))
}

/// The whole service: routes inside layers, the outermost first.
pub fn router(state: AppState) -> Router {
    let (routes, _) = routes(|quick| quick.layer(from_fn_with_state(state.clone(), layers::deadline))).split_for_parts();
    let idle = Duration::from_secs(state.config.limits.body_idle_seconds);
    let around = ServiceBuilder::new()
        .layer(axum::middleware::map_request(linger::wrap))
        .layer(from_fn(layers::identify))
        .layer(layers::cors(&state.config.cors_origin))
        .layer(layers::compression())
        .layer(axum::middleware::map_response(no_sniffing))
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(from_fn_with_state(state.clone(), host::refuse_foreign))
        .layer(from_fn_with_state(state.clone(), auth::require_key))
        .layer(RequestBodyTimeoutLayer::new(idle))
        // Every extractor of ours counts by itself, against the configured limits.
        .layer(DefaultBodyLimit::disable());
    routes.fallback(layers::no_route).method_not_allowed_fallback(layers::no_method).with_state(state).layer(around)
}

/// Uploaded bytes are never to be guessed at by a browser.
async fn no_sniffing<B>(mut response: axum::http::Response<B>) -> axum::http::Response<B> {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
