//! What can be wrong with a GGUF file, in words that name the place.

use std::path::{Path, PathBuf};

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be read.
    #[error("{}: {source}", short(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not a whole GGUF file.
    #[error("{}: not a whole GGUF file: {what}", short(path))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The file is whole, but holds what cannot be read.
    #[error("GGUF: {0}")]
    Unsupported(String),
}

/// A path for messages, which may reach users who should learn nothing of the folders above a model's.
pub fn short(path: &Path) -> String {
    let mut parts: Vec<_> = path.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
    parts.reverse();
    parts.join("/")
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, GgufError>;

pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(GgufError::Unsupported(what.into()))
}
