//! From texts and a model's name to one row of scores for each text.
//!
//! `/v1/classify` and the routes in TEI's form share it: load the model, tokenise off the async threads, queue the rows,
//! wait. A row's scores depend on nothing but the row.

use std::sync::Arc;

use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{ServedClassifier, sigmoid, softmax};
use tunesmith_ml::spec::ProblemType;
use tunesmith_ml::text::Encoded;

use super::error::ApiError;
use super::state::AppState;

/// A text, or two that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
    /// The second one.
    pub pair: Option<String>,
}

/// What a model made of the texts.
pub struct Scored {
    /// The model that answered.
    pub classifier: Arc<ServedClassifier>,
    /// For each text a number for each label: probabilities, or the value of a regression.
    pub rows: Vec<Vec<f64>>,
    /// Tokens that were read.
    pub tokens: usize,
    /// Texts that were cut.
    pub truncated: usize,
}

/// Whether scores are probabilities or as the model's last layer leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Between 0 and 1.
    Probabilities,
    /// Before softmax or sigmoid.
    Raw,
}

/// How texts are to be read.
pub struct Reading {
    /// Cut what is too long; otherwise it is an error.
    pub truncate: bool,
    /// The field of the request with the texts, for errors.
    pub field: &'static str,
    /// The numbers that are wanted.
    pub scale: Scale,
}

/// Answers all texts with the model of that name.
pub async fn score(state: &AppState, name: &str, texts: Vec<Text>, reading: Reading) -> Result<Scored, ApiError> {
    check_count(state, &texts, reading.field)?;
    let model = state.registry.get(name).await?;
    let (classifier, batcher) = model.classifier()?;
    let rows = encode(classifier.clone(), texts, &reading).await?;
    let tokens = rows.iter().map(|row| row.ids.len()).sum();
    let truncated = rows.iter().filter(|row| row.truncated > 0).count();
    let waiting = batcher.submit(classifier, rows).map_err(|full| ApiError::queue_full(full.to_string(), 1))?;
    let mut scored = Vec::with_capacity(waiting.len());
    for row in waiting {
        // The sender is gone only when the model's thread has ended.
        let logits = row.await.map_err(|_| ApiError::shutting_down())?.map_err(|e| ApiError::internal(&e))?;
        scored.push(scale(classifier, &logits, reading.scale));
    }
    let classifier = classifier.clone();
    Ok(Scored { classifier, rows: scored, tokens, truncated })
}

/// Refuses none, and more texts than a request may have.
pub fn check_count(state: &AppState, texts: &[Text], field: &str) -> Result<(), ApiError> {
    let most = state.config.budgets.classify_inputs;
    match texts.len() {
        0 => Err(ApiError::field(field, format!("`{field}` is empty; send at least one text."))),
        n if n > most => {
            Err(ApiError::field(field, format!("`{field}` has {n} texts; a request takes at most {most} (budgets.classify_inputs).")))
        }
        _ => Ok(()),
    }
}

/// Tokenises off the async threads, one text after another: a request must not take every core from training.
async fn encode(classifier: Arc<ServedClassifier>, texts: Vec<Text>, reading: &Reading) -> Result<Vec<Encoded>, ApiError> {
    let (truncate, field) = (reading.truncate, reading.field);
    let work = move || {
        let tokenizer = classifier.tokenizer();
        let mut rows = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let row = tokenizer.encode(&text.text, text.pair.as_deref()).map_err(|e| unreadable(&e, field, i))?;
            if row.truncated > 0 && !truncate {
                let (limit, over) = (tokenizer.max_length(), row.truncated);
                let message = format!(
                    "`{field}[{i}]` has {over} tokens more than the model's limit of {limit}; shorten it, or let it be cut with `truncate`."
                );
                return Err(ApiError::field(format!("{field}[{i}]"), message));
            }
            rows.push(row);
        }
        Ok(rows)
    };
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?
}

fn unreadable(error: &MlError, field: &str, index: usize) -> ApiError {
    ApiError::field(format!("{field}[{index}]"), format!("`{field}[{index}]` cannot be read: {error}."))
}

fn scale(classifier: &ServedClassifier, logits: &[f32], scale: Scale) -> Vec<f64> {
    let raw = || logits.iter().map(|x| f64::from(*x)).collect();
    match (scale, classifier.answer.problem_type) {
        (Scale::Raw, _) | (_, ProblemType::Regression) => raw(),
        (Scale::Probabilities, ProblemType::SingleLabelClassification) => softmax(logits),
        (Scale::Probabilities, ProblemType::MultiLabelClassification) => sigmoid(logits).into_iter().map(f64::from).collect(),
    }
}

/// The labels' places, best first; equal scores stay in the order of the ids.
pub fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_comes_first_and_equals_keep_their_order() {
        assert_eq!(ranked(&[0.2, 0.5, 0.2, 0.1]), [1, 0, 2, 3]);
        assert_eq!(ranked(&[]), [] as [usize; 0]);
    }
}
