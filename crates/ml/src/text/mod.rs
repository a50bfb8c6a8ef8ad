//! From text to token ids.

mod language;
mod tokenize;

pub use language::LanguageTokenizer;
pub use tokenize::{Encoded, TextTokenizer, TokenPiece, by_tokens};
