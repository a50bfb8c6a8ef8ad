//! From text to token ids.

mod language;
mod tokenize;

pub use language::LanguageTokenizer;
pub use tokenize::{Encoded, TextTokenizer, TokenPiece, by_tokens};

use crate::error::{MlError, Result};

/// Checks that token ids from outside fit a model's vocabulary.
///
/// # Errors
/// [`MlError::Format`] naming the first id that is beyond it.
pub fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(MlError::Format(format!("token id {id} is beyond the vocabulary of {vocabulary}"))),
        None => Ok(()),
    }
}
