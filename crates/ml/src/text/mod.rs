//! From text to token ids.

mod tokenize;

pub use tokenize::{Encoded, TextTokenizer, TokenPiece, by_tokens};
