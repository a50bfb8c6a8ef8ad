//! The resolved description of a training job: every field has its final value.
//!
//! The API builds it from a request and its defaults, the store keeps it as JSON, the worker trains by it, and the job
//! object echoes it. Field names are those of `transformers.TrainingArguments` and `peft.LoraConfig`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a job trains, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The kind of head and loss.
    pub task: Task,
    /// Seeds the head's initial weights, the order of rows, dropout and the validation split.
    pub seed: u64,
    /// Columns, labels and the split.
    pub data: DataSpec,
    /// Which parameters are trained.
    pub tuning: Tuning,
    /// The loop's settings.
    pub training: TrainingSpec,
}

/// The tasks that can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One label, several labels or a number for each text.
    Classification,
    /// Plain texts are learned as they are.
    CausalLm,
    /// Conversations are learned as an assistant's answers.
    Instruction,
}

impl Task {
    /// Every task's name, for error messages.
    pub const NAMES: &'static [&'static str] = &["classification", "causal_lm", "instruction"];

    /// The task of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "classification" => Self::Classification,
            "causal_lm" => Self::CausalLm,
            "instruction" => Self::Instruction,
            _ => return None,
        })
    }

    /// The task's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::CausalLm => "causal_lm",
            Self::Instruction => "instruction",
        }
    }

    /// Whether it makes a language model.
    pub fn is_language(self) -> bool {
        self != Self::Classification
    }
}

/// How the rows of a data set are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSpec {
    /// The column with the text.
    pub text_column: String,
    /// The column with the label.
    pub label_column: String,
    /// The column with the second text of a pair.
    pub text_pair_column: Option<String>,
    /// Label names in the order of their ids; empty for regression.
    pub labels: Vec<String>,
    /// Whether the rows hold ids (0, 1, 2 …) in place of the names.
    #[serde(default)]
    pub labels_by_id: bool,
    /// The loss and the shape of the answer.
    pub problem_type: ProblemType,
    /// Share of the training rows that is held out where no validation file is given.
    pub validation_split: f64,
    /// How rows become texts, for language models; the fields about labels mean nothing there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<LanguageData>,
}

/// How the rows of a language model's data become texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LanguageData {
    /// Which parts of a row make the text.
    pub source: TextSource,
    /// Rows that are used: those whose columns have one of the values listed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filter: BTreeMap<String, Vec<serde_json::Value>>,
}

/// Which parts of a row make a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TextSource {
    /// A column with plain text.
    Column {
        /// Its name.
        name: String,
    },
    /// The columns of a known form of conversation.
    Conversation,
    /// A prompt made of the row's columns, and a column with the answer.
    Template {
        /// The prompt; `{name}` stands for a column, `{labels}` for all labels.
        prompt: String,
        /// The column with the answer.
        completion: String,
        /// What `{labels}` stands for.
        labels: Vec<String>,
    },
}

/// `problem_type` of `transformers`' configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemType {
    /// Softmax over the labels, cross-entropy.
    SingleLabelClassification,
    /// A sigmoid for each label, binary cross-entropy.
    MultiLabelClassification,
    /// One number, mean squared error.
    Regression,
}

/// Which parameters a job trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Tuning {
    /// Every parameter.
    Full,
    /// Low-rank updates of linear layers, and the head.
    Lora(LoraSpec),
    /// The head alone.
    Head,
}

/// The fields of `peft.LoraConfig` that a job sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// Rank of the update.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`, or by `lora_alpha / sqrt(r)` with rsLoRA.
    pub lora_alpha: f64,
    /// Probability of dropping an input of the update in training.
    pub lora_dropout: f64,
    /// Scale by the square root of the rank (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Which linear layers get an update.
    pub target_modules: TargetModules,
    /// Modules that are trained and saved whole; absent: the head.
    pub modules_to_save: Option<Vec<String>>,
}

/// `target_modules` as PEFT takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// `"all-linear"`, or a regular expression that must match the module's whole name.
    Pattern(String),
    /// Names, or last parts of names.
    Names(Vec<String>),
}

/// Settings of the training loop, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingSpec {
    /// Passes over the training rows; may be fractional.
    pub num_train_epochs: f64,
    /// Optimiser steps; wins over the epochs where it is positive, -1 otherwise.
    pub max_steps: i64,
    /// Sequences in a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Tokens in a micro-batch; fills batches by tokens instead of by sequences.
    pub max_tokens_per_batch: Option<usize>,
    /// Micro-batches in an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate's decay.
    pub lr_scheduler_type: SchedulerType,
    /// Steps of linear warm-up; below 1 a share of all steps.
    pub warmup_steps: f64,
    /// Decoupled weight decay; biases and norms are left out.
    pub weight_decay: f64,
    /// Decay of AdamW's first moment.
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment.
    pub adam_beta2: f64,
    /// AdamW's denominator term.
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Share of the target that is spread over all labels.
    pub label_smoothing_factor: f64,
    /// Weights of the classes in the loss.
    pub class_weights: Option<ClassWeights>,
    /// Longest sequence in tokens; absent until the model's limit is known.
    pub max_length: Option<usize>,
    /// Steps between evaluations; absent: at the end of each epoch.
    pub eval_steps: Option<u64>,
    /// Steps between checkpoints; absent: at the end of each epoch.
    pub save_steps: Option<u64>,
    /// Steps between entries of the log.
    pub logging_steps: u64,
    /// How many checkpoints keep their model files, beside the best.
    pub save_total_limit: usize,
    /// Save the best checkpoint's weights instead of the last ones.
    pub load_best_model_at_end: bool,
    /// The evaluation figure that names the best checkpoint.
    pub metric_for_best_model: Option<String>,
    /// Direction of that figure; absent: false for losses and errors, true otherwise.
    pub greater_is_better: Option<bool>,
    /// Evaluations without improvement before training stops.
    pub early_stopping_patience: Option<u32>,
    /// Keep only each block's input and run the block again in the backward pass.
    pub gradient_checkpointing: bool,
    /// Precision of the products.
    pub dtype: Dtype,
    /// Fill micro-batches with whole sequences up to the tokens that full ones would have; see [`Self::micro_batch_tokens`].
    pub packing: bool,
    /// Learn only what an assistant says; absent where the task has no conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant_only_loss: Option<bool>,
}

impl TrainingSpec {
    /// The longest sequence in tokens of a language model's job that does not say it.
    pub const DEFAULT_MAX_LENGTH: usize = 512;

    /// Most tokens of a micro-batch, where it is counted in tokens. Rows lie one after another without padding, and attention
    /// ends with each sequence, so packing is only this: as many whole sequences as `per_device_train_batch_size` rows of
    /// `max_length` tokens have room for.
    pub fn micro_batch_tokens(&self) -> Option<usize> {
        let packed = self.packing.then(|| self.per_device_train_batch_size * self.max_length.unwrap_or(Self::DEFAULT_MAX_LENGTH));
        self.max_tokens_per_batch.or(packed)
    }
}

/// Learning-rate schedules, as in `transformers.get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Falls to zero in a line.
    Linear,
    /// Falls to zero along half a cosine.
    Cosine,
    /// Does not fall, and does not warm up.
    Constant,
    /// Does not fall.
    ConstantWithWarmup,
    /// Falls to 1e-7 with power 1.
    Polynomial,
}

/// Class weights of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassWeights {
    /// `"balanced"`: rows / (classes × rows of the class), as in scikit-learn.
    Named(String),
    /// A weight for each label; labels left out weigh 1.
    Map(BTreeMap<String, f64>),
}

/// Precision of a job's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// bf16 where the CPU has a unit for it, else f32.
    #[serde(rename = "auto")]
    Auto,
    /// 32-bit floats.
    #[serde(rename = "float32", alias = "f32", alias = "fp32")]
    Float32,
    /// bf16 operands with f32 sums and f32 master weights.
    #[serde(rename = "bfloat16", alias = "bf16")]
    Bfloat16,
}
