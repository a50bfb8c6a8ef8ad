//! The generation engine over a model whose weights kept the blocks of its GGUF file: the answers of its dequantised weights as far as
//! int8 activations allow, and the same bits alone, in a crowd, after giving way and over shared beginnings.
#![allow(clippy::unwrap_used)]

mod bits;
mod quantised;
mod real;
mod tiny;
#[path = "../../../gguf/tests/writer/mod.rs"]
mod writer;
