//! GGUF files: a checked parser, dequantisation, and the Hugging Face folder that one amounts to.
//!
//! `tunesmith-ml` reads models through it: configuration, tokenizer and tensors in the names and the order of rows that
//! `transformers` gives them, so that one loader serves both kinds of file. A GGUF file is untrusted input: nothing here panics on one.
#![forbid(unsafe_code)]

mod config;
mod dequantise;
mod error;
mod file;
mod hf;
mod k_quants;
mod kind;
mod names;
mod reader;
mod rope;
mod tokenizer;
mod value;

pub use error::{GgufError, Result, short};
pub use file::{GgufFile, TensorInfo};
pub use hf::RawTensor;
pub use kind::Kind;
pub use value::Value;
