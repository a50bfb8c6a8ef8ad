//! `POST /v1/embeddings`: a vector for each text, by any encoder or adapter of one.

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Wanted, vectors};
use super::classify::{Usage, model_name};
use super::error::{ApiError, ErrorBody};
use super::extract::ApiJson;
use super::passages::{self, Passages};
use super::state::AppState;

/// The route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(embeddings))
}

/// Texts to make vectors of.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EmbeddingRequest {
    /// The model: an encoder, a classifier that was trained on one, or an adapter.
    model: Option<String>,
    /// An adapter on that model; alone it is enough (not OpenAI's).
    adapter_id: Option<String>,
    /// One text or a list of texts; or their tokens, as `/tokenize` tells them.
    #[schema(schema_with = passages::schema)]
    input: Passages,
    /// Numbers, or the little-endian bytes of 32-bit floats in base64 [default: float].
    encoding_format: Option<EncodingFormat>,
    /// How many numbers, from the vector's beginning [default: all].
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// Bring vectors to length 1 [default: as the model's files say] (not OpenAI's).
    normalize: Option<bool>,
    /// One of the model's prompts, put before each text [default: the model's own, if it has one] (not OpenAI's).
    prompt_name: Option<String>,
    /// Cut what is longer than the model reads [default: true]; with false it is an error (not OpenAI's).
    truncate: Option<bool>,
    /// Accepted and without effect.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    /// A list of numbers.
    Float,
    /// The bytes of 32-bit floats, little-endian.
    Base64,
}

/// The answer for all texts.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingAnswer {
    /// Always `list`.
    object: &'static str,
    /// One item for each text, in order.
    data: Vec<Embedding>,
    /// The model that answered.
    model: String,
    /// What was read.
    usage: Usage,
}

/// A text's vector.
#[derive(Debug, Serialize, ToSchema)]
struct Embedding {
    /// Always `embedding`.
    object: &'static str,
    /// The text's place in the request.
    index: usize,
    /// The vector.
    embedding: Vector,
}

/// A vector, as it was asked for.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Bytes in base64.
    Base64(String),
}

impl Vector {
    fn of(numbers: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Float(numbers),
            EncodingFormat::Base64 => Self::Base64(STANDARD.encode(numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())),
        }
    }
}

/// Make vectors of texts
///
/// Pooling, normalisation, prompts and the longest text are those of the model's sentence-transformers files; a model without such files
/// gives the mean of its tokens. A text's vector is the same whatever else is in the request.
#[utoipa::path(post, path = "/v1/embeddings", tag = "inference", request_body = EmbeddingRequest, responses(
    (status = 200, description = "A vector for each text", body = EmbeddingAnswer),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn embeddings(State(state): State<AppState>, ApiJson(request): ApiJson<EmbeddingRequest>) -> Result<Json<EmbeddingAnswer>, ApiError> {
    let name = model_name(&state, request.model, request.adapter_id).await?;
    let wanted = Wanted {
        truncate: request.truncate.unwrap_or(true),
        field: "input",
        prompt_name: request.prompt_name,
        normalize: request.normalize,
        dimensions: request.dimensions,
    };
    let made = vectors(&state, &name, request.input.items, wanted).await?;
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let item = |(index, row)| Embedding { object: "embedding", index, embedding: Vector::of(row, format) };
    Ok(Json(EmbeddingAnswer {
        object: "list",
        data: made.rows.into_iter().enumerate().map(item).collect(),
        model: name,
        usage: Usage { prompt_tokens: made.tokens, total_tokens: made.tokens, truncated_inputs: made.truncated },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_holds_the_bytes_of_little_endian_floats() {
        let vector = Vector::of(vec![1.0, -2.5], EncodingFormat::Base64);
        assert_eq!(vector, Vector::Base64("AACAPwAAIMA=".to_owned()));
    }
}
