//! Where each kind of blob lies: the only place that spells keys.
//!
//! Called by whoever writes blobs. The one thing to know: every key of a job contains the job's id,
//! by which the sweep spares what a worker that still runs has written and not yet recorded.

use crate::{FileId, JobId};

/// Names of blobs and folders of blobs.
#[derive(Debug)]
pub struct Keys;

impl Keys {
    /// The top folder of uploads.
    pub const FILES: &'static str = "files";
    /// The top folder of checkpoints.
    pub const CHECKPOINTS: &'static str = "checkpoints";
    /// The top folder of trained models.
    pub const MODELS: &'static str = "models";
    /// The top folder of results: metrics as CSV, predictions.
    pub const RESULTS: &'static str = "results";
    /// The top folder of adapters from outside.
    pub const ADAPTERS: &'static str = "adapters";

    /// An uploaded file.
    pub fn file(id: FileId) -> String {
        format!("{}/{id}", Self::FILES)
    }

    /// A job's folder of checkpoints.
    pub fn checkpoints(job: JobId) -> String {
        format!("{}/{job}", Self::CHECKPOINTS)
    }

    /// The folder of one checkpoint.
    pub fn checkpoint(job: JobId, step: i64) -> String {
        format!("{}/{job}/step-{step}", Self::CHECKPOINTS)
    }

    /// The folder of the model that a job makes.
    pub fn model(job: JobId) -> String {
        format!("{}/{job}", Self::MODELS)
    }

    /// A result of a job, for example `metrics.csv`.
    pub fn result(job: JobId, name: &str) -> String {
        format!("{}/{job}/{name}", Self::RESULTS)
    }

    /// The folder of an adapter that was unpacked from an uploaded file.
    pub fn adapter(file: FileId) -> String {
        format!("{}/{file}", Self::ADAPTERS)
    }

    /// The names of the files of a checkpoint that only a resume needs.
    pub const STATE_FILES: [&'static str; 2] = ["state.safetensors", "state.json"];
}
