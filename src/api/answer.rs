//! From texts and a model's name to one row of scores, or one vector, for each text.
//!
//! `/v1/classify`, `/v1/embeddings` and the routes in TEI's form share it: load the model, tokenise off the async threads, queue
//! the rows, wait. A row's answer depends on nothing but the row.

use std::sync::Arc;

use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{ServedClassifier, ServedEncoder, finish_vector, sigmoid, softmax};
use tunesmith_ml::spec::ProblemType;
use tunesmith_ml::text::{Encoded, TextTokenizer, check_ids};

use super::error::{ApiError, shorten};
use super::passages::Passage;
use super::state::AppState;
use crate::serve::{Batcher, Question};

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
    check_count(state, texts.len(), reading.field)?;
    let model = state.registry.get(name).await?;
    let (classifier, batcher) = model.classifier()?;
    let (field, truncate) = (reading.field, reading.truncate);
    let read = move |tokenizer: &TextTokenizer, text: &Text, i: usize| {
        tokenizer.encode(&text.text, text.pair.as_deref()).map_err(|e| unreadable(&e, field, i))
    };
    let rows = encode(classifier.encoder.clone(), texts, truncate, field, read).await?;
    let (tokens, truncated) = (tokens_of(&rows), truncated_of(&rows));
    let logits = ask(batcher, &Question::Logits(classifier.clone()), rows).await?;
    let rows = logits.iter().map(|row| scale(classifier, row, reading.scale)).collect();
    Ok(Scored { classifier: classifier.clone(), rows, tokens, truncated })
}

/// How vectors are wanted.
pub struct Wanted {
    /// Cut what is too long; otherwise it is an error.
    pub truncate: bool,
    /// The field of the request with the texts, for errors.
    pub field: &'static str,
    /// A prompt of the model's, put before each text [default: the model's own, if it has one].
    pub prompt_name: Option<String>,
    /// Whether vectors are brought to length 1 [default: as the model's files say].
    pub normalize: Option<bool>,
    /// How many numbers of each vector, from its beginning [default: all].
    pub dimensions: Option<usize>,
}

/// What an encoder made of the texts.
pub struct Vectors {
    /// One for each text.
    pub rows: Vec<Vec<f32>>,
    /// Tokens that were read.
    pub tokens: usize,
    /// Texts that were cut.
    pub truncated: usize,
}

/// The vectors of all texts by the model of that name.
pub async fn vectors(state: &AppState, name: &str, texts: Vec<Passage>, wanted: Wanted) -> Result<Vectors, ApiError> {
    let field = wanted.field;
    check_count(state, texts.len(), field)?;
    let empty = |text: &Passage| matches!(text, Passage::Text(t) if t.is_empty()) || matches!(text, Passage::Tokens(t) if t.is_empty());
    if let Some(i) = texts.iter().position(empty) {
        return Err(ApiError::field(format!("{field}[{i}]"), format!("`{field}[{i}]` is empty, and an empty text has no vector.")));
    }
    let model = state.registry.get(name).await?;
    let (encoder, batcher) = model.encoder()?;
    let recipe = encoder.base.recipe().map_err(|e| ApiError::field("model", format!("`{}` makes no vectors: {e}.", shorten(name))))?;
    if let Some(n) = wanted.dimensions.filter(|n| !(1..=recipe.dimensions()).contains(n)) {
        let most = recipe.dimensions();
        return Err(ApiError::field("dimensions", format!("`dimensions` is {n}; the model's vectors have 1 to {most}.")));
    }
    let Some(prompt) = recipe.prompt(wanted.prompt_name.as_deref()) else {
        let known: Vec<&str> = recipe.prompt_names().collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        let message =
            format!("`prompt_name` is `{}`, which the model does not have: {known}.", shorten(&wanted.prompt_name.unwrap_or_default()));
        return Err(ApiError::field("prompt_name", message));
    };
    let prompt_tokens = match prompt {
        "" => 0,
        prompt if recipe.leaves_prompt_out() => {
            let (pieces, _) = encoder.tokenizer().pieces(prompt, None).map_err(|e| ApiError::internal(&e))?;
            pieces.len() - usize::from(pieces.last().is_some_and(|p| p.special))
        }
        _ => 0,
    };
    let (prompt, lower_case, vocabulary) = (prompt.to_owned(), recipe.lower_case, encoder.base.config().vocab_size);
    let read = move |tokenizer: &TextTokenizer, text: &Passage, i: usize| match text {
        Passage::Text(text) => {
            let text = format!("{prompt}{text}");
            let text = if lower_case { text.to_lowercase() } else { text };
            tokenizer.encode(&text, None).map_err(|e| unreadable(&e, field, i))
        }
        Passage::Tokens(ids) => {
            check_ids(ids, vocabulary).map_err(|e| unreadable(&e, field, i))?;
            let kept = ids.len().min(tokenizer.max_length());
            Ok(Encoded { ids: ids[..kept].to_vec(), type_ids: vec![0; kept], truncated: ids.len() - kept })
        }
    };
    let rows = encode(encoder.clone(), texts, wanted.truncate, field, read).await?;
    let (tokens, truncated) = (tokens_of(&rows), truncated_of(&rows));
    let answers = ask(batcher, &Question::Vectors { encoder: encoder.clone(), prompt_tokens }, rows).await?;
    let normalize = wanted.normalize.unwrap_or(recipe.normalize);
    let rows = answers.into_iter().map(|row| finish_vector(row, wanted.dimensions, normalize)).collect();
    Ok(Vectors { rows, tokens, truncated })
}

fn tokens_of(rows: &[Encoded]) -> usize {
    rows.iter().map(|row| row.ids.len()).sum()
}

fn truncated_of(rows: &[Encoded]) -> usize {
    rows.iter().filter(|row| row.truncated > 0).count()
}

/// Queues the rows and waits for all of them.
async fn ask(batcher: &Batcher, question: &Question, rows: Vec<Encoded>) -> Result<Vec<Vec<f32>>, ApiError> {
    let waiting = batcher.submit(question, rows).map_err(|full| ApiError::queue_full(full.to_string(), 1))?;
    let mut answers = Vec::with_capacity(waiting.len());
    for row in waiting {
        // The sender is gone only when the model's thread has ended.
        answers.push(row.await.map_err(|_| ApiError::shutting_down())?.map_err(|e| ApiError::internal(&e))?);
    }
    Ok(answers)
}

/// Refuses none, and more texts than a request may have.
pub fn check_count(state: &AppState, texts: usize, field: &str) -> Result<(), ApiError> {
    let most = state.config.budgets.classify_inputs;
    match texts {
        0 => Err(ApiError::field(field, format!("`{field}` is empty; send at least one text."))),
        n if n > most => {
            Err(ApiError::field(field, format!("`{field}` has {n} texts; a request takes at most {most} (budgets.classify_inputs).")))
        }
        _ => Ok(()),
    }
}

/// Tokenises off the async threads, one text after another: a request must not take every core from training.
async fn encode<T: Send + 'static>(
    encoder: Arc<ServedEncoder>,
    texts: Vec<T>,
    truncate: bool,
    field: &'static str,
    read: impl Fn(&TextTokenizer, &T, usize) -> Result<Encoded, ApiError> + Send + 'static,
) -> Result<Vec<Encoded>, ApiError> {
    let work = move || {
        let tokenizer = encoder.tokenizer();
        let mut rows = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let row = read(tokenizer, text, i)?;
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
