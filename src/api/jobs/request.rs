//! The body of `POST /v1/fine_tuning/jobs`, field by field as clients may send it.
//!
//! OpenAI's fields and the sections `data`, `tuning`, `training` with the names of `transformers` and `peft`. Everything is
//! optional but `model` and `training_file`; an unknown field is an error. `resolve.rs` turns it into a `JobSpec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tunesmith_ml::spec::{ClassWeights, Dtype, ProblemType, SchedulerType, TargetModules};
use utoipa::ToSchema;

use super::openai::{Hyperparameters, Method};
use super::unions;

/// A request for a fine-tuning job.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The base model: a name of the catalogue, a hub id, or a folder, as the server allows.
    pub model: String,
    /// The id of the file to train on.
    pub training_file: String,
    /// The id of the file to evaluate on; without it a part of the training rows is held out.
    pub validation_file: Option<String>,
    /// The task; inferred from the columns when absent.
    #[schema(example = "classification")]
    pub task: Option<String>,
    /// A part of the new model's name: letters, digits, `.`, `_`, `-`.
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub suffix: Option<String>,
    /// Seeds everything that is drawn; drawn and stored when absent.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub seed: Option<u64>,
    /// Up to 16 texts of the caller's own.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Higher is earlier.
    #[schema(minimum = -1_000_000, maximum = 1_000_000)]
    pub priority: Option<i64>,
    /// Answer what the job would do, and file nothing.
    pub dry_run: Option<bool>,
    /// How the rows are read.
    pub data: Option<DataSection>,
    /// Which parameters are trained.
    pub tuning: Option<TuningSection>,
    /// The training loop.
    pub training: Option<TrainingSection>,
    /// Not available yet.
    #[schema(value_type = Option<Object>)]
    pub quantization: Option<serde_json::Value>,
    /// OpenAI's form of the settings.
    pub method: Option<Method>,
    /// OpenAI's older form of the settings.
    pub hyperparameters: Option<Hyperparameters>,
    /// OpenAI's integrations; none is available, so only an empty list is accepted.
    #[schema(value_type = Option<Vec<Object>>)]
    pub integrations: Option<serde_json::Value>,
    /// Accepted and without effect.
    pub user: Option<String>,
}

/// How the rows of a data set are read.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// The column with the text [default: text].
    pub text_column: Option<String>,
    /// The column with the label [default: label].
    pub label_column: Option<String>,
    /// The column with the second text of a pair.
    pub text_pair_column: Option<String>,
    /// Label names in the order of their ids [default: sorted].
    pub labels: Option<Vec<String>>,
    /// The loss [default: from the labels].
    #[schema(value_type = Option<String>, example = "single_label_classification")]
    pub problem_type: Option<ProblemType>,
    /// Share of the training rows that is held out without a validation file [default: 0.1].
    #[schema(minimum = 0, maximum = 0.5)]
    pub validation_split: Option<f64>,
    /// For language models: rows that are used, by the values of their columns, such as `{"label": "business"}`; a list means any of
    /// its values.
    #[schema(value_type = Option<Object>)]
    pub filter: Option<serde_json::Map<String, serde_json::Value>>,
    /// For language models: a prompt made of the row's columns, such as `Is this about {labels}? {text}`; `label_column` has the answer.
    pub prompt_template: Option<String>,
    /// For language models: the column with plain text [default: text].
    pub dataset_text_field: Option<String>,
}

/// Which parameters are trained.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TuningSection {
    /// `full`, `lora` or `head` [default: lora].
    #[serde(rename = "type")]
    #[schema(example = "lora")]
    pub kind: Option<String>,
    /// Rank of the update [default: 8].
    #[schema(minimum = 1, maximum = 1024)]
    pub r: Option<u64>,
    /// Scale of the update [default: 16].
    pub lora_alpha: Option<f64>,
    /// Dropout in front of the update [default: 0.05].
    #[schema(minimum = 0, exclusive_maximum = 1)]
    pub lora_dropout: Option<f64>,
    /// Scale by the square root of the rank [default: false].
    pub use_rslora: Option<bool>,
    /// `all-linear`, a regular expression, or names [default: all-linear].
    #[serde(default, deserialize_with = "unions::target_modules")]
    #[schema(schema_with = unions::target_modules_schema)]
    pub target_modules: Option<TargetModules>,
    /// Modules that are trained and saved whole [default: the head].
    pub modules_to_save: Option<Vec<String>>,
}

/// The training loop, with the names of `transformers.TrainingArguments`.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainingSection {
    /// Passes over the rows [default: 3].
    #[schema(exclusive_minimum = 0)]
    pub num_train_epochs: Option<f64>,
    /// Optimiser steps; wins over the epochs unless -1 [default: -1].
    #[schema(minimum = -1)]
    pub max_steps: Option<i64>,
    /// Sequences of a micro-batch [default: 16].
    #[schema(minimum = 1, maximum = 4096)]
    pub per_device_train_batch_size: Option<u64>,
    /// Tokens of a micro-batch; fills batches by tokens.
    #[schema(minimum = 1)]
    pub max_tokens_per_batch: Option<u64>,
    /// Micro-batches of a step [default: 1].
    #[schema(minimum = 1, maximum = 4096)]
    pub gradient_accumulation_steps: Option<u64>,
    /// Peak learning rate [default: by the kind of tuning].
    #[schema(exclusive_minimum = 0)]
    pub learning_rate: Option<f64>,
    /// `linear`, `cosine`, `constant`, `constant_with_warmup` or `polynomial` [default: linear].
    #[schema(value_type = Option<String>, example = "linear")]
    pub lr_scheduler_type: Option<SchedulerType>,
    /// Steps of warm-up, or below 1 a share of all steps [default: 0].
    #[schema(minimum = 0)]
    pub warmup_steps: Option<f64>,
    /// The share of all steps by its own name, in place of `warmup_steps`.
    #[schema(minimum = 0, exclusive_maximum = 1)]
    pub warmup_ratio: Option<f64>,
    /// Weight decay [default: 0.01].
    #[schema(minimum = 0)]
    pub weight_decay: Option<f64>,
    /// [default: 0.9]
    #[schema(minimum = 0, exclusive_maximum = 1)]
    pub adam_beta1: Option<f64>,
    /// [default: 0.999]
    #[schema(minimum = 0, exclusive_maximum = 1)]
    pub adam_beta2: Option<f64>,
    /// [default: 1e-8]
    #[schema(exclusive_minimum = 0)]
    pub adam_epsilon: Option<f64>,
    /// Gradients are scaled down to this norm; 0 turns it off [default: 1].
    #[schema(minimum = 0)]
    pub max_grad_norm: Option<f64>,
    /// Share of the target that is spread over all labels [default: 0].
    #[schema(minimum = 0, maximum = 1)]
    pub label_smoothing_factor: Option<f64>,
    /// `balanced`, or a weight for each label.
    #[serde(default, deserialize_with = "unions::class_weights")]
    #[schema(schema_with = unions::class_weights_schema)]
    pub class_weights: Option<ClassWeights>,
    /// Longest sequence in tokens, at most what the model reads [default: the model's limit, at most 512].
    #[schema(minimum = 1)]
    pub max_length: Option<u64>,
    /// Steps between evaluations [default: each epoch].
    #[schema(minimum = 1)]
    pub eval_steps: Option<u64>,
    /// Steps between checkpoints [default: each epoch].
    #[schema(minimum = 1)]
    pub save_steps: Option<u64>,
    /// Steps between entries of the log [default: 10].
    #[schema(minimum = 1)]
    pub logging_steps: Option<u64>,
    /// Checkpoints that keep their model [default: 5].
    #[schema(minimum = 1)]
    pub save_total_limit: Option<u64>,
    /// Save the best weights, not the last [default: true when a metric is named].
    pub load_best_model_at_end: Option<bool>,
    /// The figure that names the best checkpoint, such as `f1`.
    pub metric_for_best_model: Option<String>,
    /// The figure's direction [default: by the figure].
    pub greater_is_better: Option<bool>,
    /// Evaluations without improvement before training stops.
    #[schema(minimum = 1)]
    pub early_stopping_patience: Option<u32>,
    /// Trade time for memory [default: false].
    pub gradient_checkpointing: Option<bool>,
    /// `auto`, `float32` or `bfloat16` [default: auto].
    #[schema(value_type = Option<String>, example = "auto")]
    pub dtype: Option<Dtype>,
    /// For language models: fill each batch with whole rows, up to `per_device_train_batch_size` times `max_length` tokens [default: false].
    pub packing: Option<bool>,
    /// For conversations: learn only what the assistant says [default: true].
    pub assistant_only_loss: Option<bool>,
}
