//! How much memory a job will take, from its configuration and the lengths of its rows.

use super::classifier::outputs;
use crate::models::EncoderConfig;
use crate::models::decoder::DecoderConfig;
use crate::spec::{JobSpec, TrainingSpec, Tuning};

/// Tokens of the largest micro-batch.
fn batch_tokens(training: &TrainingSpec, lengths: &[usize]) -> usize {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let longest = sorted.first().copied().unwrap_or(1);
    match training.micro_batch_tokens() {
        Some(limit) => limit.max(longest),
        None => sorted.iter().take(training.per_device_train_batch_size).sum(),
    }
}

/// Bytes at the peak: weights, optimiser state, and the activations that one micro-batch keeps.
pub fn estimate_memory(config: &EncoderConfig, spec: &JobSpec, lengths: &[usize]) -> u64 {
    let c = config;
    let linear = c.linear_elements();
    let tables = (c.vocab_size + c.max_positions + c.type_vocab_size) * c.hidden;
    let head = c.hidden * (c.hidden + outputs(spec));
    let (trained, plain) = match &spec.tuning {
        // Trained weights are their own masters.
        Tuning::Full => (linear + tables + head, 0),
        Tuning::Lora(l) => (c.layers * l.r * (12 * c.hidden + 2 * c.intermediate) + head, linear + tables),
        Tuning::Head => (head, linear + tables),
    };
    let batch_tokens = batch_tokens(&spec.training, lengths);
    // A block keeps about ten hidden-wide and three intermediate-wide rows; frozen parts keep less.
    let kept_layers = if spec.training.gradient_checkpointing { 1 } else { c.layers };
    let activations = batch_tokens * (kept_layers * (10 * c.hidden + 3 * c.intermediate) + c.layers * c.hidden);
    (4 * (plain + 4 * trained + activations)) as u64 + (64 << 20)
}

/// As [`estimate_memory`], of a decoder.
pub fn estimate_language_memory(config: &DecoderConfig, spec: &JobSpec, lengths: &[usize]) -> u64 {
    let c = config;
    let linear = c.linear_elements();
    let table = c.vocab_size * c.hidden;
    let output = if c.tied { 0 } else { table };
    let (trained, plain) = match &spec.tuning {
        Tuning::Lora(l) => {
            let around = c.hidden + c.head_dim * c.heads;
            (
                c.layers.len() * l.r * (2 * around + 2 * (c.hidden + c.head_dim * c.kv_heads) + 3 * (c.hidden + c.intermediate)),
                linear + table + output,
            )
        }
        Tuning::Full | Tuning::Head => (linear + table + output, 0),
    };
    // A block keeps about six hidden-wide and two intermediate-wide rows; the logits stand in pieces.
    let tokens = batch_tokens(&spec.training, lengths);
    let kept_layers = if spec.training.gradient_checkpointing { 1 } else { c.layers.len() };
    let activations = tokens * (kept_layers * (6 * c.hidden + 2 * c.intermediate) + c.layers.len() * c.hidden);
    (4 * (plain + 4 * trained + activations)) as u64 + (128 << 20)
}
