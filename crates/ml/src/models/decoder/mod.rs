//! Decoders: GPT-2 and the rotary families (Llama, Mistral, Qwen, Gemma) by one model that its configuration shapes.

mod block;
mod config;
mod load;
mod model;
mod names;
mod rope_config;
mod save;

pub use config::{DecoderConfig, DecoderFamily, LayerKind};
pub use load::{DecoderBase, is_decoder};
pub use model::Decoder;
pub use save::{save_decoder, save_language_tokenizer};
