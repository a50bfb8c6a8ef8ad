//! What a base's configuration says of it, without its weights: its kind, its limit, the names of its layers.
//!
//! Jobs are checked against it, in the server before they are filed and in the worker before a row is tokenised; it takes no longer
//! than reading one small file.

use std::path::Path;

use tunesmith_gguf::GgufFile;

use super::config::{EncoderConfig, Family};
use super::decoder::{DecoderConfig, is_decoder};
use super::head::head_modules;
use super::load::linear_names;
use super::source::gguf_of;
use crate::error::{MlError, Result};

/// A base as its configuration describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// The family of an encoder; nothing for a decoder.
    pub encoder: Option<Family>,
    /// Tokens of the longest sequence that it can read.
    pub max_tokens: usize,
    /// Full names of the linear layers that may get a low-rank update, in the order of their numbers.
    pub linears: Vec<String>,
    /// Full names of other modules that adapters elsewhere name, each with why it gets no update here.
    pub others: Vec<(String, &'static str)>,
}

const EMBEDDING: &str = "an embedding, and updates are for linear layers; `tuning.type` `full` trains it";
const OUTPUT: &str = "the output layer, which updates do not reach here; `tuning.type` `full` trains it";
const HEAD: &str = "a part of the head, which is trained whole; `tuning.modules_to_save` names its modules";

impl Outline {
    /// Reads config.json of a folder, or the header of a GGUF file.
    ///
    /// # Errors
    /// If there is none, it is malformed, or it names an architecture that cannot be run.
    pub fn read(path: &Path) -> Result<Self> {
        if let Some(file) = gguf_of(path) {
            let config = GgufFile::open(&file).and_then(|file| file.config_json()).map_err(|e| MlError::Format(e.to_string()))?;
            return Ok(Self::of_decoder(&DecoderConfig::from_map(config)?));
        }
        match is_decoder(path) {
            true => Ok(Self::of_decoder(&DecoderConfig::read(path)?)),
            false => Ok(Self::of_encoder(&EncoderConfig::read(path)?)),
        }
    }

    /// What to tell of a file with these tensors if it has layers beyond the configured ones: the model runs without them, and perhaps
    /// nobody meant it to.
    pub fn unused_layers<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<String> {
        let (list, last) = self.linears.last().and_then(|name| layer_of(name))?;
        // A file may leave out the family's prefix.
        let short = list.split_once('.').map_or("", |(_, rest)| rest);
        let layers = names.into_iter().filter_map(layer_of).filter(|(found, _)| *found == list || *found == short);
        let stored = layers.map(|(_, i)| i).max().filter(|stored| *stored > last)?;
        Some(format!(
            "The model's configuration has {} layers and its weights have {}; the last ones are not used. If that is not meant, correct the number of layers in config.json.",
            last + 1,
            stored + 1
        ))
    }

    pub(super) fn of_decoder(config: &DecoderConfig) -> Self {
        let (embeddings, output) = config.vocabulary_names();
        let mut others: Vec<_> = embeddings.into_iter().map(|name| (name, EMBEDDING)).collect();
        others.push((output.to_owned(), OUTPUT));
        Self { encoder: None, max_tokens: config.max_positions, linears: config.linear_names(), others }
    }

    pub(super) fn of_encoder(config: &EncoderConfig) -> Self {
        let family = config.family;
        let embeddings = ["word_embeddings", "position_embeddings", "token_type_embeddings"];
        let mut others: Vec<_> = embeddings.iter().map(|name| (format!("{}.embeddings.{name}", family.prefix()), EMBEDDING)).collect();
        let (dense, out) = head_modules(family);
        // `pooler` and `classifier` are modules too, of one layer or two.
        let modules = [dense, out].into_iter().flat_map(|name| [Some(name), name.rsplit_once('.').map(|(module, _)| module)]);
        others.extend(modules.flatten().map(|name| (name.to_owned(), HEAD)));
        Self { encoder: Some(family), max_tokens: config.max_tokens(), linears: linear_names(config), others }
    }
}

/// `model.layers` and 1 of `model.layers.1.mlp.up_proj`.
fn layer_of(name: &str) -> Option<(&str, usize)> {
    let (place, digits) = name
        .split('.')
        .scan(0, |at, part| {
            let place = *at;
            *at += part.len() + 1;
            Some((place, part))
        })
        .find(|(_, part)| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty())?;
    Some((name.get(..place.checked_sub(1)?)?, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::models::decoder::DecoderBase;
    use crate::models::load_base;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
    }

    #[test]
    fn the_layers_of_a_configuration_are_those_of_the_model() {
        for name in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
            let base = load_base(&fixture(name), &candle_core::Device::Cpu).unwrap();
            let outline = Outline::read(&fixture(name)).unwrap();
            assert_eq!(outline.linears, base.encoder.linears().map(|l| l.name().to_owned()).collect::<Vec<_>>(), "{name}");
            assert_eq!((outline.encoder, outline.max_tokens), (Some(base.encoder.config.family), base.encoder.config.max_tokens()));
        }
        for name in ["gpt2-tiny", "llama-tiny", "qwen2-tiny", "gemma3-tiny"] {
            let folder = fixture("decoders").join(name);
            let base = DecoderBase::load(&folder, &candle_core::Device::Cpu).unwrap();
            let outline = Outline::read(&folder).unwrap();
            assert_eq!(outline.linears, base.decoder.linears().map(|l| l.name().to_owned()).collect::<Vec<_>>(), "{name}");
            assert_eq!((outline.encoder, outline.max_tokens), (None, base.decoder.config.max_positions));
        }
    }

    #[test]
    fn layers_that_the_configuration_leaves_out_are_told() {
        for (name, prefix) in [("decoders/llama-tiny", "model.layers"), ("decoders/gpt2-tiny", "h"), ("bert-tiny", "bert.encoder.layer")] {
            let outline = Outline::read(&fixture(name)).unwrap();
            let layers = layer_of(outline.linears.last().unwrap()).unwrap().1 + 1;
            let told =
                |i: usize| outline.unused_layers([format!("{prefix}.{i}.x.weight").as_str(), "vision.layers.99.x", "lm_head.weight"]);
            assert_eq!(told(layers - 1), None, "{name}");
            assert!(told(layers + 1).unwrap().contains(&format!("has {layers} layers and its weights have {}", layers + 2)), "{name}");
        }
    }
}
