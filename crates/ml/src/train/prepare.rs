//! What happens before the first step: the base is loaded, rows are tokenised, and the job's size is counted.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tunesmith_data::{Example, Target};
use tunesmith_ops::matmul::Precision;

use super::classification::{ClassificationRows, ClassificationTask};
use super::classifier::{Classifier, precision};
use super::estimate::estimate_memory;
use super::language::{LanguageRows, LanguageTask, TextRow};
use super::loss::{LossSettings, class_weights};
use super::order::total_steps;
use super::run::FinalEvaluation;
use super::trainee::Trainee;
use crate::error::{MlError, Result};
use crate::models::{EncoderConfig, load_base};
use crate::nn::Kernels;
use crate::spec::{JobSpec, ProblemType};
use crate::text::{Encoded, TextTokenizer};

/// A job as the worker hands it over.
pub struct TrainJob {
    /// Settings; `training.max_length` may be absent still.
    pub spec: JobSpec,
    /// The base's Hugging Face folder.
    pub base_folder: PathBuf,
    /// The base's name, for adapter_config.json and the card.
    pub base_name: String,
    /// The rows.
    pub rows: JobRows,
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

/// The rows of a job; those of the evaluation may be none.
pub enum JobRows {
    /// Texts with labels.
    Examples {
        /// Training rows.
        train: Vec<Example>,
        /// Evaluation rows.
        eval: Vec<Example>,
    },
    /// Texts that are learned themselves, in whole or in part.
    Texts {
        /// Training rows.
        train: Vec<TextRow>,
        /// Evaluation rows.
        eval: Vec<TextRow>,
    },
}

impl JobRows {
    /// The evaluation rows of a classification job.
    pub(super) fn eval_examples(&self) -> &[Example] {
        match self {
            Self::Examples { eval, .. } => eval,
            Self::Texts { .. } => &[],
        }
    }
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
    pub(super) rows: TaskRows,
    pub(super) max_length: usize,
    pub(super) precision: Precision,
    /// Elements of the base's linear layers, and the width of its hidden states and feed-forward layers.
    pub(super) linear: LinearSize,
    /// The job's size.
    pub plan: Plan,
}

/// The rows as tokens.
pub(super) enum TaskRows {
    Classification(ClassificationRows),
    Language(Box<LanguageRows>),
}

/// What a base's products cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinearSize {
    pub elements: usize,
    pub hidden: usize,
    pub intermediate: usize,
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
        let precision = precision(job.spec.training.dtype, &job.device);
        if precision == Precision::Bf16 && job.kernels == Kernels::Composed {
            return Err(MlError::setting(
                "training.dtype",
                "bfloat16 products run on the CPU only; use \"auto\" or \"float32\" on this device",
            ));
        }
        let (rows, max_length, linear, memory) = match &job.rows {
            JobRows::Examples { train, eval } => classification(&job, train, eval, go_on)?,
            JobRows::Texts { train, eval } => super::language::prepare(&job, train, eval, go_on)?,
        };
        let lengths = rows.lengths();
        if lengths.is_empty() {
            return Err(MlError::setting("training_file", "no training row is left"));
        }
        let (truncated_rows, truncated_tokens) = rows.truncated();
        let plan = Plan {
            train_rows: lengths.len(),
            eval_rows: rows.eval_rows(),
            train_tokens: lengths.iter().map(|n| *n as u64).sum(),
            longest_row_tokens: lengths.iter().copied().max().unwrap_or(0),
            truncated_rows,
            truncated_tokens,
            max_length,
            total_steps: total_steps(job.spec.seed, &lengths, &job.spec.training),
            dtype: match precision {
                Precision::F32 => "float32",
                Precision::Bf16 => "bfloat16",
            }
            .to_owned(),
            estimated_memory_bytes: memory,
        };
        Ok(Self { job, rows, max_length, precision, linear, plan })
    }

    /// What the user should know of the rows.
    pub fn warnings(&self) -> &[String] {
        match &self.rows {
            TaskRows::Classification(_) => &[],
            TaskRows::Language(rows) => &rows.warnings,
        }
    }

    /// Tokens of each training row.
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.rows.lengths()
    }

    /// Loads the base's weights and builds the model to train.
    pub(super) fn trainee(&self) -> Result<Box<dyn Trainee + '_>> {
        Ok(match (&self.rows, &self.job.rows) {
            (TaskRows::Classification(rows), JobRows::Examples { train, .. }) => {
                let base = load_base(&self.job.base_folder, &self.job.device)?;
                let classifier = Classifier::new(base, &self.job.spec, self.precision, self.job.kernels)?;
                let targets = train.iter().map(|e| (&e.target, e.line)).collect();
                Box::new(ClassificationTask { classifier, rows, p: self, targets })
            }
            (TaskRows::Language(rows), _) => Box::new(LanguageTask::new(self, rows)?),
            (TaskRows::Classification(_), JobRows::Texts { .. }) => {
                return Err(MlError::Format("the rows are not those of the task".to_owned()));
            }
        })
    }

    /// What the saved model is to be evaluated on.
    pub(super) fn into_evaluation(self) -> FinalEvaluation {
        match (self.rows, self.job.rows) {
            (TaskRows::Classification(rows), JobRows::Examples { eval, .. }) => {
                FinalEvaluation::Classification { rows: eval, tokens: rows.eval, loss: rows.loss }
            }
            (TaskRows::Language(rows), _) => FinalEvaluation::Language(rows.eval),
            (TaskRows::Classification(_), JobRows::Texts { .. }) => FinalEvaluation::Language(Vec::new()),
        }
    }
}

impl TaskRows {
    fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Classification(rows) => rows.train.iter().map(|e| e.ids.len()).collect(),
            Self::Language(rows) => rows.train.iter().map(|s| s.ids.len()).collect(),
        }
    }

    fn eval_rows(&self) -> usize {
        match self {
            Self::Classification(rows) => rows.eval.len(),
            Self::Language(rows) => rows.eval.len(),
        }
    }

    /// Rows, of both sets, that were cut, and the tokens that were cut off them.
    fn truncated(&self) -> (usize, u64) {
        let cut: Vec<usize> = match self {
            Self::Classification(rows) => rows.train.iter().chain(&rows.eval).map(|e| e.truncated).collect(),
            Self::Language(rows) => rows.train.iter().chain(&rows.eval).map(|s| s.truncated).collect(),
        };
        (cut.iter().filter(|n| **n > 0).count(), cut.iter().map(|n| *n as u64).sum())
    }
}

/// What [`Prepared::new`] needs of a task: its rows, the longest sequence, what its products cost, and its memory.
pub(super) type TaskParts = (TaskRows, usize, LinearSize, u64);

fn classification(job: &TrainJob, train: &[Example], eval: &[Example], go_on: &(dyn Fn() -> bool + Sync)) -> Result<TaskParts> {
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
        rows.par_iter().map(text).collect::<Result<Vec<Encoded>>>()
    };
    let targets: Vec<Target> = train.iter().map(|e| e.target.clone()).collect();
    let (train, eval) = (encode(train)?, encode(eval)?);
    let loss = LossSettings {
        problem_type: job.spec.data.problem_type,
        label_smoothing: job.spec.training.label_smoothing_factor,
        class_weights: class_weights(job.spec.training.class_weights.as_ref(), &job.spec.data.labels, &targets)?,
    };
    if loss.label_smoothing > 0.0 && loss.problem_type != ProblemType::SingleLabelClassification {
        return Err(MlError::setting("training.label_smoothing_factor", "is defined for single_label_classification only"));
    }
    let lengths: Vec<usize> = train.iter().map(|e| e.ids.len()).collect();
    let memory = estimate_memory(&config, &job.spec, &lengths);
    let linear = LinearSize { elements: config.linear_elements(), hidden: config.hidden, intermediate: config.intermediate };
    Ok((TaskRows::Classification(ClassificationRows { train, eval, loss }), max_length, linear, memory))
}
