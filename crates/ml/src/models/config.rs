//! `config.json` of the encoder families, in both spellings that transformers writes.

use std::path::Path;

use serde::Deserialize;

use super::weights::{read_json, short};
use crate::error::{MlError, Result};
use crate::nn::Act;

/// Encoder families; they differ in names, positions and heads, not in the layers' maths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Devlin et al. 2018.
    Bert,
    /// Sanh et al. 2019.
    DistilBert,
    /// Liu et al. 2019.
    Roberta,
}

impl Family {
    /// The prefix of the encoder's tensors in a model with a head.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::Roberta => "roberta",
        }
    }

    /// The class that `transformers` loads a classifier of this family with.
    pub fn classifier_class(self) -> &'static str {
        match self {
            Self::Bert => "BertForSequenceClassification",
            Self::DistilBert => "DistilBertForSequenceClassification",
            Self::Roberta => "RobertaForSequenceClassification",
        }
    }
}

/// What the layers need to know of a configuration.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// The family.
    pub family: Family,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the position embedding.
    pub max_positions: usize,
    /// Position of the first token: the pad id plus one for RoBERTa.
    pub position_offset: u32,
    /// Rows of the segment embedding; 0 where there is none.
    pub type_vocab_size: usize,
    /// The feed-forward layer's activation.
    pub act: Act,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Dropout after embeddings and in blocks.
    pub hidden_dropout: f32,
    /// Dropout of attention probabilities.
    pub attention_dropout: f32,
    /// Dropout in the head.
    pub classifier_dropout: f32,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// The whole file, for what is written back.
    pub raw: serde_json::Map<String, serde_json::Value>,
}

/// The fields that are read; both BERT's and DistilBERT's names.
#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(alias = "dropout", default = "tenth")]
    hidden_dropout_prob: f32,
    #[serde(alias = "attention_dropout", default = "tenth")]
    attention_probs_dropout_prob: f32,
    classifier_dropout: Option<f32>,
    seq_classif_dropout: Option<f32>,
    #[serde(default = "fiftieth")]
    initializer_range: f64,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    sinusoidal_pos_embds: bool,
    #[serde(default)]
    is_decoder: bool,
}

fn default_eps() -> f64 {
    1e-12
}

fn tenth() -> f32 {
    0.1
}

fn fiftieth() -> f64 {
    0.02
}

/// Sizes beyond these are no encoder that was ever published, but a file that would exhaust the memory.
const MAX_HIDDEN: usize = 16_384;
const MAX_LAYERS: usize = 256;
const MAX_VOCAB: usize = 4_000_000;

impl EncoderConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file is missing or malformed, or names an architecture that cannot be run.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            return Err(super::source::without_config(folder));
        }
        let raw = read_json(&path)?;
        let serde_json::Value::Object(map) = raw else {
            return Err(MlError::Format(format!("{}: expected a JSON object", short(&path))));
        };
        Self::from_map(map).map_err(|e| match e {
            MlError::Format(message) => MlError::Format(format!("{}: {message}", short(&path))),
            other => other,
        })
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// As [`EncoderConfig::read`].
    pub fn from_map(map: serde_json::Map<String, serde_json::Value>) -> Result<Self> {
        let family = match map.get("model_type").and_then(|v| v.as_str()) {
            Some("bert") => Family::Bert,
            Some("distilbert") => Family::DistilBert,
            Some("roberta") => Family::Roberta,
            other => return Err(MlError::Architecture { found: other.unwrap_or("no model_type").to_owned() }),
        };
        let raw: Raw = serde_json::from_value(map.clone().into()).map_err(|e| MlError::Format(e.to_string()))?;
        let fail = |message: String| Err(MlError::Format(message));
        if raw.position_embedding_type.as_deref().is_some_and(|t| t != "absolute") {
            return fail("position_embedding_type: only \"absolute\" is supported".to_owned());
        }
        if raw.is_decoder || raw.sinusoidal_pos_embds && family != Family::DistilBert {
            return fail("is_decoder: a decoder is not an encoder that can be fine-tuned here".to_owned());
        }
        for (name, value, limit) in [
            ("hidden_size", raw.hidden_size, MAX_HIDDEN),
            ("intermediate_size", raw.intermediate_size, 4 * MAX_HIDDEN),
            ("num_hidden_layers", raw.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", raw.num_attention_heads, MAX_HIDDEN),
            ("vocab_size", raw.vocab_size, MAX_VOCAB),
            ("max_position_embeddings", raw.max_position_embeddings, MAX_VOCAB),
        ] {
            if value == 0 || value > limit {
                return fail(format!("{name}: {value} is not between 1 and {limit}"));
            }
        }
        if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return fail(format!("hidden_size {} is not a multiple of num_attention_heads {}", raw.hidden_size, raw.num_attention_heads));
        }
        let position_offset = if family == Family::Roberta { raw.pad_token_id.unwrap_or(1) + 1 } else { 0 };
        let classifier_dropout = match family {
            Family::DistilBert => raw.seq_classif_dropout.unwrap_or(0.2),
            _ => raw.classifier_dropout.unwrap_or(raw.hidden_dropout_prob),
        };
        Ok(Self {
            family,
            vocab_size: raw.vocab_size,
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            intermediate: raw.intermediate_size,
            max_positions: raw.max_position_embeddings,
            position_offset,
            type_vocab_size: if family == Family::DistilBert { 0 } else { raw.type_vocab_size },
            act: Act::by_name(raw.hidden_act.as_deref().unwrap_or("gelu"))?,
            layer_norm_eps: if family == Family::DistilBert { 1e-12 } else { raw.layer_norm_eps },
            hidden_dropout: raw.hidden_dropout_prob,
            attention_dropout: raw.attention_probs_dropout_prob,
            classifier_dropout,
            initializer_range: raw.initializer_range,
            raw: map,
        })
    }

    /// Elements of the weights of all blocks' linear layers.
    pub fn linear_elements(&self) -> usize {
        self.layers * (4 * self.hidden * self.hidden + 2 * self.hidden * self.intermediate)
    }

    /// Tokens that fit into the position embedding.
    pub fn max_tokens(&self) -> usize {
        self.max_positions.saturating_sub(self.position_offset as usize).max(1)
    }
}
