//! Decoders in serving: the base model with its tokenizer, and the adapters that stand on it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tunesmith_ops::allocator::return_freed_pages;
use tunesmith_ops::matmul::Precision;

use super::constraint::{Constraint, Grammar, Grammars};
use super::page_pool::Owner;
use crate::error::{MlError, Result};
use crate::models::decoder::{Decoder, DecoderBase, DecoderConfig};
use crate::nn::Adapter;
use crate::peft::AdapterFacts;
use crate::text::LanguageTokenizer;

/// A decoder with its tokenizer, packed for serving.
pub struct ServedDecoder {
    base: DecoderBase,
    tokenizer: LanguageTokenizer,
    grammars: OnceLock<Grammars>,
    bytes: usize,
}

/// An adapter of a decoder.
pub struct ServedAdapter {
    /// The base, shared with others.
    pub base: Arc<ServedDecoder>,
    /// Its number, by which the prefix cache knows it.
    pub owner: Owner,
    /// Its updates.
    pub adapter: Adapter,
    /// What it says of itself.
    pub facts: AdapterFacts,
    /// What a user should know of it.
    pub warnings: Vec<String>,
}

impl ServedDecoder {
    /// Loads the decoder of a Hugging Face folder, with matrices in bf16 where the file has them so and in f32 else, or of a GGUF file
    /// with the blocks that it has.
    ///
    /// # Errors
    /// If neither is there, or the model or its tokenizer is not supported.
    pub fn load(path: &Path) -> Result<Self> {
        let mut base = DecoderBase::load_to_serve(path)?;
        base.decoder.pack(Precision::F32, false)?;
        let tokenizer = LanguageTokenizer::read(base.weights(), path, base.decoder.config.vocab_size)?;
        let bytes = base.decoder.bytes();
        return_freed_pages();
        Ok(Self { base, tokenizer, grammars: OnceLock::new(), bytes })
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.base.decoder
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.base.decoder.config
    }

    /// The model as loaded, for adapters.
    pub fn base(&self) -> &DecoderBase {
        &self.base
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &LanguageTokenizer {
        &self.tokenizer
    }

    /// Longest sequence, prompt and answer together.
    pub fn max_length(&self) -> usize {
        self.config().max_positions
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes of text that a token stands for; none for a special one unless they are to be shown.
    pub fn bytes_of(&self, id: u32, show_special: bool) -> &[u8] {
        self.tokenizer.bytes_of(id, show_special)
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &BTreeSet<u32> {
        self.tokenizer.end_tokens()
    }

    /// A constraint for one answer.
    ///
    /// # Errors
    /// If the grammar is malformed or not supported.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        let grammars = match self.grammars.get() {
            Some(grammars) => grammars,
            None => {
                let end = self.end_tokens().first().copied();
                let end = end.ok_or_else(|| MlError::Tokenizer("the model names no end token, so no grammar can end".to_owned()))?;
                let made = Grammars::new(self.tokenizer.token_bytes(), end)?;
                self.grammars.get_or_init(|| made)
            }
        };
        grammars.compile(grammar)
    }
}

/// Numbers of adapters; 0 is the base itself.
static NEXT_OWNER: AtomicU64 = AtomicU64::new(1);

impl ServedAdapter {
    /// The adapter in a PEFT folder.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] if it does not fit the base.
    pub fn load(base: Arc<ServedDecoder>, folder: &Path) -> Result<Self> {
        let loaded = crate::peft::load_language_adapter(folder, base.base())?;
        let mut adapter = loaded.adapter;
        adapter.pack(false)?;
        Ok(Self { base, owner: NEXT_OWNER.fetch_add(1, Ordering::Relaxed), adapter, facts: loaded.facts, warnings: loaded.warnings })
    }

    /// Bytes of what it does not share.
    pub fn bytes(&self) -> usize {
        self.adapter.bytes()
    }
}
