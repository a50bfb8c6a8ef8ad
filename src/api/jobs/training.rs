//! The section `training` of a request: defaults by the kind of tuning, ranges, OpenAI's settings mapped onto it.
//!
//! Called by `resolve.rs`. Defaults are CONTRACT's table; the names are those of `transformers.TrainingArguments`.

use std::fmt::Display;

use tunesmith_ml::spec::{ClassWeights, DataSpec, Dtype, ProblemType, SchedulerType, Task, TrainingSpec, Tuning};

use super::openai::{Auto, Given, Hyperparameters};
use super::request::TrainingSection;
use crate::api::error::{ApiError, shorten};

/// Figures that can name the best checkpoint of a classifier; `eval_` in front is fine too.
const CLASS_METRICS: &[&str] = &["loss", "accuracy", "f1", "precision", "recall", "f1_micro", "f1_weighted"];
/// The same for a regression.
const NUMBER_METRICS: &[&str] = &["loss", "mse", "rmse", "mae", "r2", "pearson", "spearmanr"];

/// The same for a language model.
const LANGUAGE_METRICS: &[&str] = &["loss", "perplexity", "token_accuracy"];

const MOST_STEPS: i64 = 1_000_000_000;

/// Fills in the defaults and checks the ranges; a field that would change nothing is refused.
pub fn resolve(
    section: Option<&TrainingSection>,
    tuning: &Tuning,
    openai: &Given,
    task: Task,
    data: &DataSpec,
    has_eval: bool,
) -> Result<TrainingSpec, ApiError> {
    let empty = TrainingSection::default();
    let s = section.unwrap_or(&empty);
    let problem = (!task.is_language()).then_some(data.problem_type);
    refuse_foreign(s, task)?;
    refuse_idle(s, has_eval)?;
    let default_rate = default_rate(tuning, task.is_language());
    let given = &openai.settings;
    let theirs = |name: &str| openai.path_of(name);
    let epochs = given.n_epochs.and_then(Auto::set).map(|n| n as f64);
    let (epochs, epochs_path) = once("num_train_epochs", s.num_train_epochs, theirs("n_epochs"), epochs)?;
    let batch = given.batch_size.and_then(Auto::set);
    let (batch, batch_path) = once("per_device_train_batch_size", s.per_device_train_batch_size, theirs("batch_size"), batch)?;
    if batch.is_some() && s.max_tokens_per_batch.is_some() {
        let message = format!("`{batch_path}` {BY_TOKENS}.");
        return Err(ApiError::field(batch_path, message));
    }
    let multiplier = given.learning_rate_multiplier.and_then(Auto::set);
    if let Some(m) = multiplier {
        within_at(&theirs("learning_rate_multiplier"), m, |m| m > 0.0 && m <= 1e6, "above 0 and at most 1000000")?;
    }
    let rate = multiplier.map(|m| m * default_rate);
    let (rate, rate_path) = once("learning_rate", s.learning_rate, theirs("learning_rate_multiplier"), rate)?;
    let best = best_model(s, problem, has_eval)?;
    Ok(TrainingSpec {
        num_train_epochs: within_at(&epochs_path, epochs.unwrap_or(3.0), |v| v > 0.0 && v <= 1e5, "above 0 and at most 100000")?,
        max_steps: within(
            "max_steps",
            s.max_steps.unwrap_or(-1),
            |v| v == -1 || (1..=MOST_STEPS).contains(&v),
            "-1, or between 1 and 1000000000",
        )?,
        per_device_train_batch_size: count_at(&batch_path, batch.unwrap_or(if task.is_language() { 4 } else { 16 }), 4096)?,
        max_tokens_per_batch: s.max_tokens_per_batch.map(|n| count("max_tokens_per_batch", n, 1 << 22)).transpose()?,
        gradient_accumulation_steps: count("gradient_accumulation_steps", s.gradient_accumulation_steps.unwrap_or(1), 4096)?,
        learning_rate: within_at(&rate_path, rate.unwrap_or(default_rate), |v| v > 0.0 && v.is_finite(), "above 0")?,
        lr_scheduler_type: s.lr_scheduler_type.unwrap_or(SchedulerType::Linear),
        warmup_steps: warmup(s)?,
        weight_decay: within("weight_decay", s.weight_decay.unwrap_or(0.01), |v| (0.0..=100.0).contains(&v), "between 0 and 100")?,
        adam_beta1: within("adam_beta1", s.adam_beta1.unwrap_or(0.9), |v| (0.0..1.0).contains(&v), "at least 0 and below 1")?,
        adam_beta2: within("adam_beta2", s.adam_beta2.unwrap_or(0.999), |v| (0.0..1.0).contains(&v), "at least 0 and below 1")?,
        adam_epsilon: within("adam_epsilon", s.adam_epsilon.unwrap_or(1e-8), |v| v > 0.0 && v <= 1.0, "above 0 and at most 1")?,
        max_grad_norm: within("max_grad_norm", s.max_grad_norm.unwrap_or(1.0), |v| (0.0..=1e9).contains(&v), "0, or above")?,
        label_smoothing_factor: smoothing(s.label_smoothing_factor.unwrap_or(0.0), problem)?,
        class_weights: weights(s.class_weights.as_ref(), problem)?,
        max_length: s.max_length.map(|n| count("max_length", n, 1 << 20)).transpose()?,
        eval_steps: s.eval_steps.map(|n| count("eval_steps", n, 1_000_000_000)).transpose()?.map(|n| n as u64),
        save_steps: s.save_steps.map(|n| count("save_steps", n, 1_000_000_000)).transpose()?.map(|n| n as u64),
        logging_steps: count("logging_steps", s.logging_steps.unwrap_or(10), 1_000_000_000)? as u64,
        save_total_limit: count("save_total_limit", s.save_total_limit.unwrap_or(5), 10_000)?,
        load_best_model_at_end: best.load,
        metric_for_best_model: best.metric,
        greater_is_better: s.greater_is_better,
        early_stopping_patience: s.early_stopping_patience,
        gradient_checkpointing: s.gradient_checkpointing.unwrap_or(false),
        dtype: s.dtype.unwrap_or(Dtype::Auto),
        packing: s.packing.unwrap_or(false),
        assistant_only_loss: (task == Task::Instruction).then(|| s.assistant_only_loss.unwrap_or(true)),
    })
}

/// OpenAI's three settings as the job will use them.
pub fn echo(training: &TrainingSpec, given: &Hyperparameters) -> Hyperparameters {
    let epochs = training.num_train_epochs;
    Hyperparameters {
        // OpenAI's field is a whole number; `training.num_train_epochs` has the exact one.
        n_epochs: Some(Auto::Set(epochs.ceil().max(1.0) as u64)),
        batch_size: Some(Auto::Set(training.per_device_train_batch_size as u64)),
        learning_rate_multiplier: Some(given.learning_rate_multiplier.unwrap_or(Auto::Auto)),
    }
}

fn default_rate(tuning: &Tuning, decoder: bool) -> f64 {
    match tuning {
        Tuning::Full => 5e-5,
        Tuning::Lora(_) if decoder => 2e-4,
        Tuning::Lora(_) | Tuning::Head => 1e-3,
    }
}

/// One setting under two names: either may be given, or both if they agree. Answers it with the path that it was given under.
fn once<T: PartialEq + Copy + Display>(ours: &str, a: Option<T>, theirs: String, b: Option<T>) -> Result<(Option<T>, String), ApiError> {
    let ours = format!("training.{ours}");
    match (a, b) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("`{ours}` is {a}, and `{theirs}` makes it {b}; give one of them.");
            Err(ApiError::field(ours, message))
        }
        (None, Some(b)) => Ok((Some(b), theirs)),
        (a, _) => Ok((a, ours)),
    }
}

fn within<T: Copy + Display>(name: &str, value: T, ok: impl Fn(T) -> bool, wanted: &str) -> Result<T, ApiError> {
    within_at(&format!("training.{name}"), value, ok, wanted)
}

fn within_at<T: Copy + Display>(path: &str, value: T, ok: impl Fn(T) -> bool, wanted: &str) -> Result<T, ApiError> {
    match ok(value) {
        true => Ok(value),
        false => Err(ApiError::field(path, format!("`{path}` is {value}; it must be {wanted}."))),
    }
}

fn count(name: &str, value: u64, most: u64) -> Result<usize, ApiError> {
    count_at(&format!("training.{name}"), value, most)
}

fn count_at(path: &str, value: u64, most: u64) -> Result<usize, ApiError> {
    within_at(path, value, |v| (1..=most).contains(&v), &format!("between 1 and {most}")).map(|v| v as usize)
}

/// Steps of warm-up, or a share of all steps.
fn warmup(s: &TrainingSection) -> Result<f64, ApiError> {
    if let Some(share) = s.warmup_ratio {
        if s.warmup_steps.is_some() {
            let message = "`training.warmup_ratio` and `training.warmup_steps` say the same; give one of them.";
            return Err(ApiError::field("training.warmup_ratio", message));
        }
        return within("warmup_ratio", share, |v| (0.0..1.0).contains(&v), "at least 0 and below 1");
    }
    // From 1 on it counts steps, and half a step is a mistake.
    within(
        "warmup_steps",
        s.warmup_steps.unwrap_or(0.0),
        |v| (0.0..=1e9).contains(&v) && (v < 1.0 || v.fract() == 0.0),
        "a whole number of steps, or a share below 1",
    )
}

fn smoothing(value: f64, problem: Option<ProblemType>) -> Result<f64, ApiError> {
    if value > 0.0 && problem.is_some_and(|p| p != ProblemType::SingleLabelClassification) {
        let message = "`training.label_smoothing_factor` needs one label a row.";
        return Err(ApiError::field("training.label_smoothing_factor", message));
    }
    within("label_smoothing_factor", value, |v| (0.0..=1.0).contains(&v), "between 0 and 1")
}

fn weights(given: Option<&ClassWeights>, problem: Option<ProblemType>) -> Result<Option<ClassWeights>, ApiError> {
    let Some(given) = given else { return Ok(None) };
    let wrong = |message: &str| Err(ApiError::field("training.class_weights", message));
    if problem != Some(ProblemType::SingleLabelClassification) {
        return wrong("`training.class_weights` needs one label a row.");
    }
    if let ClassWeights::Map(map) = given {
        if map.is_empty() {
            return wrong("`training.class_weights` names no label; leave it out or name some.");
        }
        if map.values().any(|w| !(w.is_finite() && *w >= 0.0)) || map.values().all(|w| *w == 0.0) {
            return wrong("`training.class_weights` must be 0 or above, and one of them above 0.");
        }
    }
    Ok(Some(given.clone()))
}

/// Fields that mean nothing to the task; a value that changes nothing anyway passes.
fn refuse_foreign(s: &TrainingSection, task: Task) -> Result<(), ApiError> {
    let (packing, assistant) = ("training.packing", "training.assistant_only_loss");
    let (smoothing, weights) = ("training.label_smoothing_factor", "training.class_weights");
    let smooths = s.label_smoothing_factor.is_some_and(|factor| factor != 0.0);
    let foreign: &[(&str, bool, &str)] = match task {
        Task::Classification => &[
            (packing, s.packing == Some(true), "is for language models"),
            (assistant, s.assistant_only_loss.is_some(), "is for conversations, the task instruction"),
        ],
        Task::CausalLm => &[
            (assistant, s.assistant_only_loss.is_some(), "is for conversations, the task instruction; plain texts are learned whole"),
            (smoothing, smooths, "is for the task classification"),
            (weights, s.class_weights.is_some(), "is for the task classification"),
        ],
        Task::Instruction => &[
            (smoothing, smooths, "is for the task classification"),
            (weights, s.class_weights.is_some(), "is for the task classification"),
        ],
    };
    match foreign.iter().find(|(_, given, _)| *given) {
        Some((path, _, why)) => Err(ApiError::field(*path, format!("`{path}` {why}; the task is {}.", task.name()))),
        None => Ok(()),
    }
}

const BY_TOKENS: &str = "has no effect beside `training.max_tokens_per_batch`, which counts a batch by its tokens; give one of them";

/// Fields that another one leaves without effect.
fn refuse_idle(s: &TrainingSection, has_eval: bool) -> Result<(), ApiError> {
    let constant = s.lr_scheduler_type == Some(SchedulerType::Constant);
    let warms = |given: Option<f64>| constant && given.is_some_and(|v| v > 0.0);
    const NO_WARMUP: &str = "has no effect with the schedule `constant`; `constant_with_warmup` has a warm-up";
    let names_best = s.metric_for_best_model.is_some() || s.load_best_model_at_end == Some(true) || s.early_stopping_patience.is_some();
    let idle = [
        ("warmup_steps", warms(s.warmup_steps), NO_WARMUP),
        ("warmup_ratio", warms(s.warmup_ratio), NO_WARMUP),
        ("packing", s.max_tokens_per_batch.is_some() && s.packing == Some(true), BY_TOKENS),
        (
            "greater_is_better",
            s.greater_is_better.is_some() && !names_best,
            "has no effect without `training.metric_for_best_model`, `training.load_best_model_at_end` or `training.early_stopping_patience`",
        ),
        (
            "eval_steps",
            s.eval_steps.is_some() && !has_eval,
            "has no effect without rows to evaluate; give a `validation_file` or a `data.validation_split` above 0",
        ),
    ];
    match idle.iter().find(|(_, given, _)| *given) {
        Some((name, _, why)) => Err(ApiError::field(format!("training.{name}"), format!("`training.{name}` {why}."))),
        None => Ok(()),
    }
}

struct Best {
    load: bool,
    metric: Option<String>,
}

/// Choosing the best needs a figure, and a figure needs rows to evaluate.
fn best_model(s: &TrainingSection, problem: Option<ProblemType>, has_eval: bool) -> Result<Best, ApiError> {
    let known = match problem {
        None => LANGUAGE_METRICS,
        Some(ProblemType::Regression) => NUMBER_METRICS,
        Some(_) => CLASS_METRICS,
    };
    if let Some(metric) = &s.metric_for_best_model {
        let plain = metric.strip_prefix("eval_").unwrap_or(metric);
        if !known.contains(&plain) {
            let message = format!("`training.metric_for_best_model` is `{}`; it must be one of {}.", shorten(metric), known.join(", "));
            return Err(ApiError::field("training.metric_for_best_model", message));
        }
    }
    let load = s.load_best_model_at_end.unwrap_or(s.metric_for_best_model.is_some());
    let wants = load || s.early_stopping_patience.is_some() || s.metric_for_best_model.is_some();
    if s.early_stopping_patience == Some(0) {
        return Err(ApiError::field("training.early_stopping_patience", "`training.early_stopping_patience` is 0; it must be at least 1."));
    }
    if wants && !has_eval {
        let message = "Choosing the best model or stopping early needs rows to evaluate; give a `validation_file` or a `data.validation_split` above 0.";
        return Err(ApiError::field("data.validation_split", message));
    }
    let metric = s.metric_for_best_model.as_deref().map(|m| m.strip_prefix("eval_").unwrap_or(m).to_owned());
    Ok(Best {
        load,
        // As in transformers: whoever wants the best and names no figure means the loss.
        metric: metric.or_else(|| wants.then(|| "loss".to_owned())),
    })
}
