//! Who may call: API keys as bearer tokens.
//!
//! A layer around every route. Without configured keys everybody may call, and the server then binds only to loopback
//! (`Config::addresses`). Keys are compared by their digests in constant time, all of them on every request.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;
use super::state::AppState;

/// Routes that need no key: probes, and the description of the API.
const OPEN: &[&str] = &["/healthz", "/readyz", "/docs", "/openapi.yaml"];

/// The digests of the configured keys.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Keeps the keys' digests only.
    pub fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|k| digest(k)).collect())
    }

    /// Whether there is no key to present.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn accepts(&self, presented: &str) -> bool {
        let presented = digest(presented);
        let none = Choice::from(0);
        self.0.iter().fold(none, |found, key| found | key.ct_eq(&presented)).into()
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Lets a request pass with a right key, or on a route that needs none.
pub async fn require_key(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if state.keys.is_empty() || OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let presented = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let message = match presented {
        Some(key) if state.keys.accepts(key) => return next.run(request).await,
        Some(_) => "The API key is wrong.",
        None => "No API key was sent; send it as `Authorization: Bearer KEY`.",
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_keys_is_accepted_and_nothing_else() {
        let keys = Keys::new(&["one".into(), "two".into()]);
        assert!(keys.accepts("one") && keys.accepts("two"));
        assert!(!keys.accepts("") && !keys.accepts("onetwo") && !keys.accepts("One"));
    }
}
