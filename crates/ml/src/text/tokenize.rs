//! Tokenisation with truncation that is counted, for training and serving alike.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use tokenizers::{Encoding, Tokenizer, TruncationParams};

use crate::error::{MlError, Result};
use crate::models::{read_json, short};

/// Texts up to this many bytes are tokenised whole. Of longer ones only as much as fills the model is read: a line of 16 MiB
/// would take most of a minute and gigabytes.
const WHOLE_BYTES: usize = 64 << 10;

/// No text is read beyond this many bytes, whether it has filled the model by then or not: only runs of spaces, and words
/// that are one unknown token, can be so long.
const MOST_BYTES: usize = 1 << 20;

/// More special tokens than any post-processor adds.
const SPECIAL_TOKENS: usize = 16;

/// A text as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids with special tokens.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
    /// Tokens that did not fit; beyond the first 64 KiB of a text their number is an estimate.
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

impl TokenPiece {
    pub(super) fn of(encoding: &Encoding) -> Vec<Self> {
        let piece = |i: usize| {
            let (special, (start, stop)) = (encoding.get_special_tokens_mask()[i] == 1, encoding.get_offsets()[i]);
            let [start, stop] = [start, stop].map(|place| (!special).then_some(place));
            Self { id: encoding.get_ids()[i], text: encoding.get_tokens()[i].clone(), special, start, stop }
        };
        (0..encoding.len()).map(piece).collect()
    }
}

/// A tokenizer with the model's length limit.
pub struct TextTokenizer {
    whole: Tokenizer,
    cut: Tokenizer,
    max_length: usize,
    /// Whether the model is told which text of a pair a token belongs to.
    segments: bool,
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
        let whole: Tokenizer = serde_json::from_value(json).map_err(|e| MlError::Tokenizer(format!("{}: {e}", short(&path))))?;
        if let Some((token, id)) = whole.get_vocab(true).into_iter().find(|(_, id)| *id as usize >= vocab_size) {
            return Err(MlError::Tokenizer(format!(
                "{}: token {token:?} has id {id}, but the model's vocabulary has {vocab_size} entries: this tokenizer belongs to another model",
                short(&path)
            )));
        }
        Self::new(whole, max_length, wants_segments(folder))
    }

    fn new(whole: Tokenizer, max_length: usize, segments: bool) -> Result<Self> {
        let mut cut = whole.clone();
        let params = TruncationParams { max_length, ..TruncationParams::default() };
        cut.with_truncation(Some(params)).map_err(|e| MlError::Tokenizer(e.to_string()))?;
        Ok(Self { whole, cut, max_length, segments })
    }

    /// The same tokenizer with another limit.
    pub fn with_max_length(&self, max_length: usize) -> Result<Self> {
        Self::new(self.whole.clone(), max_length, self.segments)
    }

    /// Longest sequence, with special tokens.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Encodes a text or a pair; what does not fit is cut from the longer of the two, as `transformers` does by default.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Encoded> {
        let (encoding, truncated) = self.cut_encoding(text, pair)?;
        let ids = encoding.get_ids().to_vec();
        let type_ids = if self.segments { encoding.get_type_ids().to_vec() } else { vec![0; ids.len()] };
        Ok(Encoded { ids, type_ids, truncated })
    }

    /// The tokens of a text with their places, and how many did not fit.
    pub fn pieces(&self, text: &str, pair: Option<&str>) -> Result<(Vec<TokenPiece>, usize)> {
        let (e, truncated) = self.cut_encoding(text, pair)?;
        Ok((TokenPiece::of(&e), truncated))
    }

    /// Encodes many texts on all threads, in order.
    pub fn encode_all<'a, T: Sync>(
        &self,
        rows: &'a [T],
        text: impl Fn(&'a T) -> (&'a str, Option<&'a str>) + Send + Sync,
    ) -> Result<Vec<Encoded>> {
        rows.par_iter().map(text).map(|(text, pair)| self.encode(text, pair)).collect()
    }

    fn run(&self, tokenizer: &Tokenizer, text: &str, pair: Option<&str>) -> Result<Encoding> {
        let encoding = match pair {
            Some(pair) => tokenizer.encode_char_offsets((text, pair), true),
            None => tokenizer.encode_char_offsets(text, true),
        };
        encoding.map_err(|e| MlError::Tokenizer(e.to_string()))
    }

    fn cut_encoding(&self, text: &str, pair: Option<&str>) -> Result<(Encoding, usize)> {
        let (text, mut beyond) = self.beginning(text)?;
        let pair = match pair {
            Some(pair) => {
                let (pair, more) = self.beginning(pair)?;
                beyond += more;
                Some(pair)
            }
            None => None,
        };
        let whole = self.run(&self.whole, text, pair)?;
        if whole.len() <= self.max_length {
            return Ok((whole, beyond));
        }
        let cut = self.run(&self.cut, text, pair)?;
        let truncated = whole.len() - cut.len();
        Ok((cut, truncated + beyond))
    }

    /// As much of a text as holds every token that can fit, and an estimate of the tokens in the rest.
    fn beginning<'t>(&self, text: &'t str) -> Result<(&'t str, usize)> {
        let mut bytes = WHOLE_BYTES.max(16 * self.max_length);
        while text.len() > bytes {
            let end = word_end(text, bytes);
            let tokens = self.run(&self.whole, &text[..end], None)?.len();
            if tokens > self.max_length + SPECIAL_TOKENS || bytes >= MOST_BYTES {
                let rest = (text.len() - end) as f64 * tokens as f64 / end as f64;
                return Ok((&text[..end], rest.ceil() as usize));
            }
            bytes = (bytes * 4).min(MOST_BYTES);
        }
        Ok((text, 0))
    }
}

/// Cuts rows of the given token counts into ranges of at most `limit` tokens; a row longer than that stands alone.
pub fn by_tokens(lengths: impl Iterator<Item = usize>, limit: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (row, tokens) in lengths.enumerate() {
        match batches.last_mut() {
            Some(batch) if filled + tokens <= limit => batch.end = row + 1,
            _ => {
                batches.push(row..row + 1);
                filled = 0;
            }
        }
        filled += tokens;
    }
    batches
}

/// Whether `model_input_names` of tokenizer_config.json lets segment ids reach the model, as in `transformers`, where a
/// tokenizer that does not list them gives none and the model takes every token for the first text's.
fn wants_segments(folder: &Path) -> bool {
    let path = folder.join("tokenizer_config.json");
    let config = if path.is_file() { read_json(&path).unwrap_or_default() } else { serde_json::Value::Null };
    config["model_input_names"].as_array().is_none_or(|names| names.iter().any(|n| n == "token_type_ids"))
}

/// Where to cut `text` at or before `bytes`: between words, unless the last word fills half of it.
fn word_end(text: &str, bytes: usize) -> usize {
    let end = text.floor_char_boundary(bytes);
    text[..end].rfind(char::is_whitespace).filter(|space| *space > end / 2).unwrap_or(end)
}
