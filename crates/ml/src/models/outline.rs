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

    fn of_decoder(config: &DecoderConfig) -> Self {
        let (embeddings, output) = config.vocabulary_names();
        let mut others: Vec<_> = embeddings.into_iter().map(|name| (name, EMBEDDING)).collect();
        others.push((output.to_owned(), OUTPUT));
        Self { encoder: None, max_tokens: config.max_positions, linears: config.linear_names(), others }
    }

    fn of_encoder(config: &EncoderConfig) -> Self {
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
}
