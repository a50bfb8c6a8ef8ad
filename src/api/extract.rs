//! Extractors that answer in OpenAI's error object: JSON bodies, query strings, path segments.
//!
//! Handlers use these in place of axum's own, whose rejections are plain text. A JSON error names the field by its path.

use axum::RequestExt;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::error::{ApiError, shorten};
use super::state::AppState;

/// A JSON body within the configured size.
pub struct ApiJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        let bytes = read_body(request, state.config.limits.max_body_bytes).await?;
        parse_json(&bytes).map(Self)
    }
}

/// The body of an action that takes no fields: nothing, or an empty JSON object.
pub struct NoFields;

impl FromRequest<AppState> for NoFields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        let bytes = read_body(request, state.config.limits.max_body_bytes).await?;
        if !bytes.is_empty() {
            parse_json::<Nothing>(&bytes)?;
        }
        Ok(Self)
    }
}

/// A query string; unknown parameters are the type's own business (`deny_unknown_fields`).
pub struct ApiQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state).await.map(|query| Self(query.0)).map_err(|e| {
            let text = e.body_text();
            let message = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            if let Some(field) = quoted(message, "unknown field `") {
                return ApiError::field(field, format!("{message}."));
            }
            match named(message) {
                Some((field, "invalid digit found in string")) => {
                    ApiError::field(field, format!("`{field}` must be a whole number, 0 or more."))
                }
                Some((field, why)) => ApiError::field(field, format!("`{field}`: {}.", plain(why))),
                None => ApiError::bad_request(format!("{message}.")),
            }
        })
    }
}

/// Path segments, percent-decoded.
pub struct ApiPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for ApiPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|path| Self(path.0))
            .map_err(|e| ApiError::bad_request(e.body_text()))
    }
}

/// 415 unless the body is declared as JSON.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let declared = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "application/json" || (media.starts_with("application/") && media.ends_with("+json")) {
        return Ok(());
    }
    let found = if declared.is_empty() { "none".to_owned() } else { format!("`{}`", shorten(declared)) };
    Err(unsupported(format!("The body must be JSON with `Content-Type: application/json`; the content type is {found}.")))
}

/// 415 with the content type that is wanted.
pub fn unsupported(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
}

/// Collects a body and stops as soon as it is larger than `limit`.
pub async fn read_body(request: Request, limit: u64) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("The body is larger than {limit} bytes (limits.max_body_bytes); send large data as a file to /v1/files.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    let mut stream = request.with_limited_body().into_body().into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(body_error)?;
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// A body that ended early: the client left, or stood still for too long.
pub fn body_error(error: axum::Error) -> ApiError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if e.is::<tower_http::timeout::TimeoutError>() {
            return body_stalled();
        }
        cause = e.source();
    }
    ApiError::bad_request(format!("The body could not be read to its end: {error}."))
}

/// 408: nothing came for `limits.body_idle_seconds`.
pub fn body_stalled() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The body stood still for too long; send it again.")
}

/// Parses a whole body; an error says what is wrong and names the field by its path.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    require_object(bytes)?;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = match serde_path_to_error::deserialize(&mut reader) {
        Ok(value) => value,
        // Where a word must stand, the parser takes a number or a list for broken JSON; of a parsed value it says what is wrong.
        Err(e) if is_syntax(e.inner()) => match serde_json::from_slice(bytes) {
            Ok(whole) => parse_value(whole, "")?,
            Err(_) => return Err(json_error(&e)),
        },
        Err(e) => return Err(json_error(&e)),
    };
    reader.end().map_err(|e| ApiError::bad_request(format!("The body is not valid JSON: {e}.")))?;
    Ok(value)
}

/// A part of a body that was read as a value before; `path` is where it stood.
pub fn parse_value<T: DeserializeOwned>(value: serde_json::Value, path: &str) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|e| json_error_at(&e, path))
}

/// A struct would take a list of its fields' values too, which no client means.
fn require_object(bytes: &[u8]) -> Result<(), ApiError> {
    let found = match bytes.trim_ascii_start().first() {
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b'0'..=b'9' | b'-') => "a number",
        Some(b'n' | b't' | b'f') => "a single value",
        // What is empty or no JSON at all is told by the parser.
        _ => return Ok(()),
    };
    Err(ApiError::bad_request(format!("The body must be a JSON object, {{…}}; it is {found}.")))
}

/// What the parser says, without the names of Rust's types.
fn plain(message: &str) -> String {
    if message.starts_with("data did not match any variant of untagged enum") {
        return "this has none of the shapes that are taken".to_owned();
    }
    let Some((found, wanted)) = message.split_once(", expected ") else { return message.to_owned() };
    let found = match found.strip_prefix("invalid length ") {
        Some(_) => "this is a list",
        None => found,
    };
    let wanted = match wanted.trim_start_matches("a ").split(' ').next().unwrap_or_default() {
        "struct" | "map" => "an object",
        "internally" | "adjacently" => "an object with a `type`",
        "variant" => "a string",
        "string" if wanted == "string or map" => "a string",
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "sequence" => "a list",
        "bool" | "boolean" => "true or false",
        _ => wanted,
    };
    format!("{found}, expected {wanted}")
}

fn is_syntax(error: &serde_json::Error) -> bool {
    matches!(error.classify(), serde_json::error::Category::Syntax | serde_json::error::Category::Eof)
}

fn json_error(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    json_error_at(error, "")
}

fn json_error_at(error: &serde_path_to_error::Error<serde_json::Error>, prefix: &str) -> ApiError {
    let inner = error.inner();
    if is_syntax(inner) {
        return ApiError::bad_request(format!("The body is not valid JSON: {inner}."));
    }
    let text = inner.to_string();
    let message = plain(text.split(" at line ").next().unwrap_or(&text));
    let mut path = error.path().to_string();
    if path == "." {
        path.clear();
    }
    // For a field that is unknown, serde knows only the object that holds it.
    let field = quoted(&message, "unknown field `").or_else(|| quoted(&message, "missing field `"));
    if let Some(field) = field
        && path.rsplit('.').next() != Some(field.as_str())
    {
        path = if path.is_empty() { field } else { format!("{path}.{field}") };
    }
    if !prefix.is_empty() {
        let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
        path = format!("{prefix}{dot}{path}");
    }
    match path.is_empty() {
        true => ApiError::bad_request(format!("{message}.")),
        false => ApiError::field(path.clone(), format!("`{}`: {message}.", shorten(&path))),
    }
}

/// What stands between `start` and the next backtick.
fn quoted(message: &str, start: &str) -> Option<String> {
    let rest = message.split_once(start)?.1;
    Some(shorten(rest.split_once('`')?.0))
}

/// The parameter of a query's error and what is wrong, of `limit: invalid digit …`.
fn named(message: &str) -> Option<(&str, &str)> {
    message.split_once(": ").filter(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Outer {
        model: String,
        #[serde(default)]
        training: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        learning_rate: Option<f64>,
        labels: Option<Vec<String>>,
    }

    fn failure(body: &str) -> (Option<String>, String) {
        let error = parse_json::<Outer>(body.as_bytes()).unwrap_err();
        (error.param().map(str::to_owned), error.to_string())
    }

    #[test]
    fn a_wrong_field_is_named_by_its_path() {
        let (param, message) = failure(r#"{"model":"m","training":{"learning_rate":"fast"}}"#);
        assert_eq!(param.unwrap(), "training.learning_rate");
        assert!(message.contains("fast") && !message.contains("line"), "{message}");
        assert_eq!(failure(r#"{"model":"m","training":{"labels":["a",1]}}"#).0.unwrap(), "training.labels[1]");
    }

    #[test]
    fn an_unknown_field_is_named_where_it_stands() {
        assert_eq!(failure(r#"{"model":"m","trainnig":{}}"#).0.unwrap(), "trainnig");
        assert_eq!(failure(r#"{"model":"m","training":{"lr":1}}"#).0.unwrap(), "training.lr");
    }

    #[test]
    fn a_missing_field_is_named() {
        assert_eq!(failure("{}").0.unwrap(), "model");
    }

    #[test]
    fn what_is_no_object_is_told_so() {
        for (body, found) in [("[]", "a list"), (r#"["m"]"#, "a list"), ("null", "value"), (" 5", "a number"), ("\"x\"", "a string")] {
            let (param, message) = failure(body);
            assert!(param.is_none() && message.contains("JSON object") && message.contains(found), "{message}");
        }
        let (param, message) = failure(r#"{"model":"m","training":[1]}"#);
        assert_eq!(param.unwrap(), "training");
        assert!(message.contains("this is a list, expected an object"), "{message}");
        assert!(failure(r#"{"model":"m","training":{"learning_rate":null,"labels":7}}"#).1.contains("expected a list"));
    }

    #[test]
    fn no_word_of_rusts_reaches_a_client() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        enum Format {
            Text,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(untagged)]
        #[allow(dead_code)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Word {
            Up,
        }
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code)]
        struct Body {
            format: Option<Format>,
            either: Option<Either>,
            word: Option<Word>,
        }
        for (body, says) in [
            (r#"{"word":7}"#, "`word`: invalid type: integer `7`, expected a string."),
            (r#"{"word":["up"]}"#, "`word`: invalid type: sequence, expected a string."),
            (r#"{"format":"json"}"#, "`format`: invalid type: string \"json\", expected an object with a `type`."),
            (r#"{"format":{"type":5}}"#, "expected a string"),
            (r#"{"either":5}"#, "`either`: this has none of the shapes that are taken."),
        ] {
            let message = parse_json::<Body>(body.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(says) && !message.contains("enum") && !message.contains("variant"), "{message}");
        }
    }

    #[test]
    fn broken_json_says_where() {
        for body in ["{", "", "{\"model\":\"m\"} x", "{\"model\":}"] {
            let (param, message) = failure(body);
            assert_eq!(param, None, "{body}");
            assert!(message.contains("not valid JSON") && message.contains("line 1"), "{message}");
        }
    }

    #[test]
    fn a_deep_body_is_an_error_and_no_crash() {
        assert!(parse_json::<serde_json::Value>("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn only_json_is_json() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            require_json(&headers)
        };
        assert!(with("application/json; charset=utf-8").is_ok());
        assert_eq!(with("text/plain").unwrap_err().status(), 415);
        assert_eq!(require_json(&HeaderMap::new()).unwrap_err().status(), 415);
    }
}
