//! Tokenisation with truncation that is counted, for training and serving alike.

use std::path::Path;

use rayon::prelude::*;
use tokenizers::{Encoding, Tokenizer, TruncationParams};

use crate::error::{MlError, Result};
use crate::models::read_json;

/// A text as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids with special tokens.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
    /// Tokens that did not fit.
    pub truncated: usize,
}

/// A token with its place in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPiece {
    /// Id in the vocabulary.
    pub id: u32,
    /// The token as the vocabulary spells it.
    pub text: String,
    /// Whether the tokenizer added it.
    pub special: bool,
    /// First character in the text (Unicode scalar values), where it stands for a part of the text.
    pub start: Option<usize>,
    /// Character after the last.
    pub stop: Option<usize>,
}

/// A tokenizer with the model's length limit.
pub struct TextTokenizer {
    whole: Tokenizer,
    cut: Tokenizer,
    max_length: usize,
}

impl TextTokenizer {
    /// Reads tokenizer.json; its own padding and truncation are dropped (MiniLM's pads to 128).
    ///
    /// # Errors
    /// If the file is missing or malformed, or holds ids beyond `vocab_size`.
    pub fn read(folder: &Path, max_length: usize, vocab_size: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let mut json = read_json(&path)?;
        json["padding"] = serde_json::Value::Null;
        json["truncation"] = serde_json::Value::Null;
        let whole: Tokenizer = serde_json::from_value(json).map_err(|e| MlError::Tokenizer(format!("{}: {e}", path.display())))?;
        if let Some((token, id)) = whole.get_vocab(true).into_iter().find(|(_, id)| *id as usize >= vocab_size) {
            return Err(MlError::Tokenizer(format!(
                "{}: token {token:?} has id {id}, but the model's vocabulary has {vocab_size} entries: this tokenizer belongs to another model",
                path.display()
            )));
        }
        Self::new(whole, max_length)
    }

    fn new(whole: Tokenizer, max_length: usize) -> Result<Self> {
        let mut cut = whole.clone();
        let params = TruncationParams { max_length, ..TruncationParams::default() };
        cut.with_truncation(Some(params)).map_err(|e| MlError::Tokenizer(e.to_string()))?;
        Ok(Self { whole, cut, max_length })
    }

    /// The same tokenizer with another limit.
    pub fn with_max_length(&self, max_length: usize) -> Result<Self> {
        Self::new(self.whole.clone(), max_length)
    }

    /// Longest sequence, with special tokens.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Encodes a text or a pair; what does not fit is cut from the longer of the two, as `transformers` does by default.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Encoded> {
        let (encoding, truncated) = self.cut_encoding(text, pair)?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), type_ids: encoding.get_type_ids().to_vec(), truncated })
    }

    /// The tokens of a text with their places, and how many did not fit.
    pub fn pieces(&self, text: &str, pair: Option<&str>) -> Result<(Vec<TokenPiece>, usize)> {
        let (e, truncated) = self.cut_encoding(text, pair)?;
        let pieces = e.get_ids().iter().zip(e.get_tokens()).zip(e.get_special_tokens_mask()).zip(e.get_offsets());
        let pieces = pieces.map(|(((id, token), special), (start, stop))| {
            let special = *special == 1;
            TokenPiece { id: *id, text: token.clone(), special, start: (!special).then_some(*start), stop: (!special).then_some(*stop) }
        });
        Ok((pieces.collect(), truncated))
    }

    /// Encodes many texts on all threads, in order.
    pub fn encode_all<'a, T: Sync>(
        &self,
        rows: &'a [T],
        text: impl Fn(&'a T) -> (&'a str, Option<&'a str>) + Sync,
    ) -> Result<Vec<Encoded>> {
        rows.par_iter().map(|row| text(row)).map(|(text, pair)| self.encode(text, pair)).collect()
    }

    fn cut_encoding(&self, text: &str, pair: Option<&str>) -> Result<(Encoding, usize)> {
        let run = |tokenizer: &Tokenizer| {
            let encoding = match pair {
                Some(pair) => tokenizer.encode_char_offsets((text, pair), true),
                None => tokenizer.encode_char_offsets(text, true),
            };
            encoding.map_err(|e| MlError::Tokenizer(e.to_string()))
        };
        let whole = run(&self.whole)?;
        if whole.len() <= self.max_length {
            return Ok((whole, 0));
        }
        let cut = run(&self.cut)?;
        let truncated = whole.len() - cut.len();
        Ok((cut, truncated))
    }
}
