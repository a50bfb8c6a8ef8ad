//! The crate's one error type. Messages state the fact and the remedy; the API shows them to users as they are.

use std::path::PathBuf;

use tunesmith_gguf::short;

/// What can go wrong in reading, training or running a model.
#[derive(Debug, thiserror::Error)]
pub enum MlError {
    /// A tensor operation failed: a defect of ours, or a device that ran out of memory.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", short(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A model folder, an adapter or a state file does not hold what it should.
    #[error("{0}")]
    Format(String),
    /// The architecture is not one that can be run.
    #[error(
        "architecture {found:?} is not supported; supported: bert, distilbert, roberta, gpt2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text"
    )]
    Architecture {
        /// `model_type` of config.json.
        found: String,
    },
    /// An adapter does not fit its base.
    #[error("{0}")]
    AdapterMismatch(String),
    /// A setting contradicts the model or the data.
    #[error("{message}")]
    Setting {
        /// Path of the field in the request.
        param: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The loss or the gradient is not a number.
    #[error("{what} is not finite at step {step}; rows of the batch: {rows}")]
    NotFinite {
        /// "loss" or "gradient".
        what: &'static str,
        /// The optimiser step, from 1.
        step: u64,
        /// Line numbers of the batch's rows.
        rows: String,
    },
    /// What training has made of the weights is not a number.
    #[error("{what} not finite after step {step}: training has diverged")]
    Diverged {
        /// "the evaluation loss is" or "the trained weights are".
        what: &'static str,
        /// The optimiser step, from 1.
        step: u64,
    },
    /// Tokenisation failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The caller wanted something else before the rows were ready.
    #[error("interrupted")]
    Interrupted,
    /// The caller's hooks failed; training cannot go on.
    #[error("{0}")]
    Observer(String),
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, MlError>;

impl MlError {
    /// An I/O error with its file.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// A setting that cannot hold.
    pub fn setting(param: &str, message: impl Into<String>) -> Self {
        Self::Setting { param: param.into(), message: message.into() }
    }
}
