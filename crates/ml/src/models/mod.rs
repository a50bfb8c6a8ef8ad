//! Models: encoders of the BERT, DistilBERT and RoBERTa families with a sequence classification head, and decoders.

mod config;
pub mod decoder;
mod encoder;
mod head;
mod init;
mod load;
mod outline;
mod save;
pub mod source;
mod weights;

pub use config::{EncoderConfig, Family};
pub use decoder::is_decoder;
pub use encoder::{BackwardPlan, Encoder};
pub use head::{Head, head_modules};
pub use init::{Stream, kaiming_uniform, normal};
pub use load::{BaseModel, label_names, load_base};
pub use outline::Outline;
pub use save::{FullModel, copy_tokenizer, save_full, write_json};
pub use weights::{WeightFile, read_json, short, write_safetensors};
