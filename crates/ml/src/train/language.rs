//! Language modelling as the loop sees it: a decoder with the rows of its job, from texts to tokens with weights.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Map, json};
use tunesmith_data::line_list;
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

use super::estimate::estimate_language_memory;
use super::evaluate::EVAL_TOKENS;
use super::language_model::{LanguageLoss, LanguageModel, Sequence, language_loss};
use super::observer::{Control, Level, Observer, on_threads_of};
use super::prepare::{LinearSize, Prepared, TaskParts, TaskRows, TrainJob};
use super::trainee::Trainee;
use crate::error::{MlError, Result};
use crate::eval::EvalReport;
use crate::models::decoder::{DecoderBase, DecoderConfig};
use crate::models::source::Weights;
use crate::nn::{Adapter, Kernels, Mode, Params};
use crate::peft::load_language_adapter;
use crate::spec::{TrainingSpec, Tuning};
use crate::text::{LanguageTokenizer, by_tokens};

/// A text to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct TextRow {
    /// Line of the row in its file.
    pub line: u64,
    /// The text.
    pub text: String,
    /// The parts that are learned, in bytes of the text, each with its weight; absent: all of it.
    pub learned: Option<Vec<(Range<usize>, f32)>>,
    /// Whether a template has written special tokens into the text; otherwise the tokenizer adds its own.
    pub rendered: bool,
    /// Whether the end token follows the text, and is learned.
    pub append_end: bool,
}

/// The rows of a job as tokens.
pub(super) struct LanguageRows {
    pub train: Vec<Sequence>,
    pub eval: Vec<Sequence>,
    /// Prompts whose continuations an evaluation shows.
    pub samples: Vec<Vec<u32>>,
    pub tokenizer: LanguageTokenizer,
    /// What the user should know of them.
    pub warnings: Vec<String>,
}

/// Continuations that an evaluation shows, and their length.
const SAMPLES: usize = 2;
const SAMPLE_TOKENS: usize = 32;

/// Tokenises the rows of a job.
pub(super) fn prepare(job: &TrainJob, train: &[TextRow], eval: &[TextRow], go_on: &(dyn Fn() -> bool + Sync)) -> Result<TaskParts> {
    let weights = Weights::open(&job.base_folder)?;
    let config = DecoderConfig::from_map(weights.config()?)?;
    let tokenizer = LanguageTokenizer::read(&weights, &job.base_folder, config.vocab_size)?;
    let max_length = job.spec.training.max_length.unwrap_or(TrainingSpec::DEFAULT_MAX_LENGTH).min(config.max_positions);
    let encode = |rows: &[TextRow]| {
        let one = |row: &TextRow| match go_on() {
            true => sequence(row, &tokenizer, max_length),
            false => Err(MlError::Interrupted),
        };
        rows.par_iter().map(one).collect::<Result<Vec<_>>>()
    };
    let (mut train, mut eval) = (encode(train)?, encode(eval)?);
    let held_out = job.spec.data.validation_split > 0.0;
    let mut warnings = Vec::new();
    leave_out_unlearned(&mut train, "training_file", false, max_length, &mut warnings)?;
    leave_out_unlearned(&mut eval, if held_out { "training_file" } else { "validation_file" }, held_out, max_length, &mut warnings)?;
    let samples = eval.iter().chain(&train).filter_map(prompt_of).take(SAMPLES).collect();
    let lengths: Vec<usize> = train.iter().map(|s| s.ids.len()).collect();
    let memory = estimate_language_memory(&config, &job.spec, &lengths);
    let linear = LinearSize { elements: config.linear_elements(), hidden: config.hidden, intermediate: config.intermediate };
    Ok((TaskRows::Language(Box::new(LanguageRows { train, eval, samples, tokenizer, warnings })), max_length, linear, memory))
}

/// Takes rows away of which no token is learned: alone in a batch, one would divide by zero.
fn leave_out_unlearned(
    rows: &mut Vec<Sequence>,
    file: &str,
    may_be_none: bool,
    max_length: usize,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const LISTED: usize = 20;
    const WHY: &str = "a text of one token, or a prompt that fills the whole length";
    let all = rows.len();
    let lines: Vec<u64> = rows.iter().filter(|s| s.weight() == 0.0).map(|s| s.line).collect();
    if lines.is_empty() {
        return Ok(());
    }
    rows.retain(|s| s.weight() > 0.0);
    if rows.is_empty() && !may_be_none {
        let message =
            format!("none of the {all} rows has a token to learn within {max_length} tokens ({WHY}); `training.max_length` sets the limit");
        return Err(MlError::setting(file, message));
    }
    warnings.push(format!(
        "{} of {all} rows of `{file}` have no token to learn within {max_length} tokens ({WHY}) and are left out: {}.",
        lines.len(),
        line_list(&lines[..lines.len().min(LISTED)], lines.len() as u64),
    ));
    Ok(())
}

/// A row's tokens with the weight of each as a target.
fn sequence(row: &TextRow, tokenizer: &LanguageTokenizer, max_length: usize) -> Result<Sequence> {
    let mut ids = Vec::new();
    let mut weights: Vec<f32> = Vec::new();
    for (range, weight) in pieces(row, tokenizer.adds_space()) {
        let tokens = tokenizer.encode_with_offsets(&row.text[range.clone()], !row.rendered && range.start == 0)?;
        for (id, place) in tokens {
            ids.push(id);
            // A token that reaches over a border belongs to where it ends: what is learned begins with a whole token.
            weights.push(weight.unwrap_or_else(|| learned(row, range.start + place.end)));
        }
    }
    // The end is told by the tokenizer's own end token, once, whatever other role that token has.
    if row.append_end
        && let Some(end) = tokenizer.end_of_text()
        && ids.last() != Some(&end)
    {
        ids.push(end);
        weights.push(1.0);
    }
    if let Some(first) = weights.first_mut() {
        *first = 0.0;
    }
    let truncated = ids.len().saturating_sub(max_length);
    ids.truncate(max_length);
    weights.truncate(max_length);
    Ok(Sequence { line: row.line, ids, weights, truncated })
}

/// The parts of a text that are tokenised apart, each with its weight where that is one. An answer begins at a token of its own, as
/// it does in serving; a tokenizer that puts a space before every text would add one at each border, so there the text stays whole.
fn pieces(row: &TextRow, whole: bool) -> Vec<(Range<usize>, Option<f32>)> {
    let Some(parts) = row.learned.as_ref().filter(|_| !whole) else {
        return vec![(0..row.text.len(), row.learned.is_none().then_some(1.0))];
    };
    let mut pieces = Vec::with_capacity(2 * parts.len() + 1);
    let mut at = 0;
    for (part, weight) in parts {
        pieces.push((at..part.start, Some(0.0)));
        pieces.push((part.clone(), Some(*weight)));
        at = part.end;
    }
    pieces.push((at..row.text.len(), Some(0.0)));
    pieces.retain(|(range, _)| !range.is_empty());
    pieces
}

/// The weight of a token that ends at `end`, in bytes of the text.
fn learned(row: &TextRow, end: usize) -> f32 {
    let parts = row.learned.iter().flatten();
    parts.into_iter().find(|(part, _)| part.start < end && end <= part.end).map_or(0.0, |(_, weight)| *weight)
}

/// What stands before the first learned token, or the first few tokens of a text that is learned whole.
fn prompt_of(s: &Sequence) -> Option<Vec<u32>> {
    let first = s.weights.iter().position(|w| *w > 0.0)?;
    let end = if first > 1 { first } else { 8.min(s.ids.len() / 2) };
    (end > 0).then(|| s.ids[..end].to_vec())
}

/// A decoder in training.
pub(super) struct LanguageTask<'a> {
    model: LanguageModel,
    rows: &'a LanguageRows,
    p: &'a Prepared,
}

impl<'a> LanguageTask<'a> {
    pub fn new(p: &'a Prepared, rows: &'a LanguageRows) -> Result<Self> {
        let base = DecoderBase::load(&p.job.base_folder, &p.job.device)?;
        Ok(Self { model: LanguageModel::new(base, &p.job.spec, p.precision, p.job.kernels)?, rows, p })
    }

    fn sequences(&self, rows: &[usize]) -> Vec<&'a Sequence> {
        rows.iter().map(|r| &self.rows.train[*r]).collect()
    }
}

/// The figures of a language model's evaluation.
fn language_report(loss: LanguageLoss, rows: usize, seconds: f64) -> EvalReport {
    let mean = loss.loss / loss.weight.max(f64::MIN_POSITIVE);
    let mut metrics = Map::new();
    metrics.insert("eval_loss".into(), json!(mean));
    metrics.insert("eval_perplexity".into(), json!(mean.exp()));
    metrics.insert("eval_token_accuracy".into(), json!(loss.hits as f64 / loss.targets.max(1) as f64));
    metrics.insert("eval_tokens".into(), json!(loss.targets));
    metrics.insert("eval_runtime".into(), json!(seconds));
    metrics.insert("eval_samples_per_second".into(), json!(rows as f64 / seconds.max(1e-9)));
    EvalReport { metrics, confusion_matrix: None, predictions: Vec::new() }
}

/// The figures of a saved model: a whole one, or an adapter's folder on its base.
///
/// # Errors
/// If a folder cannot be loaded.
pub fn evaluate_language(base: &Path, adapter: Option<&Path>, rows: &[Sequence]) -> Result<EvalReport> {
    let started = Instant::now();
    let mut base = DecoderBase::load_to_serve(base)?;
    base.decoder.pack(Precision::F32, false)?;
    let mut updates = match adapter {
        Some(folder) => load_language_adapter(folder, &base)?.adapter,
        None => Adapter::default(),
    };
    updates.pack(false)?;
    let mut total = LanguageLoss::default();
    for batch in by_tokens(rows.iter().map(|s| s.ids.len()), EVAL_TOKENS) {
        total += language_loss(&base.decoder, &updates, Kernels::Native, &rows[batch].iter().collect::<Vec<_>>())?;
    }
    Ok(language_report(total, rows.len(), started.elapsed().as_secs_f64()))
}

impl Trainee for LanguageTask<'_> {
    fn params(&self) -> &Params {
        &self.model.params
    }

    fn total_parameters(&self) -> usize {
        self.model.total_parameters()
    }

    fn target_modules(&self) -> &[String] {
        self.model.target_modules()
    }

    fn modules_to_save(&self) -> &[String] {
        &[]
    }

    fn line(&self, row: usize) -> u64 {
        self.rows.train[row].line
    }

    fn denominator(&self, rows: &[usize]) -> f64 {
        self.sequences(rows).iter().map(|s| s.weight()).sum::<f64>().max(f64::MIN_POSITIVE)
    }

    fn train_batch(&self, rows: &[usize], first: u64, denominator: f64, mode: Mode) -> Result<f64> {
        Ok(self.model.train_batch(&self.sequences(rows), first, denominator, mode)?.loss / denominator)
    }

    fn evaluate(&self, observer: &mut dyn Observer) -> Result<ControlFlow<Control, EvalReport>> {
        let started = Instant::now();
        let mut total = LanguageLoss::default();
        for batch in by_tokens(self.rows.eval.iter().map(|s| s.ids.len()), EVAL_TOKENS) {
            match observer.control() {
                Control::Continue => {}
                other => return Ok(ControlFlow::Break(other)),
            }
            total += on_threads_of(observer, || self.model.evaluate(&self.rows.eval[batch].iter().collect::<Vec<_>>()))?;
        }
        let report = language_report(total, self.rows.eval.len(), started.elapsed().as_secs_f64());
        for prompt in &self.rows.samples {
            match observer.control() {
                Control::Continue => {}
                other => return Ok(ControlFlow::Break(other)),
            }
            let tokenizer = &self.rows.tokenizer;
            let is_end = |id| tokenizer.end_tokens().contains(&id);
            let ids = on_threads_of(observer, || self.model.continue_greedily(prompt, SAMPLE_TOKENS, &is_end))?;
            let (before, after) = (tokenizer.text_of(prompt, true), tokenizer.text_of(&ids, false));
            observer.event(Level::Info, format!("Sample: {after}"), json!({"prompt": before, "completion": after}));
        }
        Ok(ControlFlow::Continue(report))
    }

    fn zero_grads(&self) -> Result<()> {
        self.model.zero_grads()
    }

    fn grad_norm(&self) -> Result<f64> {
        self.model.grad_norm()
    }

    fn update(&mut self, settings: &AdamW, grad_scale: f32) -> Result<()> {
        self.model.update(settings, grad_scale)
    }

    fn pack(&mut self) -> Result<()> {
        self.model.pack()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let (job, tokenizer) = (&self.p.job, &self.rows.tokenizer);
        match &job.spec.tuning {
            Tuning::Lora(lora) => self.model.save_adapter(folder, lora, &job.base_name, tokenizer),
            Tuning::Full | Tuning::Head => self.model.save_whole(folder, tokenizer),
        }
    }
}
