//! Answering: encoders that classifiers and adapters share with one pass over rows of any of them, for labels and for vectors, and the generation engine.

mod call_grammar;
mod classifier;
mod constraint;
mod decoder;
mod encoder;
mod engine;
mod page_pool;
mod recipe;
mod sampling;
mod schema_check;
mod scores;
mod sequence;
mod text_stream;

pub use call_grammar::{Beside, CallGrammar};
pub use classifier::{Answer, DEFAULT_THRESHOLD, ServedClassifier, classify};
pub use constraint::{Constraint, Grammar};
pub use decoder::{ServedAdapter, ServedDecoder};
pub use encoder::{Asked, ServeDtype, ServedBase, ServedEncoder, answer};
pub use engine::{Engine, EngineLimits, cache_bytes_of};
pub use recipe::{Recipe, finish_vector};
pub use sampling::{Sampling, likeliest, log_probabilities};
pub use scores::{sigmoid, softmax};
pub use sequence::{Event, Failure, Finish, PromptLogprobs, Request, Sink, TokenInfo, Usage};
