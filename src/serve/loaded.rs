//! A model in memory, and what it can be asked: a classifier for scores, any encoder for vectors, a language model for text.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tunesmith_chat::ChatTemplate;
use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{ServedAdapter, ServedBase, ServedClassifier, ServedDecoder, ServedEncoder};
use tunesmith_ml::text::TokenPiece;

use super::batcher::Batcher;
use super::generator::Generator;
use super::priors::Priors;
use super::registry::ServeError;

/// A model that answers.
pub struct Loaded {
    /// What it can be asked.
    pub kind: LoadedKind,
    /// The registry's clock at the last use.
    pub(super) used: AtomicU64,
    /// The second in which its name was last looked up.
    pub(super) checked: AtomicU64,
}

/// What a model can be asked.
pub enum LoadedKind {
    /// For scores of labels.
    Classifier {
        /// The classifier.
        classifier: Arc<ServedClassifier>,
        /// Its base's queue.
        batcher: Arc<Batcher>,
    },
    /// For vectors: an encoder without a classifier.
    Encoder {
        /// The encoder.
        encoder: Arc<ServedEncoder>,
        /// Its base's queue.
        batcher: Arc<Batcher>,
    },
    /// For text.
    Language(Language),
}

/// A language model, or an adapter of one.
#[derive(Clone)]
pub struct Language {
    /// The base.
    pub model: Arc<ServedDecoder>,
    /// The adapter on it.
    pub adapter: Option<Arc<ServedAdapter>>,
    /// The base's engine.
    pub generator: Arc<Generator>,
    /// How conversations are spelled for it, or what is wrong with the template that should say it; texts do without.
    pub template: Option<Result<Arc<ChatTemplate>, String>>,
    /// How likely it finds answers before it sees a text.
    pub priors: Arc<Priors>,
}

impl Loaded {
    pub(super) fn new(kind: LoadedKind) -> Self {
        Self { kind, used: AtomicU64::new(0), checked: AtomicU64::new(u64::MAX) }
    }

    /// The classifier.
    ///
    /// # Errors
    /// If it has none.
    pub fn classifier(&self) -> Result<(&Arc<ServedClassifier>, &Arc<Batcher>), ServeError> {
        match &self.kind {
            LoadedKind::Classifier { classifier, batcher } => Ok((classifier, batcher)),
            LoadedKind::Encoder { .. } => {
                Err(ServeError::WrongKind("an encoder without a classifier; fine-tune it first, or ask /v1/embeddings"))
            }
            LoadedKind::Language(_) => Err(ServeError::WrongKind(
                "a language model, not a classifier; give it `labels` to choose from, or ask /v1/chat/completions",
            )),
        }
    }

    /// The encoder, a classifier's too.
    ///
    /// # Errors
    /// If it is a language model.
    pub fn encoder(&self) -> Result<(&Arc<ServedEncoder>, &Arc<Batcher>), ServeError> {
        match &self.kind {
            LoadedKind::Classifier { classifier, batcher } => Ok((&classifier.encoder, batcher)),
            LoadedKind::Encoder { encoder, batcher } => Ok((encoder, batcher)),
            LoadedKind::Language(_) => {
                Err(ServeError::WrongKind("a language model; vectors are made by encoders, such as all-minilm-l6-v2"))
            }
        }
    }

    /// The language model.
    ///
    /// # Errors
    /// If it is an encoder.
    pub fn language(&self) -> Result<&Language, ServeError> {
        match &self.kind {
            LoadedKind::Language(language) => Ok(language),
            LoadedKind::Classifier { .. } => Err(ServeError::WrongKind("a classifier, not a language model; ask /v1/classify")),
            LoadedKind::Encoder { .. } => Err(ServeError::WrongKind("an encoder, not a language model; ask /v1/embeddings")),
        }
    }

    /// The tokens of a text, and how many did not fit; a language model's own limit counts the answer too, so nothing is cut.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn pieces(&self, text: &str) -> Result<(Vec<TokenPiece>, usize), MlError> {
        match &self.kind {
            LoadedKind::Classifier { classifier, .. } => classifier.tokenizer().pieces(text, None),
            LoadedKind::Encoder { encoder, .. } => encoder.tokenizer().pieces(text, None),
            LoadedKind::Language(language) => Ok((language.model.tokenizer().pieces(text)?, 0)),
        }
    }

    /// Bytes of what it does not share with others.
    pub(super) fn own_bytes(&self) -> usize {
        match &self.kind {
            LoadedKind::Classifier { classifier, .. } => classifier.bytes(),
            LoadedKind::Encoder { encoder, .. } => encoder.bytes(),
            LoadedKind::Language(l) => l.adapter.as_ref().map_or(0, |a| a.bytes()),
        }
    }

    /// Bytes of the base that it stands on.
    pub(super) fn base_bytes(&self) -> usize {
        match &self.kind {
            LoadedKind::Classifier { classifier, .. } => classifier.encoder.base.bytes(),
            LoadedKind::Encoder { encoder, .. } => encoder.base.bytes(),
            LoadedKind::Language(l) => l.model.bytes(),
        }
    }

    /// Bytes that the keys and values of its base may take.
    pub(super) fn cache_bytes(&self) -> usize {
        match &self.kind {
            LoadedKind::Classifier { .. } | LoadedKind::Encoder { .. } => 0,
            LoadedKind::Language(l) => l.generator.cache_bytes(),
        }
    }

    /// Whether it stands on this base.
    pub(super) fn stands_on(&self, base: &Base) -> bool {
        match (&self.kind, base) {
            (LoadedKind::Classifier { classifier, .. }, Base::Encoder { weights, .. }) => Arc::ptr_eq(&classifier.encoder.base, weights),
            (LoadedKind::Encoder { encoder, .. }, Base::Encoder { weights, .. }) => Arc::ptr_eq(&encoder.base, weights),
            (LoadedKind::Language(l), Base::Decoder(base)) => Arc::ptr_eq(&l.model, &base.model),
            _ => false,
        }
    }

    pub(super) fn last_use(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// A base model in memory.
pub(super) enum Base {
    /// An encoder with its queue.
    Encoder {
        /// The weights.
        weights: Arc<ServedBase>,
        /// Its queue.
        batcher: Arc<Batcher>,
    },
    /// A decoder with its engine, as a language model without adapter.
    Decoder(Language),
}

impl Base {
    pub fn bytes(&self) -> usize {
        match self {
            Self::Encoder { weights, .. } => weights.bytes(),
            Self::Decoder(l) => l.model.bytes() + l.generator.cache_bytes(),
        }
    }
}
