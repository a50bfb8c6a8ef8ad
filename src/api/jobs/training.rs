//! The section `training` of a request: defaults by the kind of tuning, ranges, OpenAI's settings mapped onto it.
//!
//! Called by `resolve.rs`. Defaults are CONTRACT's table; the names are those of `transformers.TrainingArguments`.

use tunesmith_ml::spec::{ClassWeights, Dtype, ProblemType, SchedulerType, TrainingSpec, Tuning};

use super::openai::{Auto, Hyperparameters};
use super::request::TrainingSection;
use crate::api::error::{ApiError, shorten};

/// Figures that can name the best checkpoint of a classifier; `eval_` in front is fine too.
const CLASS_METRICS: &[&str] = &["loss", "accuracy", "f1", "precision", "recall", "f1_micro", "f1_weighted"];
/// The same for a regression.
const NUMBER_METRICS: &[&str] = &["loss", "mse", "rmse", "mae", "r2", "pearson", "spearmanr"];

/// The same for a language model.
const LANGUAGE_METRICS: &[&str] = &["loss", "perplexity", "token_accuracy"];

/// Fills in the defaults and checks the ranges.
pub fn resolve(
    section: Option<&TrainingSection>,
    tuning: &Tuning,
    openai: &Hyperparameters,
    problem: Option<ProblemType>,
    has_eval: bool,
) -> Result<TrainingSpec, ApiError> {
    let empty = TrainingSection::default();
    let s = section.unwrap_or(&empty);
    if problem.is_some() {
        refuse_language_fields(s)?;
    }
    let default_rate = default_rate(tuning, problem.is_none());
    let epochs = once("num_train_epochs", s.num_train_epochs, "n_epochs", openai.n_epochs.and_then(Auto::set).map(|n| n as f64))?;
    let batch = once("per_device_train_batch_size", s.per_device_train_batch_size, "batch_size", openai.batch_size.and_then(Auto::set))?;
    let multiplier = openai.learning_rate_multiplier.and_then(Auto::set);
    if multiplier.is_some_and(|m| !(m > 0.0 && m <= 1e6)) {
        return Err(ApiError::field("hyperparameters.learning_rate_multiplier", "`learning_rate_multiplier` must be above 0."));
    }
    let rate = once("learning_rate", s.learning_rate, "learning_rate_multiplier", multiplier.map(|m| m * default_rate))?;
    let best = best_model(s, problem, has_eval)?;
    Ok(TrainingSpec {
        num_train_epochs: within("num_train_epochs", epochs.unwrap_or(3.0), |v| v > 0.0 && v <= 1e5, "above 0 and at most 100000")?,
        max_steps: within("max_steps", s.max_steps.unwrap_or(-1), |v| v == -1 || (1..=1_000_000_000).contains(&v), "-1, or above 0")?,
        per_device_train_batch_size: count("per_device_train_batch_size", batch.unwrap_or(if problem.is_some() { 16 } else { 4 }), 4096)?,
        max_tokens_per_batch: s.max_tokens_per_batch.map(|n| count("max_tokens_per_batch", n, 1 << 22)).transpose()?,
        gradient_accumulation_steps: count("gradient_accumulation_steps", s.gradient_accumulation_steps.unwrap_or(1), 4096)?,
        learning_rate: within("learning_rate", rate.unwrap_or(default_rate), |v| v > 0.0 && v.is_finite(), "above 0")?,
        lr_scheduler_type: s.lr_scheduler_type.unwrap_or(SchedulerType::Linear),
        warmup_steps: warmup(s.warmup_steps.unwrap_or(0.0))?,
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
        assistant_only_loss: s.assistant_only_loss,
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

/// One setting under two names: either may be given, or both if they agree.
fn once<T: PartialEq + Copy + std::fmt::Display>(ours: &str, a: Option<T>, openais: &str, b: Option<T>) -> Result<Option<T>, ApiError> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => Err(ApiError::field(
            format!("training.{ours}"),
            format!("`training.{ours}` is {a}, and OpenAI's `{openais}` makes it {b}; give one of them."),
        )),
        (a, b) => Ok(a.or(b)),
    }
}

fn within<T: Copy + std::fmt::Display>(name: &str, value: T, ok: impl Fn(T) -> bool, wanted: &str) -> Result<T, ApiError> {
    if ok(value) {
        return Ok(value);
    }
    let name = format!("training.{name}");
    Err(ApiError::field(name.clone(), format!("`{name}` is {value}; it must be {wanted}.")))
}

fn count(name: &str, value: u64, most: u64) -> Result<usize, ApiError> {
    within(name, value, |v| (1..=most).contains(&v), &format!("between 1 and {most}")).map(|v| v as usize)
}

fn warmup(value: f64) -> Result<f64, ApiError> {
    // From 1 on it counts steps, and half a step is a mistake.
    within(
        "warmup_steps",
        value,
        |v| (0.0..=1e9).contains(&v) && (v < 1.0 || v.fract() == 0.0),
        "a whole number of steps, or a share below 1",
    )
}

fn smoothing(value: f64, problem: Option<ProblemType>) -> Result<f64, ApiError> {
    if value > 0.0 && problem != Some(ProblemType::SingleLabelClassification) {
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

fn refuse_language_fields(s: &TrainingSection) -> Result<(), ApiError> {
    for (name, given) in [("packing", s.packing == Some(true)), ("assistant_only_loss", s.assistant_only_loss.is_some())] {
        if given {
            return Err(ApiError::field(
                format!("training.{name}"),
                format!("`training.{name}` is for language models; the task is classification."),
            ));
        }
    }
    Ok(())
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
