//! Models, training and inference on packed rows, with explicit backward passes.
//!
//! The worker trains through [`train`], the server answers through [`infer`]. Nothing here knows of HTTP, SQL or tokio.
#![forbid(unsafe_code)]

pub use candle_core::Device;

pub mod device;
pub mod error;
pub mod eval;
pub mod infer;
pub mod models;
pub mod nn;
pub mod peft;
pub mod spec;
pub mod text;
pub mod train;

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
