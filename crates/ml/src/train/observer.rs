//! What the loop tells its caller, and what it asks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::ThreadPool;
use serde_json::{Map, Value};

use crate::error::Result;

/// What the caller wants next; asked between micro-batches and between evaluation batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Write a checkpoint and return.
    Pause,
    /// Return at once; nothing is written.
    Stop,
}

/// Weight of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A step of the job's life.
    Info,
    /// Something that a user should look at.
    Warn,
}

/// Where the loop stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Finished optimiser steps.
    pub step: u64,
    /// All optimiser steps.
    pub total_steps: u64,
    /// Passes over the data, fractional.
    pub epoch: f64,
    /// Seconds to the end at the present speed.
    pub eta_seconds: f64,
    /// Real tokens times passes.
    pub trained_tokens: u64,
}

/// A checkpoint that was written to the work folder.
pub struct CheckpointReady<'a> {
    /// Its optimiser step.
    pub step: u64,
    /// Holds `model/`, `state.safetensors` and `state.json`; the caller may move it away.
    pub folder: &'a Path,
    /// Train and evaluation figures at this step.
    pub metrics: Map<String, Value>,
    /// Whether it is the best so far.
    pub is_best: bool,
}

/// Runs a micro-batch on the threads that the observer has for it.
pub(super) fn on_threads_of<R: Send>(observer: &mut dyn Observer, work: impl FnOnce() -> R + Send) -> R {
    match observer.threads() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// The caller of the loop.
pub trait Observer {
    /// What to do next.
    fn control(&mut self) -> Control;
    /// The threads for the next micro-batch, where they are not those that the loop was started on.
    fn threads(&mut self) -> Option<Arc<ThreadPool>> {
        None
    }
    /// A step of the job's life, for its user.
    fn event(&mut self, level: Level, message: String, data: Value);
    /// An entry of the log history, with the names of `trainer_state.json`.
    fn log(&mut self, entry: Map<String, Value>);
    /// Where the loop stands, after every step.
    fn progress(&mut self, progress: Progress);
    /// A checkpoint is ready.
    ///
    /// # Errors
    /// If it could not be kept; training ends.
    fn checkpoint(&mut self, ready: CheckpointReady) -> Result<()>;
    /// A folder with `state.safetensors` of an earlier checkpoint.
    ///
    /// # Errors
    /// If it is gone.
    fn state_folder(&mut self, step: u64) -> Result<PathBuf>;
}
