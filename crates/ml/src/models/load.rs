//! Encoders from Hugging Face folders: names with or without the family's prefix, and BERT's old norm names.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::config::{EncoderConfig, Family};
use super::encoder::{Block, Encoder, LINEARS_PER_BLOCK};
use super::outline::Outline;
use super::weights::{WeightFile, short};
use crate::error::{MlError, Result};
use crate::nn::{Attention, Dropout, Embedding, LayerNorm, Linear, Param};

/// An encoder as loaded, and what else its file holds.
pub struct BaseModel {
    /// The encoder.
    pub encoder: Encoder,
    /// The folder that it came from.
    pub folder: PathBuf,
    weights: WeightFile,
    device: Device,
}

/// Loads the encoder of a Hugging Face folder in f32.
///
/// # Errors
/// If the architecture is not supported, or a tensor is missing or misshapen.
pub fn load_base(folder: &Path, device: &Device) -> Result<BaseModel> {
    let config = EncoderConfig::read(folder)?;
    let weights = WeightFile::open_folder(folder)?;
    if let Some(warning) = Outline::of_encoder(&config).unused_layers(weights.names()) {
        tracing::warn!(model = short(folder), "{warning}");
    }
    let reader = Reader { config: &config, weights: &weights, device };
    let encoder = reader.encoder().map_err(|e| match e {
        MlError::Format(message) => MlError::Format(format!("{}: {message}", short(folder))),
        other => other,
    })?;
    Ok(BaseModel { encoder, folder: folder.to_owned(), weights, device: device.clone() })
}

impl BaseModel {
    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The label names in the configuration, in the order of their ids; empty if there are none.
    pub fn labels(&self) -> Vec<String> {
        label_names(&self.encoder.config.raw)
    }

    /// A tensor of the head, where the file holds it in that shape.
    pub fn head_tensor(&self, module: &str, part: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let name = format!("{module}.{part}");
        match find(&self.weights, self.encoder.config.family, &name) {
            Some(found) if self.weights.shape(&found)?.as_deref() == Some(shape) => {
                Ok(Some(self.weights.get(&found, shape, &self.device)?))
            }
            _ => Ok(None),
        }
    }

    /// Full names of the encoder's tensors, as `transformers` writes them.
    pub fn encoder_tensor_names(&self) -> Vec<String> {
        self.encoder.params().map(|p| p.name.clone()).collect()
    }

    /// A tensor of the encoder by its full name, read from the file again.
    pub fn reread(&self, name: &str) -> Result<Tensor> {
        let found =
            find(&self.weights, self.encoder.config.family, name).ok_or_else(|| MlError::Format(format!("tensor {name} is missing")))?;
        self.weights.get_any(&found, &self.device)
    }
}

/// The label names of a configuration's `id2label`, in the order of their ids.
pub fn label_names(config: &serde_json::Map<String, serde_json::Value>) -> Vec<String> {
    let Some(map) = config.get("id2label").and_then(|v| v.as_object()) else { return Vec::new() };
    (0..map.len()).map_while(|i| map.get(&i.to_string())?.as_str().map(str::to_owned)).collect()
}

/// The name under which a tensor stands in the file: full, without the prefix, or with BERT's first names of norms.
fn find(weights: &WeightFile, family: Family, name: &str) -> Option<String> {
    let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    let prefix = format!("{}.", family.prefix());
    [name, &old].into_iter().flat_map(|n| [Some(n), n.strip_prefix(&prefix)]).flatten().find(|n| weights.contains(n)).map(str::to_owned)
}

struct Reader<'a> {
    config: &'a EncoderConfig,
    weights: &'a WeightFile,
    device: &'a Device,
}

impl Reader<'_> {
    fn param(&self, name: &str, shape: &[usize]) -> Result<Param> {
        let name = format!("{}.{name}", self.config.family.prefix());
        let found = find(self.weights, self.config.family, &name).ok_or_else(|| MlError::Format(format!("tensor {name} is missing")))?;
        Ok(Param::new(name, self.weights.get(&found, shape, self.device)?))
    }

    fn linear(&self, id: usize, name: &str, out: usize, input: usize) -> Result<Linear> {
        let weight = self.param(&format!("{name}.weight"), &[out, input])?;
        Linear::new(id, weight, Some(self.param(&format!("{name}.bias"), &[out])?))
    }

    fn norm(&self, name: &str) -> Result<LayerNorm> {
        let n = [self.config.hidden];
        let (weight, bias) = (self.param(&format!("{name}.weight"), &n)?, self.param(&format!("{name}.bias"), &n)?);
        Ok(LayerNorm { weight, bias, eps: self.config.layer_norm_eps })
    }

    fn embedding(&self, name: &str, entries: usize) -> Result<Embedding> {
        Ok(Embedding::new(self.param(&format!("embeddings.{name}.weight"), &[entries, self.config.hidden])?))
    }

    fn encoder(&self) -> Result<Encoder> {
        let c = self.config;
        let token_type = if c.type_vocab_size > 0 { Some(self.embedding("token_type_embeddings", c.type_vocab_size)?) } else { None };
        Ok(Encoder {
            word: self.embedding("word_embeddings", c.vocab_size)?,
            position: self.embedding("position_embeddings", c.max_positions)?,
            token_type,
            norm: self.norm("embeddings.LayerNorm")?,
            dropout: Dropout { p: c.hidden_dropout, site: 0 },
            blocks: (0..c.layers).map(|i| self.block(i)).collect::<Result<_>>()?,
            config: c.clone(),
        })
    }

    fn block(&self, i: usize) -> Result<Block> {
        let c = self.config;
        let (h, wide) = (c.hidden, c.intermediate);
        let names = BlockNames::of(c.family, i);
        let linear = |j: usize, name: &str, out, input| self.linear(LINEARS_PER_BLOCK * i + j, name, out, input);
        let site = 1 + 4 * i as u32;
        // DistilBERT drops nothing between its attention's output and the norm.
        let attention_dropout = if c.family == Family::DistilBert { 0.0 } else { c.hidden_dropout };
        Ok(Block {
            query: linear(0, &names.query, h, h)?,
            key: linear(1, &names.key, h, h)?,
            value: linear(2, &names.value, h, h)?,
            attention: Attention::bidirectional(i, c.heads, h / c.heads, Dropout { p: c.attention_dropout, site }),
            attention_out: linear(3, &names.attention_out, h, h)?,
            attention_dropout: Dropout { p: attention_dropout, site: site + 1 },
            attention_norm: self.norm(&names.attention_norm)?,
            up: linear(4, &names.up, wide, h)?,
            act: c.act,
            down: linear(5, &names.down, h, wide)?,
            down_dropout: Dropout { p: c.hidden_dropout, site: site + 2 },
            out_norm: self.norm(&names.out_norm)?,
        })
    }
}

/// Full names of all blocks' linear layers, in the order of their numbers.
pub fn linear_names(config: &EncoderConfig) -> Vec<String> {
    let prefix = config.family.prefix();
    let block = |i| {
        let n = BlockNames::of(config.family, i);
        [n.query, n.key, n.value, n.attention_out, n.up, n.down].map(|name| format!("{prefix}.{name}"))
    };
    (0..config.layers).flat_map(block).collect()
}

/// Module names of a block.
struct BlockNames {
    query: String,
    key: String,
    value: String,
    attention_out: String,
    attention_norm: String,
    up: String,
    down: String,
    out_norm: String,
}

impl BlockNames {
    fn of(family: Family, i: usize) -> Self {
        let [query, key, value, attention_out, attention_norm, up, down, out_norm] = match family {
            Family::DistilBert => [
                "attention.q_lin",
                "attention.k_lin",
                "attention.v_lin",
                "attention.out_lin",
                "sa_layer_norm",
                "ffn.lin1",
                "ffn.lin2",
                "output_layer_norm",
            ]
            .map(|n| format!("transformer.layer.{i}.{n}")),
            Family::Bert | Family::Roberta => [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            ]
            .map(|n| format!("encoder.layer.{i}.{n}")),
        };
        Self { query, key, value, attention_out, attention_norm, up, down, out_norm }
    }
}
