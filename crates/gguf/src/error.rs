//! What can be wrong with a GGUF file, in words that name the place.

use std::path::PathBuf;

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not a whole GGUF file.
    #[error("{path}: not a whole GGUF file: {what}")]
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

/// Results of this crate.
pub type Result<T> = std::result::Result<T, GgufError>;

pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(GgufError::Unsupported(what.into()))
}
