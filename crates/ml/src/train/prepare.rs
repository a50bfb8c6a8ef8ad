//! What happens before the first step: the base is loaded, rows are tokenised, and the job's size is counted.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tunesmith_data::{Example, Target};
use tunesmith_ops::matmul::Precision;

use super::classifier::{Classifier, outputs, precision};
use super::loss::{LossSettings, class_weights};
use super::order::total_steps;
use crate::error::{MlError, Result};
use crate::models::{EncoderConfig, load_base};
use crate::nn::Kernels;
use crate::spec::{JobSpec, ProblemType, Tuning};
use crate::text::{Encoded, TextTokenizer};

/// A job as the worker hands it over.
pub struct TrainJob {
    /// Settings; `training.max_length` may be absent still.
    pub spec: JobSpec,
    /// The base's Hugging Face folder.
    pub base_folder: PathBuf,
    /// The base's name, for adapter_config.json and the card.
    pub base_name: String,
    /// Training rows.
    pub train: Vec<Example>,
    /// Evaluation rows; may be none.
    pub eval: Vec<Example>,
    /// SHA-256 of the files.
    pub data_sha256: String,
    /// Where checkpoints are written before the observer takes them.
    pub work_dir: PathBuf,
    /// Where tensors live.
    pub device: Device,
    /// Native kernels, or composed tensor operations.
    pub kernels: Kernels,
    /// Threads of the current pool, for the checkpoint's record.
    pub threads: usize,
}

/// The size of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Training rows.
    pub train_rows: usize,
    /// Evaluation rows.
    pub eval_rows: usize,
    /// Tokens of the training rows in one epoch.
    pub train_tokens: u64,
    /// Tokens of the longest training row.
    pub longest_row_tokens: usize,
    /// Rows, of both sets, that did not fit `max_length`.
    pub truncated_rows: usize,
    /// Tokens that were cut off them.
    pub truncated_tokens: u64,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// Optimiser steps.
    pub total_steps: u64,
    /// Precision of the products: "float32" or "bfloat16".
    pub dtype: String,
    /// Estimated peak memory of training in bytes.
    pub estimated_memory_bytes: u64,
}

/// A job that is ready to run.
pub struct Prepared {
    pub(super) job: TrainJob,
    pub(super) train: Vec<Encoded>,
    pub(super) eval: Vec<Encoded>,
    pub(super) loss: LossSettings,
    pub(super) max_length: usize,
    pub(super) precision: Precision,
    /// The job's size.
    pub plan: Plan,
}

/// The longest sequence that a base takes: its positions, or less where sentence_bert_config.json or the tokenizer says so.
pub fn base_limit(folder: &Path, config: &EncoderConfig) -> usize {
    let declared = |file: &str, key: &str| {
        let json = crate::models::read_json(&folder.join(file)).ok()?;
        json[key].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
    };
    let positions = config.max_tokens();
    [declared("sentence_bert_config.json", "max_seq_length"), declared("tokenizer_config.json", "model_max_length")]
        .into_iter()
        .flatten()
        .fold(positions, usize::min)
}

/// Longest sequence unless the job asks for another.
const DEFAULT_MAX_LENGTH: usize = 512;

impl Prepared {
    /// Reads the base's configuration and tokenizer, and tokenises every row on all threads. `go_on` is asked before each row.
    ///
    /// # Errors
    /// If the base cannot be used, a setting contradicts it, or no training row is left; [`MlError::Interrupted`] when
    /// `go_on` says no.
    pub fn new(job: TrainJob, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Self> {
        let config = EncoderConfig::read(&job.base_folder)?;
        let limit = config.max_tokens();
        let max_length = match job.spec.training.max_length {
            Some(asked) => asked.min(limit),
            None => base_limit(&job.base_folder, &config).min(DEFAULT_MAX_LENGTH),
        };
        let tokenizer = TextTokenizer::read(&job.base_folder, max_length, config.vocab_size)?;
        let text = |e: &Example| match go_on() {
            true => tokenizer.encode(&e.text, e.text_pair.as_deref()),
            false => Err(MlError::Interrupted),
        };
        let encode = |rows: &[Example]| {
            use rayon::prelude::*;
            rows.par_iter().map(text).collect::<Result<Vec<_>>>()
        };
        let (train, eval) = (encode(&job.train)?, encode(&job.eval)?);
        if train.is_empty() {
            return Err(MlError::setting("training_file", "no training row is left"));
        }
        let targets: Vec<Target> = job.train.iter().map(|e| e.target.clone()).collect();
        let loss = LossSettings {
            problem_type: job.spec.data.problem_type,
            label_smoothing: job.spec.training.label_smoothing_factor,
            class_weights: class_weights(job.spec.training.class_weights.as_ref(), &job.spec.data.labels, &targets)?,
        };
        if loss.label_smoothing > 0.0 && loss.problem_type != ProblemType::SingleLabelClassification {
            return Err(MlError::setting("training.label_smoothing_factor", "is defined for single_label_classification only"));
        }
        let precision = precision(job.spec.training.dtype, &job.device);
        if precision == Precision::Bf16 && job.kernels == Kernels::Composed {
            return Err(MlError::setting(
                "training.dtype",
                "bfloat16 products run on the CPU only; use \"auto\" or \"float32\" on this device",
            ));
        }
        let lengths: Vec<usize> = train.iter().map(|e| e.ids.len()).collect();
        let plan = Plan {
            train_rows: train.len(),
            eval_rows: eval.len(),
            train_tokens: lengths.iter().map(|n| *n as u64).sum(),
            longest_row_tokens: lengths.iter().copied().max().unwrap_or(0),
            truncated_rows: train.iter().chain(&eval).filter(|e| e.truncated > 0).count(),
            truncated_tokens: train.iter().chain(&eval).map(|e| e.truncated as u64).sum(),
            max_length,
            total_steps: total_steps(job.spec.seed, &lengths, &job.spec.training),
            dtype: match precision {
                Precision::F32 => "float32",
                Precision::Bf16 => "bfloat16",
            }
            .to_owned(),
            estimated_memory_bytes: estimate_memory(&config, &job.spec, &lengths, precision),
        };
        Ok(Self { job, train, eval, loss, max_length, precision, plan })
    }

    /// Loads the base's weights and builds the model to train.
    pub(super) fn classifier(&self) -> Result<Classifier> {
        let base = load_base(&self.job.base_folder, &self.job.device)?;
        Classifier::new(base, &self.job.spec, self.precision, self.job.kernels)
    }
}

/// Bytes at the peak: weights, packed weights, optimiser state, and the activations that one micro-batch keeps.
pub fn estimate_memory(config: &EncoderConfig, spec: &JobSpec, lengths: &[usize], precision: Precision) -> u64 {
    let c = config;
    let linear = c.linear_elements();
    let tables = (c.vocab_size + c.max_positions + c.type_vocab_size) * c.hidden;
    let head = c.hidden * (c.hidden + outputs(spec));
    let packed = 2 * linear * if precision == Precision::Bf16 { 2 } else { 4 };
    let (trained, plain) = match &spec.tuning {
        Tuning::Full => (linear + tables + head, linear + tables),
        Tuning::Lora(l) => (c.layers * l.r * (12 * c.hidden + 2 * c.intermediate) + head, tables),
        Tuning::Head => (head, tables),
    };
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let longest = sorted.first().copied().unwrap_or(1);
    let batch_tokens = match spec.training.max_tokens_per_batch {
        Some(limit) => limit.max(longest),
        None => sorted.iter().take(spec.training.per_device_train_batch_size).sum(),
    };
    // A block keeps about ten hidden-wide and three intermediate-wide rows; frozen parts keep less.
    let kept_layers = if spec.training.gradient_checkpointing { 1 } else { c.layers };
    let activations = batch_tokens * (kept_layers * (10 * c.hidden + 3 * c.intermediate) + c.layers * c.hidden);
    (4 * (plain + 4 * trained + activations) + packed) as u64 + (64 << 20)
}
