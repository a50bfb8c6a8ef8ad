//! Answering in the server process: which models are loaded, and how rows of many requests share a pass.

mod batcher;
mod locate;
mod registry;

pub use batcher::{Batcher, QueueFull, RowAnswer};
pub use locate::LocateError;
pub use registry::{Loaded, Registry, ServeError};
