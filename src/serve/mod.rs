//! Answering in the server process: which models are loaded, and how rows of many requests share a pass.

mod batcher;
mod generator;
mod loaded;
mod locate;
mod pool;
mod priors;
mod registry;
mod template;
mod weight_bytes;

pub use batcher::{Batcher, Question, QueueFull, RowAnswer};
pub use generator::{Ask, Events};
pub use loaded::{Language, Loaded, LoadedKind};
pub use locate::LocateError;
pub use pool::load_page;
pub use priors::{PriorKey, Priors};
pub use registry::{Fitted, Registry, ServeError};
pub use template::template_of;
pub use weight_bytes::weight_bytes;
