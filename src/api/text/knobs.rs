//! The settings of an answer that every route for text has, with their ranges.

use std::collections::BTreeMap;

use tunesmith_ml::infer::{Grammar, Sampling};

use super::stop::Stop;
use crate::api::error::{ApiError, shorten};

/// Settings as a request gives them.
#[derive(Debug, Default)]
pub struct Knobs {
    /// `temperature`.
    pub temperature: Option<f32>,
    /// `top_p`.
    pub top_p: Option<f32>,
    /// `top_k`.
    pub top_k: Option<i64>,
    /// `min_p`.
    pub min_p: Option<f32>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f32>,
    /// `presence_penalty`.
    pub presence_penalty: Option<f32>,
    /// `frequency_penalty`.
    pub frequency_penalty: Option<f32>,
    /// `logit_bias`.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// `seed`.
    pub seed: Option<i64>,
    /// `stop`.
    pub stop: Option<Stop>,
    /// `n`.
    pub n: Option<i64>,
    /// `max_tokens` under whatever name.
    pub max_tokens: Option<i64>,
    /// The name of that field.
    pub max_tokens_field: &'static str,
    /// The least that it may be.
    pub least_tokens: i64,
}

/// Settings that can be used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Answers.
    pub n: usize,
    /// Most tokens of each; absent: as many as fit.
    pub max_tokens: Option<usize>,
    /// What answers keep to.
    pub format: Option<AnswerFormat>,
}

/// What an answer keeps to.
#[derive(Debug, Clone)]
pub struct AnswerFormat {
    /// The grammar.
    pub grammar: Grammar,
    /// The field of the request that asks for it.
    pub field: &'static str,
}

fn within(name: &'static str, value: Option<f32>, low: f32, high: f32, default: f32) -> Result<f32, ApiError> {
    match value {
        None => Ok(default),
        Some(v) if (low..=high).contains(&v) => Ok(v),
        Some(v) => Err(ApiError::field(name, format!("`{name}` is {v}; it must be between {low} and {high}."))),
    }
}

fn whole(name: &'static str, value: i64, low: i64, high: i64) -> Result<usize, ApiError> {
    match (low..=high).contains(&value) {
        true => Ok(value as usize),
        false => Err(ApiError::field(name, format!("`{name}` is {value}; it must be between {low} and {high}."))),
    }
}

impl Knobs {
    /// Checks every range.
    pub fn settings(self) -> Result<Settings, ApiError> {
        let top_k = match self.top_k {
            None | Some(-1 | 0) => None,
            Some(k) => Some(whole("top_k", k, 1, i64::from(u32::MAX))?),
        };
        let repetition_penalty = within("repetition_penalty", self.repetition_penalty, 0.01, 100.0, 1.0)?;
        let sampling = Sampling {
            temperature: within("temperature", self.temperature, 0.0, 2.0, 1.0)?,
            top_p: within("top_p", self.top_p, 0.0, 1.0, 1.0)?,
            top_k,
            min_p: within("min_p", self.min_p, 0.0, 1.0, 0.0)?,
            repetition_penalty,
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0)?,
            logit_bias: bias(self.logit_bias.unwrap_or_default())?,
            // Two requests without a seed get different answers.
            seed: self.seed.map_or_else(|| uuid::Uuid::now_v7().as_u128() as u64, |s| s as u64),
        };
        let max_tokens = match self.max_tokens {
            None => None,
            Some(n) => Some(whole(self.max_tokens_field, n, self.least_tokens, i64::from(u32::MAX))?),
        };
        Ok(Settings {
            sampling,
            stop: self.stop.unwrap_or_default().checked()?,
            n: whole("n", self.n.unwrap_or(1), 1, 128)?,
            max_tokens,
            format: None,
        })
    }
}

fn bias(given: BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    if given.len() > 1024 {
        return Err(ApiError::field("logit_bias", "`logit_bias` takes at most 1024 tokens."));
    }
    let one = |(id, value): (String, f32)| {
        let wrong = |what: &str| ApiError::field("logit_bias", format!("`logit_bias`: {what}."));
        let token = id.parse::<u32>().map_err(|_| wrong(&format!("`{}` is no token id", shorten(&id))))?;
        match (-100.0..=100.0).contains(&value) {
            true => Ok((token, value)),
            false => Err(wrong(&format!("the bias {value} of token {token} is not between -100 and 100"))),
        }
    };
    given.into_iter().map(one).collect()
}
