//! What a checkpoint needs to go on bit-exactly: `state.safetensors` (f32 masters and moments) and `state.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{MlError, Result};
use crate::models::{WeightFile, read_json, write_json, write_safetensors};
use crate::nn::Params;

/// The loop's own state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainState {
    /// Finished optimiser steps. Epoch and offset follow from it, the seed and the data.
    pub step: u64,
    /// Whether an evaluation is due at this step and has not been finished.
    pub evaluation_due: bool,
    /// Whether a checkpoint is due at this step and has not been written.
    pub checkpoint_due: bool,
    /// Sum of the losses since the last entry of the log.
    pub window_loss: f64,
    /// Steps since the last entry of the log.
    pub window_steps: u64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// Best value of `metric_for_best_model`.
    pub best_metric: Option<f64>,
    /// Step of that value.
    pub best_step: Option<u64>,
    /// Evaluations since then.
    pub evaluations_without_gain: u32,
    /// Whether early stopping ended the run at this step.
    pub stopped_early: bool,
    /// Real tokens times passes.
    pub trained_tokens: u64,
    /// Rows times passes.
    pub trained_rows: u64,
    /// Figures of the last evaluation.
    pub last_evaluation: Option<serde_json::Map<String, serde_json::Value>>,
    /// Seconds spent in training, over all attempts.
    pub train_seconds: f64,
    /// SHA-256 of the data, the seed and the settings that the order of rows depends on.
    pub data_sha256: String,
    /// CPU features that the kernels used.
    pub kernel_set: String,
    /// Threads; results do not depend on them, an event reports a change.
    pub threads: usize,
    /// Version of this program.
    pub version: String,
}

const STATE_JSON: &str = "state.json";
const STATE_TENSORS: &str = "state.safetensors";

impl TrainState {
    /// Writes both files.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, params: &Params) -> Result<()> {
        let tensors = [("masters", &params.masters), ("exp_avg", &params.exp_avg), ("exp_avg_sq", &params.exp_avg_sq)];
        write_safetensors(&folder.join(STATE_TENSORS), &tensors.map(|(n, t)| (n.to_owned(), t.clone())))?;
        let json = serde_json::to_value(self).map_err(|e| MlError::Format(format!("{STATE_JSON}: {e}")))?;
        write_json(&folder.join(STATE_JSON), &json)
    }

    /// Reads `state.json`.
    ///
    /// # Errors
    /// If it is missing or malformed.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE_JSON);
        serde_json::from_value(read_json(&path)?).map_err(|e| MlError::Format(format!("{}: {e}", path.display())))
    }
}

/// Reads the masters, and the moments where `moments` is set, into the flat buffers.
///
/// # Errors
/// If the file does not fit this job's parameters.
pub fn load_tensors(folder: &Path, params: &Params, moments: bool) -> Result<()> {
    let file = WeightFile::open(&[folder.join(STATE_TENSORS)])?;
    let all = [("masters", &params.masters), ("exp_avg", &params.exp_avg), ("exp_avg_sq", &params.exp_avg_sq)];
    for (name, buffer) in &all[..if moments { 3 } else { 1 }] {
        buffer.slice_set(&file.get(name, &[params.len()], buffer.device())?, 0, 0)?;
    }
    Ok(())
}
