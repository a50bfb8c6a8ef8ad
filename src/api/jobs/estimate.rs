//! Checks that the base model may be used, and estimates what training it takes in memory.
//!
//! `create.rs` calls it before a job is filed, so that an unknown model is 404 at once. The estimate decides which jobs may
//! run side by side; the worker knows better once the model is there.

use std::path::Path;

use tunesmith_ml::spec::{JobSpec, Tuning};

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::serve::weight_bytes;

/// Assumed for a model that is not on this machine yet: the size of a base encoder in f32.
const UNKNOWN_MODEL_BYTES: u64 = 440 << 20;
/// Program, tokenizer, data set, evaluation.
const FIXED_BYTES: u64 = 192 << 20;

/// The name to give to the hub; an error where the model is unknown or not allowed.
pub async fn allowed_name(state: &AppState, model: &str) -> Result<String, ApiError> {
    if model.trim().is_empty() || model.len() > 1024 {
        return Err(ApiError::field("model", "`model` must have 1 to 1024 characters."));
    }
    if model.starts_with("ft:") {
        return Err(ApiError::field("model", "Training a fine-tuned model further is not available yet; name its base model."));
    }
    let (hub, config, model) = (state.hub.clone(), state.config.clone(), model.to_owned());
    let work = move || hub.allowed(&model, config.allow_pull.into(), config.model_dir.as_deref());
    Ok(tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??)
}

/// Bytes that the job is thought to need.
pub async fn memory(state: &AppState, name: String, spec: &JobSpec) -> Result<i64, ApiError> {
    let _turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let hub = state.hub.clone();
    let work = move || {
        let folder = match name.strip_prefix("file:") {
            // The hub would read every byte of it for its checksum.
            Some(path) => Some(path.into()),
            None => hub.cached(&name).map(|pulled| pulled.model_path()),
        };
        folder.map_or((None, None), |folder: std::path::PathBuf| (weight_bytes(&folder), positions(&folder)))
    };
    let (weights, positions) = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?;
    let total = estimate(weights.unwrap_or(UNKNOWN_MODEL_BYTES), positions, spec);
    Ok(i64::try_from(total).unwrap_or(i64::MAX))
}

/// The longest text that the folder's model reads, by its configuration; training cuts what is longer.
fn positions(folder: &Path) -> Option<u64> {
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()?;
    ["max_position_embeddings", "n_positions"].iter().find_map(|name| config[*name].as_u64())
}

/// Weights once; for full tuning also masters, gradients and two moments; and the activations of one micro-batch.
fn estimate(weights: u64, positions: Option<u64>, spec: &JobSpec) -> u64 {
    let trained = match spec.tuning {
        Tuning::Full => weights.saturating_mul(4),
        Tuning::Lora(_) => weights / 10,
        Tuning::Head => weights / 20,
    };
    let length = (spec.training.max_length.unwrap_or(512) as u64).min(positions.unwrap_or(u64::MAX));
    let tokens = match spec.training.micro_batch_tokens() {
        Some(tokens) => tokens as u64,
        None => length.saturating_mul(spec.training.per_device_train_batch_size as u64),
    };
    // Seen on encoders of 384 to 768 channels: about 60 KiB a token with the tape, a fifth with gradient checkpointing.
    let per_token: u64 = if spec.training.gradient_checkpointing { 12 << 10 } else { 60 << 10 };
    weights.saturating_add(trained).saturating_add(tokens.saturating_mul(per_token)).saturating_add(FIXED_BYTES)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_weights_count() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(weight_bytes(folder.path()), None);
        std::fs::write(folder.path().join("model.safetensors"), [0; 100]).unwrap();
        std::fs::write(folder.path().join("optimizer.safetensors"), [0; 70]).unwrap();
        std::fs::write(folder.path().join("config.json"), [0; 50]).unwrap();
        assert_eq!((weight_bytes(folder.path()), positions(folder.path())), (Some(100), None));
        std::fs::write(folder.path().join("config.json"), r#"{"max_position_embeddings": 512}"#).unwrap();
        assert_eq!(positions(folder.path()), Some(512));
    }
}
