//! `POST /v1/classify`: labels and scores for texts or pairs of texts.

use std::fmt;

use axum::Json;
use axum::extract::State;
use futures::stream::{StreamExt, TryStreamExt};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tunesmith_ml::spec::ProblemType;
use tunesmith_store::StoreError;
use utoipa::openapi::schema::{Schema, Type};
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, RefOr};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Reading, Scale, Scored, Text, check_count, ranked, score};
use super::error::{ApiError, ErrorBody, shorten};
use super::extract::ApiJson;
use super::state::AppState;
use super::text::likelihood::let_in;
use super::text::options::{Chosen, Options};
use super::text::run::language_of;
use crate::serve::LoadedKind;

/// Texts that a language model reads at the same time.
const TEXTS_SIDE_BY_SIDE: usize = 8;

/// The route.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(classify))
}

/// Texts to classify.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ClassifyRequest {
    /// The model: one of `GET /v1/models`, or a base with a classifier of its own.
    model: Option<String>,
    /// An adapter on that model; alone it is enough.
    adapter_id: Option<String>,
    /// One text, a list of texts, or pairs.
    #[schema(schema_with = input_schema)]
    input: Input,
    /// Most labels for each text, best first [default: all].
    #[schema(minimum = 1)]
    top_k: Option<usize>,
    /// Cut what is longer than the model reads [default: true]; with false it is an error.
    truncate: Option<bool>,
    /// Probability from which a label of a multi-label model counts [default: the model's own].
    #[schema(minimum = 0, maximum = 1)]
    threshold: Option<f64>,
    /// Labels for a language model to choose from; a classifier has its own.
    #[schema(min_items = 2, max_items = 255)]
    labels: Option<Vec<String>>,
    /// With `labels`: what a language model is told before the texts.
    instruction: Option<String>,
    /// With `labels`: texts with their labels, for a language model to learn from.
    #[schema(max_items = 256)]
    examples: Option<Vec<LabelledText>>,
    /// Accepted and without effect.
    #[serde(rename = "user")]
    _user: Option<String>,
}

/// A text with its label.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LabelledText {
    /// The text.
    text: String,
    /// One of `labels`.
    label: String,
}

/// The answer for all texts.
#[derive(Debug, Serialize, ToSchema)]
struct ClassifyAnswer {
    /// Always `list`.
    object: &'static str,
    /// The model that answered.
    model: String,
    /// One item for each text, in order.
    data: Vec<Classified>,
    /// What was read.
    usage: Usage,
}

/// The answer for one text.
#[derive(Debug, Serialize, ToSchema)]
struct Classified {
    /// The text's place in the request.
    index: usize,
    /// The best label.
    label: String,
    /// Its score: a probability, or the value of a regression.
    score: f64,
    /// All labels or the `top_k` best, best first.
    scores: Vec<LabelScore>,
    /// Of a multi-label model: the labels from the threshold on, best first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    labels: Option<Vec<String>>,
}

/// A label and its score.
#[derive(Debug, Serialize, ToSchema)]
pub struct LabelScore {
    /// The label.
    pub label: String,
    /// Its score.
    pub score: f64,
}

/// What was read.
#[derive(Debug, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of all texts, cut ones as far as they were read.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
    /// Texts that were cut.
    pub truncated_inputs: usize,
}

/// Classify texts
#[utoipa::path(post, path = "/v1/classify", tag = "inference", request_body = ClassifyRequest, responses(
    (status = 200, description = "Labels and scores", body = ClassifyAnswer),
    (status = 404, description = "No such model", body = ErrorBody),
    (status = 429, description = "The queue is full; Retry-After says when", body = ErrorBody),
    (status = 507, description = "The disk is full", body = ErrorBody)))]
async fn classify(State(state): State<AppState>, ApiJson(request): ApiJson<ClassifyRequest>) -> Result<Json<ClassifyAnswer>, ApiError> {
    if request.top_k == Some(0) {
        return Err(ApiError::field("top_k", "`top_k` is 0; it must be at least 1."));
    }
    if let Some(threshold) = request.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
        return Err(ApiError::field("threshold", format!("`threshold` is {threshold}; it must be between 0 and 1.")));
    }
    let name = model_name(&state, request.model, request.adapter_id).await?;
    if let Some(labels) = request.labels {
        if request.threshold.is_some() {
            return Err(ApiError::field("threshold", "`threshold` is for multi-label models; of `labels` one is chosen."));
        }
        let choice = Choice { labels, instruction: request.instruction, examples: request.examples.unwrap_or_default() };
        return choose(&state, name, request.input.0, choice, request.top_k, request.truncate.unwrap_or(true)).await;
    }
    for (field, given) in [("instruction", request.instruction.is_some()), ("examples", request.examples.is_some())] {
        if given {
            return Err(ApiError::field(field, format!("`{field}` is for language models, which need `labels` to choose from.")));
        }
    }
    let reading = Reading { truncate: request.truncate.unwrap_or(true), field: "input", scale: Scale::Probabilities };
    let scored = score(&state, &name, request.input.0, reading).await?;
    if request.threshold.is_some() && scored.classifier.answer.problem_type != ProblemType::MultiLabelClassification {
        return Err(ApiError::field("threshold", "`threshold` is for multi-label models, and this one answers with one label."));
    }
    Ok(Json(ClassifyAnswer {
        object: "list",
        model: name,
        data: (0..scored.rows.len()).map(|i| classified(&scored, i, request.top_k, request.threshold)).collect(),
        usage: Usage { prompt_tokens: scored.tokens, total_tokens: scored.tokens, truncated_inputs: scored.truncated },
    }))
}

fn classified(scored: &Scored, index: usize, top_k: Option<usize>, threshold: Option<f64>) -> Classified {
    let (classifier, scores) = (&scored.classifier, &scored.rows[index]);
    let multi = classifier.answer.problem_type == ProblemType::MultiLabelClassification;
    let threshold = threshold.unwrap_or(f64::from(classifier.answer.threshold));
    let order = ranked(scores);
    let labels = multi.then(|| order.iter().filter(|i| scores[**i] >= threshold).map(|i| classifier.labels[*i].clone()).collect());
    Classified { labels, ..one_of(&classifier.labels, scores, &order, index, top_k) }
}

/// The label with the highest score, the first in `order`. There is at least one label: a classifier without would not have loaded.
fn one_of(labels: &[String], scores: &[f64], order: &[usize], index: usize, top_k: Option<usize>) -> Classified {
    let item = |i: &usize| LabelScore { label: labels[*i].clone(), score: scores[*i] };
    let LabelScore { label, score } = item(&order.first().copied().unwrap_or(0));
    Classified { index, label, score, scores: order.iter().take(top_k.unwrap_or(usize::MAX)).map(item).collect(), labels: None }
}

/// What a language model chooses from.
struct Choice {
    labels: Vec<String>,
    instruction: Option<String>,
    examples: Vec<LabelledText>,
}

impl Choice {
    fn options(self) -> Result<Options, ApiError> {
        let Self { labels, instruction, examples } = self;
        if !(2..=255).contains(&labels.len()) {
            return Err(ApiError::field("labels", format!("`labels` has {} labels; it takes 2 to 255.", labels.len())));
        }
        for (i, label) in labels.iter().enumerate() {
            let field = format!("labels[{i}]");
            if label.trim().is_empty() {
                return Err(ApiError::field(field.clone(), format!("`{field}` is empty; write the label's name.")));
            }
            if let Some(first) = labels[..i].iter().position(|l| l == label) {
                let message = format!("`{field}` is `{}`, as `labels[{first}]` is; give each label once.", shorten(label));
                return Err(ApiError::field(field, message));
            }
        }
        if examples.len() > 256 {
            return Err(ApiError::field("examples", format!("`examples` has {} texts; it takes at most 256.", examples.len())));
        }
        if let Some((i, example)) = examples.iter().enumerate().find(|(_, e)| !labels.contains(&e.label)) {
            let field = format!("examples[{i}].label");
            let known: Vec<String> = labels.iter().take(20).map(|l| shorten(l)).collect();
            let message = format!("`{field}` is `{}`, which is none of `labels`: {}.", shorten(&example.label), known.join(", "));
            return Err(ApiError::field(field, message));
        }
        Ok(Options {
            instruction: instruction.unwrap_or_default(),
            examples: examples.into_iter().map(|e| (e.text, e.label)).collect(),
            // Of the words tried on AG News with SmolLM2 (Label, Topic, Category), the general one that it answers best.
            ask: "Category:".to_owned(),
            answers: labels,
        })
    }
}

/// Classifies by a language model's likelihoods.
async fn choose(
    state: &AppState,
    name: String,
    texts: Vec<Text>,
    choice: Choice,
    top_k: Option<usize>,
    may_cut: bool,
) -> Result<Json<ClassifyAnswer>, ApiError> {
    check_count(state, texts.len(), "input")?;
    let options = choice.options()?;
    let loaded = state.registry.get(&name).await?;
    if matches!(loaded.kind, LoadedKind::Classifier { .. }) {
        return Err(ApiError::field(
            "labels",
            format!("`{}` is a classifier and has labels of its own; leave `labels` out.", shorten(&name)),
        ));
    }
    if let Some(i) = texts.iter().position(|t| t.pair.is_some()) {
        let field = format!("input[{i}].text_pair");
        return Err(ApiError::field(field.clone(), format!("`{field}`: pairs are for classifiers; write both into one text.")));
    }
    let language = language_of(&loaded)?;
    let_in(&language)?;
    let around = match (options.examples.is_empty(), options.instruction.is_empty()) {
        (false, _) => "examples",
        (true, false) => "instruction",
        (true, true) => "labels",
    };
    let prior = options.prior(state, &language, around).await?;
    let one = |(i, text): (usize, Text)| {
        let (options, language, prior) = (&options, &language, &prior);
        async move { options.choose(state, language, &text.text, prior, may_cut, &format!("input[{i}]")).await }
    };
    let chosen: Vec<_> = futures::stream::iter(texts.into_iter().enumerate().map(one)).buffered(TEXTS_SIDE_BY_SIDE).try_collect().await?;
    let tokens = chosen.iter().map(|c| c.tokens).sum();
    let one = |(i, c): (usize, &Chosen)| one_of(&options.answers, &c.probabilities, &ranked(&c.probabilities), i, top_k);
    let data = chosen.iter().enumerate().map(one).collect();
    let truncated_inputs = chosen.iter().filter(|c| c.truncated).count();
    Ok(Json(ClassifyAnswer {
        object: "list",
        model: name,
        data,
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens, truncated_inputs },
    }))
}

/// The name to answer with: the adapter's where one is given, which must stand on the model that is named beside it.
pub async fn model_name(state: &AppState, model: Option<String>, adapter: Option<String>) -> Result<String, ApiError> {
    match (model, adapter) {
        (None, None) => Err(ApiError::field("model", "`model` is missing; `GET /v1/models` lists what there is.")),
        (Some(name), _) if name.is_empty() => Err(named_empty("model")),
        (_, Some(name)) if name.is_empty() => Err(named_empty("adapter_id")),
        (Some(name), None) | (None, Some(name)) => Ok(name),
        (Some(model), Some(adapter)) if model == adapter => Ok(adapter),
        (Some(model), Some(adapter)) => {
            let base = base_of(state, &adapter).await?;
            let same = |a: &str, b: &str| {
                a == b
                    || tunesmith_hub::find_in_catalogue(a)
                        .is_some_and(|e| tunesmith_hub::find_in_catalogue(b).is_some_and(|f| e.name == f.name))
            };
            match same(&base, &model) {
                true => Ok(adapter),
                false => {
                    let message =
                        format!("The adapter `{}` stands on `{}`, not on `{}`.", shorten(&adapter), shorten(&base), shorten(&model));
                    Err(ApiError::field("adapter_id", message))
                }
            }
        }
    }
}

/// Of a field that should name a model.
pub fn named_empty(field: &str) -> ApiError {
    ApiError::field(field, format!("`{field}` is empty; `GET /v1/models` lists what there is."))
}

async fn base_of(state: &AppState, adapter: &str) -> Result<String, ApiError> {
    match state.store.adapter(adapter).await {
        Ok(row) => return Ok(row.base_model),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match state.store.model(adapter).await {
        Ok(row) => Ok(row.base_name),
        Err(StoreError::NotFound { .. }) => Err(ApiError::model_not_found(adapter).with_param("adapter_id")),
        Err(error) => Err(error.into()),
    }
}

/// The field `input`: a text, a pair, or a list of these.
#[derive(Debug)]
struct Input(Vec<Text>);

/// A pair of texts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Pair {
    /// The first text.
    text: String,
    /// The second.
    text_pair: Option<String>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = Input;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, {\"text\", \"text_pair\"}, or a list of these")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                One.visit_str(text).map(|one: Text| Input(vec![one]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Input, A::Error> {
                One.visit_map(map).map(|one| Input(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element_seed(One)? {
                    texts.push(text);
                }
                Ok(Input(texts))
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

/// One item of the input.
struct One;

impl<'de> Visitor<'de> for One {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or {\"text\", \"text_pair\"}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text { text: text.to_owned(), pair: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
        let pair = Pair::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Text { text: pair.text, pair: pair.text_pair })
    }
}

impl<'de> de::DeserializeSeed<'de> for One {
    type Value = Text;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn input_schema() -> RefOr<Schema> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let one: RefOr<Schema> = OneOfBuilder::new().item(text()).item(Pair::schema()).into();
    OneOfBuilder::new().item(text()).item(Pair::schema()).item(ArrayBuilder::new().items(one).min_items(Some(1))).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> Vec<(String, Option<String>)> {
        let input: Input = serde_json::from_str(json).unwrap();
        input.0.into_iter().map(|t| (t.text, t.pair)).collect()
    }

    #[test]
    fn every_shape_of_input_is_read() {
        let text = |t: &str| (t.to_owned(), None);
        assert_eq!(read(r#""a""#), [text("a")]);
        assert_eq!(read(r#"["a","b"]"#), [text("a"), text("b")]);
        assert_eq!(read(r#"{"text":"a","text_pair":"b"}"#), [("a".to_owned(), Some("b".to_owned()))]);
        assert_eq!(read(r#"["a",{"text":"b"}]"#), [text("a"), text("b")]);
    }

    #[test]
    fn other_shapes_are_told_what_is_wanted() {
        for wrong in ["7", "[7]", "[[\"a\"]]", r#"{"txt":"a"}"#, "null"] {
            let message = serde_json::from_str::<Input>(wrong).unwrap_err().to_string();
            assert!(message.contains("text"), "{wrong}: {message}");
        }
    }
}
