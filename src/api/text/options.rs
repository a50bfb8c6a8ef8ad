//! A choice between given answers by a language model: how likely each is after the text, less how likely it is without one.
//!
//! The answer's own likelihood is measured on texts that say nothing and taken off (contextual calibration, Zhao et al. 2021),
//! or a model would go on choosing the word that it likes best.

use std::sync::Arc;

use super::likelihood::{Endings, Likelihoods, likelihoods};
use super::run::off_thread;
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::serve::{Language, PriorKey};

/// Texts that say nothing, those of the paper.
const SAY_NOTHING: [&str; 3] = ["N/A", "", "[MASK]"];

/// A question whose answers are given.
#[derive(Debug, Clone)]
pub struct Options {
    /// Told before everything else; may be empty.
    pub instruction: String,
    /// Texts with their answers.
    pub examples: Vec<(String, String)>,
    /// What stands between a text and its answer.
    pub ask: String,
    /// The answers.
    pub answers: Vec<String>,
}

/// What a model chose.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The probability of each answer; they sum to 1.
    pub probabilities: Vec<f64>,
    /// Tokens that were read for it.
    pub tokens: usize,
    /// Of these, tokens that were in the cache.
    pub cached: usize,
    /// Whether the text was cut.
    pub truncated: bool,
}

impl Options {
    fn endings(&self, text: &str) -> Endings {
        let mut prompt = String::new();
        if !self.instruction.is_empty() {
            prompt = format!("{}\n\n", self.instruction);
        }
        for (text, answer) in &self.examples {
            prompt.push_str(&format!("Text: {text}\n{} {answer}\n\n", self.ask));
        }
        prompt.push_str(&format!("Text: {text}\n{}", self.ask));
        Endings { prompt, texts: self.answers.iter().map(|a| format!(" {a}")).collect(), rendered: false }
    }

    /// The logarithm of each answer's probability where the text says nothing; computed once for a question and a model.
    ///
    /// # Errors
    /// As [`likelihoods`].
    pub async fn prior(&self, state: &AppState, language: &Arc<Language>, field: &str) -> Result<Vec<f64>, ApiError> {
        let key = PriorKey::of(&(&self.instruction, &self.examples, &self.ask, &self.answers)).map_err(ApiError::internal)?;
        language.priors.get_or(key, self.compute_prior(state, language, field)).await
    }

    async fn compute_prior(&self, state: &AppState, language: &Arc<Language>, field: &str) -> Result<Vec<f64>, ApiError> {
        let mut sum = vec![0.0; self.answers.len()];
        for text in SAY_NOTHING {
            let found = likelihoods(state, language, self.endings(text), field).await?;
            sum.iter_mut().zip(softmax(&found.logs)).for_each(|(sum, p)| *sum += p);
        }
        Ok(sum.into_iter().map(f64::ln).collect())
    }

    /// Chooses for a text. One that is too long is cut if it may be.
    ///
    /// # Errors
    /// As [`likelihoods`].
    pub async fn choose(
        &self,
        state: &AppState,
        language: &Arc<Language>,
        text: &str,
        prior: &[f64],
        may_cut: bool,
        field: &str,
    ) -> Result<Chosen, ApiError> {
        let (options, model, whole) = (self.clone(), language.clone(), text.to_owned());
        let text = off_thread(move || if may_cut { options.cut(&model, whole) } else { Ok((whole, false)) }).await?;
        let (text, truncated) = text;
        let found: Likelihoods = likelihoods(state, language, self.endings(&text), field).await?;
        let calibrated: Vec<f64> = found.logs.iter().zip(prior).map(|(log, prior)| log - prior).collect();
        Ok(Chosen {
            probabilities: softmax(&calibrated),
            tokens: found.prompt_tokens + found.ending_tokens,
            cached: found.cached_tokens,
            truncated,
        })
    }

    /// The beginning of a text that fits, and whether that is less than the text.
    fn cut(&self, language: &Language, text: String) -> Result<(String, bool), ApiError> {
        let tokenizer = language.model.tokenizer();
        let count = |text: &str| tokenizer.encode(text, true).map(|ids| ids.len()).map_err(ApiError::internal);
        let longest = self.answers.iter().map(|a| a.len()).max().unwrap_or(0);
        // An answer has no more tokens than bytes, and three more are for borders that tokens may cross.
        let around = count(&self.endings("").prompt)? + longest + 3;
        let room = language.generator.max_length().saturating_sub(around);
        let tokens = tokenizer.encode_with_offsets(&text, false).map_err(ApiError::internal)?;
        match tokens.get(room) {
            None => Ok((text, false)),
            Some((_, place)) => Ok((text[..text.floor_char_boundary(place.start)].to_owned(), true)),
        }
    }
}

/// Probabilities of logarithms.
fn softmax(logs: &[f64]) -> Vec<f64> {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = logs.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| e / sum).collect()
}
