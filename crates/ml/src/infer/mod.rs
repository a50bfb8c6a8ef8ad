//! Answering: encoders that several classifiers share, and one pass over rows of any of them.

mod classifier;
mod scores;

pub use classifier::{Answer, DEFAULT_THRESHOLD, ServedBase, ServedClassifier, classify};
pub use scores::{sigmoid, softmax};
