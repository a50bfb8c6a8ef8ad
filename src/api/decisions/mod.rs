//! `POST /v1/decisions`: typed questions about one input, answered with probabilities.
//!
//! A language model answers every kind of question by the likelihood of its answers (`text/options.rs`); a classifier that was
//! trained here answers a choice between its own labels.

mod input;
mod question;

use axum::Json;
use axum::extract::State;
use futures::stream::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use input::input_text;
use question::{Asked, Question};

use super::answer::{Reading, Scale, Text, score};
use super::classify::named_empty;
use super::error::{ApiError, ErrorBody};
use super::extract::ApiJson;
use super::state::AppState;
use super::text::likelihood::let_in;
use super::text::run::language_of;
use crate::serve::LoadedKind;

/// Questions that are answered at the same time.
const SIDE_BY_SIDE: usize = 4;

/// The route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(decide))
}

/// Questions about an input.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DecisionRequest {
    /// The model: a language model, or a classifier for choices between its labels.
    model: String,
    /// A text, or a list of messages, function calls and their outputs.
    #[schema(value_type = serde_json::Value)]
    input: Value,
    /// The questions.
    #[schema(min_items = 1, max_items = 400, value_type = Vec<Question>)]
    questions: Vec<Value>,
    /// Accepted and without effect.
    #[serde(rename = "prompt_cache_key")]
    _prompt_cache_key: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "prompt_cache_options")]
    #[schema(value_type = Option<Object>)]
    _prompt_cache_options: Option<Value>,
    /// Accepted and without effect.
    #[serde(rename = "safety_identifier")]
    _safety_identifier: Option<String>,
}

/// The answers.
#[derive(Debug, Serialize, ToSchema)]
struct Decision {
    /// The model that answered.
    model: String,
    /// One answer for each question, in order.
    answers: Vec<Answer>,
    /// What was read.
    usage: DecisionUsage,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Answer {
    /// Of a statement.
    Predicate {
        /// The question's name.
        name: Option<String>,
        /// That it is true.
        probability: f64,
    },
    /// Of a choice.
    Choice {
        /// The question's name.
        name: Option<String>,
        /// The likeliest value.
        #[schema(value_type = serde_json::Value)]
        choice: Value,
        /// Its probability.
        confidence: f64,
        /// All values, in the order of the question.
        probabilities: Vec<ValueProbability>,
    },
    /// Of a scale.
    Score {
        /// The question's name.
        name: Option<String>,
        /// The expected step, from 0.
        score: f64,
        /// The likeliest step's probability.
        confidence: f64,
        /// All steps, in order.
        probabilities: Vec<LevelProbability>,
    },
}

/// A value's probability.
#[derive(Debug, Serialize, ToSchema)]
struct ValueProbability {
    /// The value.
    #[schema(value_type = serde_json::Value)]
    value: Value,
    /// Its probability.
    probability: f64,
}

/// A step's probability.
#[derive(Debug, Serialize, ToSchema)]
struct LevelProbability {
    /// The step, from 0.
    value: usize,
    /// Its name.
    label: String,
    /// Its probability.
    probability: f64,
}

/// What was read.
#[derive(Debug, Default, Serialize, ToSchema)]
struct DecisionUsage {
    /// Tokens of the input with its questions.
    input_tokens: usize,
    /// Of these.
    input_tokens_details: InputDetails,
    /// Always 0: nothing is generated.
    output_tokens: usize,
    /// Of these.
    output_tokens_details: OutputDetails,
    /// The same as `input_tokens`.
    total_tokens: usize,
}

/// Tokens of the input by kind.
#[derive(Debug, Default, Serialize, ToSchema)]
struct InputDetails {
    /// Tokens that did not have to be computed again.
    cached_tokens: usize,
    /// Always 0.
    cache_write_tokens: usize,
}

/// Tokens of the output by kind.
#[derive(Debug, Default, Serialize, ToSchema)]
struct OutputDetails {
    /// Always 0.
    reasoning_tokens: usize,
}

/// Decide
///
/// Each question gets the probabilities of its answers; nothing is generated.
#[utoipa::path(post, path = "/v1/decisions", tag = "inference", request_body = DecisionRequest, responses(
    (status = 200, description = "The answers", body = Decision),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn decide(State(state): State<AppState>, ApiJson(request): ApiJson<DecisionRequest>) -> Result<Json<Decision>, ApiError> {
    if !(1..=400).contains(&request.questions.len()) {
        let message = format!("`questions` has {} questions; it takes 1 to 400.", request.questions.len());
        return Err(ApiError::field("questions", message));
    }
    if request.model.is_empty() {
        return Err(named_empty("model"));
    }
    let input = input_text(&request.input)?;
    let path = |i: usize| format!("questions[{i}]");
    let read = |(i, question)| Question::read(question, &path(i));
    let questions = request.questions.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let asked = questions.iter().enumerate().map(|(i, q)| q.asked(&path(i))).collect::<Result<Vec<_>, _>>()?;
    let loaded = state.registry.get(&request.model).await?;
    let mut usage = DecisionUsage::default();
    let probabilities = match &loaded.kind {
        LoadedKind::Classifier { .. } | LoadedKind::Encoder { .. } => {
            let (classifier, _) = loaded.classifier()?;
            let labels = classifier.labels.clone();
            let places = asked.iter().zip(&questions).enumerate().map(|(i, (a, q))| q.places_of(a, &labels, i));
            let places = places.collect::<Result<Vec<_>, _>>()?;
            let reading = Reading { truncate: true, field: "input", scale: Scale::Probabilities };
            let scored = score(&state, &request.model, vec![Text { text: input, pair: None }], reading).await?;
            usage.input_tokens = scored.tokens;
            let of_labels = &scored.rows[0];
            places.into_iter().map(|places| shares(places.into_iter().map(|p| of_labels[p]).collect())).collect()
        }
        LoadedKind::Language(_) => {
            let language = language_of(&loaded)?;
            let_in(&language)?;
            let one = |(i, asked): (usize, Asked)| {
                let (state, language, input) = (&state, &language, &input);
                async move {
                    let options = asked.options();
                    let prior = options.prior(state, language, &format!("{}.instructions", path(i))).await?;
                    options.choose(state, language, input, &prior, false, "input").await
                }
            };
            // The first one computes the input for all that follow.
            let mut asked = asked.into_iter().enumerate();
            let mut chosen = Vec::with_capacity(questions.len());
            if let Some(first) = asked.next() {
                chosen.push(one(first).await?);
            }
            chosen.extend(futures::stream::iter(asked.map(one)).buffered(SIDE_BY_SIDE).try_collect::<Vec<_>>().await?);
            usage.input_tokens = chosen.iter().map(|c| c.tokens).sum();
            usage.input_tokens_details.cached_tokens = chosen.iter().map(|c| c.cached).sum();
            chosen.into_iter().map(|c| c.probabilities).collect::<Vec<_>>()
        }
    };
    usage.total_tokens = usage.input_tokens;
    let answers = questions.into_iter().zip(probabilities).map(|(q, p)| q.answer(p)).collect();
    Ok(Json(Decision { model: request.model, answers, usage }))
}

/// Numbers as shares of their sum.
fn shares(numbers: Vec<f64>) -> Vec<f64> {
    let sum: f64 = numbers.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    numbers.into_iter().map(|n| n / sum).collect()
}

fn best(probabilities: &[f64]) -> usize {
    super::answer::ranked(probabilities).first().copied().unwrap_or(0)
}
