//! Checks that the base model may be used and fits the job, and estimates what training it takes in memory.
//!
//! `create.rs` calls it before a job is filed, so that an unknown model is 404 at once. The estimate decides which jobs may
//! run side by side; the worker knows better once the model is there.

use std::path::PathBuf;

use tunesmith_ml::error::MlError;
use tunesmith_ml::models::Outline;
use tunesmith_ml::spec::{JobSpec, Tuning};
use tunesmith_ml::train::check_fit;

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::serve::weight_bytes;
use crate::worker::Failure;

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

/// Checks the job against its base where that is on this machine, and answers the bytes that it is thought to need.
pub async fn memory(state: &AppState, name: String, spec: &JobSpec) -> Result<i64, ApiError> {
    let _turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let (hub, spec) = (state.hub.clone(), spec.clone());
    let work = move || {
        let base: Option<PathBuf> = match name.strip_prefix("file:") {
            // The hub would read every byte of it for its checksum.
            Some(path) => Some(path.into()),
            None => hub.cached(&name).map(|pulled| pulled.model_path()),
        };
        // One that cannot be read is told by the worker, which may find another one under that name.
        let outline = base.as_ref().and_then(|base| Outline::read(base).ok());
        if let Some(outline) = &outline {
            check_fit(&spec, outline)?;
        }
        let weights = base.and_then(|base| weight_bytes(&base)).unwrap_or(UNKNOWN_MODEL_BYTES);
        Ok(estimate(weights, outline.map(|o| o.max_tokens as u64), &spec))
    };
    let total = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?;
    let total = total.map_err(|e: MlError| Failure::from(e).to_job_error())?;
    Ok(i64::try_from(total).unwrap_or(i64::MAX))
}

/// Weights once; for full tuning also masters, gradients and two moments; and the activations of one micro-batch.
fn estimate(weights: u64, longest: Option<u64>, spec: &JobSpec) -> u64 {
    let trained = match spec.tuning {
        Tuning::Full => weights.saturating_mul(4),
        Tuning::Lora(_) => weights / 10,
        Tuning::Head => weights / 20,
    };
    let length = (spec.training.max_length.unwrap_or(512) as u64).min(longest.unwrap_or(u64::MAX));
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
        assert_eq!(weight_bytes(folder.path()), Some(100));
    }
}
