//! The routes that clients of text-embeddings-inference know: `/embed`, `/predict` and `/tokenize`.
//!
//! That server has one model; here a request may name one, and needs to where there are several. Faults of the fields are
//! 422, as clients of these routes expect.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tunesmith_ml::text::TokenPiece;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Reading, Scale, Text, Wanted, ranked, score, vectors};
use super::classify::LabelScore;
use super::error::{ApiError, ErrorBody};
use super::extract::ApiJson;
use super::passages::{self, Passages};
use super::state::AppState;

/// The routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(embed)).routes(routes!(predict)).routes(routes!(tokenize))
}

/// Texts to make vectors of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EmbedRequest {
    /// One text or a list of texts; or their tokens, as `/tokenize` tells them.
    #[schema(schema_with = passages::schema)]
    inputs: Passages,
    /// Bring vectors to length 1 [default: as the model's files say].
    normalize: Option<bool>,
    /// Cut what is too long [default: false, which makes it an error].
    truncate: Option<bool>,
    /// Accepted; the end is what is cut.
    truncation_direction: Option<String>,
    /// One of the model's prompts, put before each text [default: the model's own, if it has one].
    prompt_name: Option<String>,
    /// How many numbers, from the vector's beginning [default: all].
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// The model [default: the only one].
    model: Option<String>,
}

/// Texts to classify.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PredictRequest {
    /// A text, a pair `["a", "b"]`, or a list of one- or two-element lists.
    #[schema(value_type = serde_json::Value)]
    inputs: Value,
    /// Answer before softmax or sigmoid [default: false].
    raw_scores: Option<bool>,
    /// Cut what is too long [default: false, which makes it an error].
    truncate: Option<bool>,
    /// Accepted; the end is what is cut.
    truncation_direction: Option<String>,
    /// The model [default: the only one].
    model: Option<String>,
}

/// Texts to tokenise.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenizeRequest {
    /// A text or a list of texts.
    #[schema(value_type = serde_json::Value)]
    inputs: Value,
    /// With the tokens that the model's tokenizer adds [default: true].
    add_special_tokens: Option<bool>,
    /// Not available.
    prompt_name: Option<String>,
    /// The model [default: the only one].
    model: Option<String>,
}

/// A token as the model reads it.
#[derive(Debug, Serialize, ToSchema)]
struct Token {
    /// Its id.
    id: u32,
    /// As the vocabulary spells it.
    text: String,
    /// Whether the tokenizer added it.
    special: bool,
    /// Its first character in the text.
    start: Option<usize>,
    /// The character after its last.
    stop: Option<usize>,
}

impl From<TokenPiece> for Token {
    fn from(piece: TokenPiece) -> Self {
        Self { id: piece.id, text: piece.text, special: piece.special, start: piece.start, stop: piece.stop }
    }
}

/// Make vectors of texts, in the form of text-embeddings-inference
///
/// The vectors are those of `/v1/embeddings`.
#[utoipa::path(post, path = "/embed", tag = "inference", request_body = EmbedRequest, responses(
    (status = 200, description = "A vector for each text", body = Vec<Vec<f32>>),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 422, description = "A field is wrong", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn embed(State(state): State<AppState>, ApiJson(request): ApiJson<EmbedRequest>) -> Result<Json<Vec<Vec<f32>>>, ApiError> {
    check_direction(request.truncation_direction.as_deref())?;
    let name = name_or_only(&state, request.model).await?;
    let wanted = Wanted {
        truncate: request.truncate.unwrap_or(false),
        field: "inputs",
        prompt_name: request.prompt_name,
        normalize: request.normalize,
        dimensions: request.dimensions,
    };
    let made = vectors(&state, &name, request.inputs.items, wanted).await.map_err(unprocessable)?;
    Ok(Json(made.rows))
}

/// Classify texts, in the form of text-embeddings-inference
///
/// One list of labels for one text, a list of lists for several.
#[utoipa::path(post, path = "/predict", tag = "inference", request_body = PredictRequest, responses(
    (status = 200, description = "Labels and scores, best first", body = Vec<serde_json::Value>),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 422, description = "A field is wrong", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn predict(State(state): State<AppState>, ApiJson(request): ApiJson<PredictRequest>) -> Result<Response, ApiError> {
    check_direction(request.truncation_direction.as_deref())?;
    let (texts, single) = sequences(&request.inputs)?;
    let name = name_or_only(&state, request.model).await?;
    let reading = Reading {
        truncate: request.truncate.unwrap_or(false),
        field: "inputs",
        scale: if request.raw_scores == Some(true) { Scale::Raw } else { Scale::Probabilities },
    };
    let scored = score(&state, &name, texts, reading).await.map_err(unprocessable)?;
    let labels = &scored.classifier.labels;
    let row = |scores: &Vec<f64>| -> Vec<LabelScore> {
        let item = |i: usize| LabelScore { label: labels[i].clone(), score: scores[i] };
        ranked(scores).into_iter().map(item).collect()
    };
    let mut rows: Vec<Vec<LabelScore>> = scored.rows.iter().map(row).collect();
    Ok(match single {
        true => Json(rows.pop().unwrap_or_default()).into_response(),
        false => Json(rows).into_response(),
    })
}

/// Tokens as the model reads them, in the form of text-embeddings-inference
///
/// What does not fit the model is left out; the header `X-Truncated-Tokens` counts it, a number for each text.
#[utoipa::path(post, path = "/tokenize", tag = "inference", request_body = TokenizeRequest, responses(
    (status = 200, description = "A list of tokens for each text", body = Vec<Vec<Token>>),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 422, description = "A field is wrong", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn tokenize(State(state): State<AppState>, ApiJson(request): ApiJson<TokenizeRequest>) -> Result<Response, ApiError> {
    if request.prompt_name.is_some() {
        return Err(invalid("prompt_name", "`prompt_name` is not available; put the prompt in front of the text."));
    }
    let texts = match &request.inputs {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().map(text_of).collect::<Result<_, _>>()?,
        _ => return Err(wrong_inputs()),
    };
    let most = state.config.budgets.classify_inputs;
    if texts.is_empty() || texts.len() > most {
        return Err(invalid("inputs", format!("`inputs` has {} texts; a request takes 1 to {most}.", texts.len())));
    }
    let name = name_or_only(&state, request.model).await?;
    let loaded = state.registry.get(&name).await?;
    let special = request.add_special_tokens.unwrap_or(true);
    let work = move || -> Result<(Vec<Vec<Token>>, Vec<String>), ApiError> {
        let mut all = Vec::with_capacity(texts.len());
        let mut cut = Vec::with_capacity(texts.len());
        for text in &texts {
            let (pieces, left_out) = loaded.pieces(text).map_err(|e| invalid("inputs", e.to_string()))?;
            all.push(pieces.into_iter().filter(|p| special || !p.special).map(Token::from).collect());
            cut.push(left_out.to_string());
        }
        Ok((all, cut))
    };
    let (tokens, cut) = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??;
    let mut response = Json(tokens).into_response();
    if let Ok(value) = HeaderValue::from_str(&cut.join(",")) {
        response.headers_mut().insert("x-truncated-tokens", value);
    }
    Ok(response)
}

fn check_direction(direction: Option<&str>) -> Result<(), ApiError> {
    match direction.filter(|d| !d.eq_ignore_ascii_case("right")) {
        Some(other) => Err(invalid(
            "truncation_direction",
            format!("`truncation_direction` is `{}`; only `Right` is available.", super::error::shorten(other)),
        )),
        None => Ok(()),
    }
}

/// The texts, and whether there is only one, which is answered without the outer list.
fn sequences(inputs: &Value) -> Result<(Vec<Text>, bool), ApiError> {
    match inputs {
        Value::String(_) => Ok((vec![sequence(std::slice::from_ref(inputs))?], true)),
        Value::Array(items) if items.iter().all(Value::is_string) && !items.is_empty() => Ok((vec![sequence(items)?], true)),
        Value::Array(items) if !items.is_empty() => {
            let row = |item: &Value| match item {
                Value::Array(texts) => sequence(texts),
                Value::String(_) => sequence(std::slice::from_ref(item)),
                _ => Err(wrong_inputs()),
            };
            Ok((items.iter().map(row).collect::<Result<_, _>>()?, false))
        }
        _ => Err(wrong_inputs()),
    }
}

fn sequence(texts: &[Value]) -> Result<Text, ApiError> {
    match texts {
        [text] => Ok(Text { text: text_of(text)?, pair: None }),
        [text, pair] => Ok(Text { text: text_of(text)?, pair: Some(text_of(pair)?) }),
        _ => Err(wrong_inputs()),
    }
}

fn text_of(value: &Value) -> Result<String, ApiError> {
    value.as_str().map(str::to_owned).ok_or_else(wrong_inputs)
}

fn wrong_inputs() -> ApiError {
    invalid("inputs", "`inputs` must be a text, a pair of texts, or a list of lists with one or two texts each.")
}

fn invalid(param: &str, message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request_error", message).with_param(param)
}

/// Fields of `/embed` that the shared code checks.
const OF_VECTORS: [&str; 2] = ["dimensions", "prompt_name"];

/// A fault that the shared code calls 400 is 422 on these routes.
fn unprocessable(error: ApiError) -> ApiError {
    match (error.status(), error.param()) {
        (StatusCode::BAD_REQUEST, Some(param)) if param.starts_with("inputs") || OF_VECTORS.contains(&param) => {
            invalid(param, error.to_string())
        }
        _ => error,
    }
}

/// The model that is named, or the only one that was trained or loaded here.
async fn name_or_only(state: &AppState, name: Option<String>) -> Result<String, ApiError> {
    if let Some(name) = name {
        return Ok(name);
    }
    let models = state.store.list_models().await?.into_iter().map(|m| m.name);
    let adapters = state.store.list_adapters().await?.into_iter().map(|a| a.name);
    let mut names: Vec<String> = models.chain(adapters).collect();
    match (names.pop(), names.len()) {
        (Some(name), 0) => Ok(name),
        (None, _) => Err(invalid("model", "There is no model yet; name one in `model`, or train one.")),
        (Some(_), more) => Err(invalid("model", format!("There are {} models; name one of them in `model`.", more + 1))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn inputs_are_told_apart_as_the_original_does() {
        let shape = |inputs: Value| sequences(&inputs).map(|(texts, single)| (texts.len(), texts[0].pair.is_some(), single));
        assert_eq!(shape(json!("a")).unwrap(), (1, false, true));
        assert_eq!(shape(json!(["a"])).unwrap(), (1, false, true));
        assert_eq!(shape(json!(["a", "b"])).unwrap(), (1, true, true));
        assert_eq!(shape(json!([["a"], ["b"]])).unwrap(), (2, false, false));
        assert_eq!(shape(json!([["a", "b"]])).unwrap(), (1, true, false));
        for wrong in [json!(null), json!([]), json!([[]]), json!(7), json!(["a", "b", "c"]), json!([["a", 1]])] {
            assert_eq!(shape(wrong).unwrap_err().status(), 422);
        }
    }
}
