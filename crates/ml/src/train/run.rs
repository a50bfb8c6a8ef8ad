//! The training loop, from the first step or from a checkpoint to the finished model.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tunesmith_data::Example;
use tunesmith_ops::optim::AdamW;

use super::language_model::Sequence;
use super::loss::LossSettings;
use super::observer::{CheckpointReady, Control, Level, Observer, Progress, on_threads_of};
use super::order::{EpochOrder, Step};
use super::prepare::Prepared;
use super::schedule::Schedule;
use super::state::{TrainState, load_tensors};
use super::trainee::Trainee;
use crate::error::{MlError, Result};
use crate::nn::Mode;
use crate::spec::{TrainingSpec, Tuning};
use crate::text::Encoded;

/// How a run ended.
pub enum Outcome {
    /// The model is written.
    Finished(Box<Finished>),
    /// A checkpoint is written; the job can go on from it.
    Paused,
    /// The observer asked to stop.
    Stopped,
}

/// A finished run.
pub struct Finished {
    /// The model's folder, in the work folder.
    pub model: PathBuf,
    /// The step whose weights were saved.
    pub model_step: u64,
    /// Trained elements.
    pub trainable_parameters: usize,
    /// All elements.
    pub total_parameters: usize,
    /// Full names of modules with low-rank updates.
    pub target_modules: Vec<String>,
    /// The loop's last state.
    pub state: TrainState,
    /// What the saved model is to be evaluated on.
    pub eval: Arc<FinalEvaluation>,
}

/// The rows of the saved model's evaluation.
pub enum FinalEvaluation {
    /// Of a classifier.
    Classification {
        /// The rows.
        rows: Vec<Example>,
        /// The same rows as tokens.
        tokens: Vec<Encoded>,
        /// The loss.
        loss: LossSettings,
    },
    /// Of a language model.
    Language(Vec<Sequence>),
}

impl Prepared {
    /// Trains until the job is finished, paused or stopped. `resume` is a checkpoint's folder.
    ///
    /// # Errors
    /// If the loss is not finite, a file cannot be written, or the observer fails.
    pub fn run(self, resume: Option<&std::path::Path>, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut outcome = Run::start(&self, resume, observer)?.run(observer)?;
        if let Outcome::Finished(finished) = &mut outcome {
            finished.eval = Arc::new(self.into_evaluation());
        }
        Ok(outcome)
    }
}

pub(super) struct Run<'a> {
    pub(super) p: &'a Prepared,
    pub(super) model: Box<dyn Trainee + 'a>,
    schedule: Schedule,
    pub(super) state: TrainState,
    order: EpochOrder,
    /// The order's epoch and its first step's number.
    epoch: (u64, u64),
    lengths: Vec<usize>,
    started: Instant,
    pub(super) window_started: (Instant, u64, u64),
    saved_at: Option<u64>,
}

impl<'a> Run<'a> {
    fn start(p: &'a Prepared, resume: Option<&std::path::Path>, observer: &mut dyn Observer) -> Result<Self> {
        let spec = &p.job.spec;
        let model = p.trainee()?;
        let lengths = p.lengths();
        let (kernel_set, version) = (tunesmith_ops::cpu::kernel_set(), env!("CARGO_PKG_VERSION").to_owned());
        let mut state =
            TrainState { data_sha256: p.job.data_sha256.clone(), kernel_set, version, threads: p.job.threads, ..TrainState::default() };
        let mut saved_at = None;
        if let Some(folder) = resume {
            let earlier = TrainState::read(folder)?;
            if earlier.data_sha256 != state.data_sha256 {
                return Err(MlError::setting("training_file", "the data changed since the checkpoint was written; file a new job"));
            }
            if (&earlier.kernel_set, &earlier.version) != (&state.kernel_set, &state.version) {
                let message = format!(
                    "resumed in {} with other kernels ({}, version {}) than before ({}, version {}): losses may differ, where the arithmetic is \
                     the same in the last bits",
                    p.plan.dtype, state.kernel_set, state.version, earlier.kernel_set, earlier.version
                );
                observer.event(Level::Warn, message, json!({"kernel_set": state.kernel_set, "before": earlier.kernel_set}));
            }
            load_tensors(folder, model.params(), true)?;
            saved_at = Some(earlier.step);
            state = TrainState { kernel_set: state.kernel_set, version: state.version, threads: state.threads, ..earlier };
        }
        let now = Instant::now();
        let mut run = Self {
            schedule: Schedule::new(&spec.training, p.plan.total_steps),
            order: EpochOrder::new(spec.seed, 0, &lengths, &spec.training),
            window_started: (now, state.trained_rows, state.trained_tokens),
            epoch: (0, 0),
            started: now,
            p,
            model,
            state,
            lengths,
            saved_at,
        };
        // An evaluation that is due belongs to the epoch of the step before it.
        run.seek(run.state.step.saturating_sub(1));
        run.model.pack()?;
        run.observe_model(observer);
        Ok(run)
    }

    fn observe_model(&self, observer: &mut dyn Observer) {
        let (trained, total) = (self.model.params().len(), self.model.total_parameters());
        let message = format!("Training {trained} of {total} parameters for {} steps in {}.", self.p.plan.total_steps, self.p.plan.dtype);
        observer.event(
            Level::Info,
            message,
            json!({
                "trainable_parameters": trained, "total_parameters": total, "total_steps": self.p.plan.total_steps,
                "dtype": self.p.plan.dtype, "target_modules": self.model.target_modules(), "modules_to_save": self.model.modules_to_save(),
            }),
        );
    }

    fn spec(&self) -> &TrainingSpec {
        &self.p.job.spec.training
    }

    fn run(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let total = self.p.plan.total_steps;
        loop {
            match self.finish_step(observer)? {
                Control::Continue => {}
                other => return self.leave(other, observer),
            }
            if self.state.step >= total || self.state.stopped_early {
                break;
            }
            match self.step(observer)? {
                Control::Continue => {}
                other => return self.leave(other, observer),
            }
        }
        self.finish(observer)
    }

    /// Evaluation and checkpoint that are due at the current step.
    fn finish_step(&mut self, observer: &mut dyn Observer) -> Result<Control> {
        if self.state.evaluation_due {
            let evaluation = match self.evaluate(observer)? {
                ControlFlow::Continue(evaluation) => evaluation,
                ControlFlow::Break(other) => return Ok(other),
            };
            self.judge(&evaluation, observer)?;
            self.state.evaluation_due = false;
        }
        if self.state.checkpoint_due {
            self.state.checkpoint_due = false;
            self.checkpoint(observer)?;
        }
        Ok(Control::Continue)
    }

    fn leave(mut self, control: Control, observer: &mut dyn Observer) -> Result<Outcome> {
        if control == Control::Stop {
            return Ok(Outcome::Stopped);
        }
        if self.saved_at != Some(self.state.step) || self.state.evaluation_due {
            self.checkpoint(observer)?;
        }
        Ok(Outcome::Paused)
    }

    /// Moves on to the epoch in which step number `step` (from 0) lies.
    fn seek(&mut self, step: u64) {
        while step >= self.epoch.1 + self.order.steps.len() as u64 {
            self.epoch = (self.epoch.0 + 1, self.epoch.1 + self.order.steps.len() as u64);
            self.order = EpochOrder::new(self.p.job.spec.seed, self.epoch.0, &self.lengths, &self.p.job.spec.training);
        }
    }

    /// The step after the finished ones, and its epoch.
    fn next_step(&mut self) -> (u64, Step) {
        self.seek(self.state.step);
        let step = self.order.steps[(self.state.step - self.epoch.1) as usize].clone();
        (self.epoch.0, step)
    }

    fn step(&mut self, observer: &mut dyn Observer) -> Result<Control> {
        let (epoch, step) = self.next_step();
        let number = self.state.step + 1;
        let all: Vec<usize> = step.rows().collect();
        let denominator = self.model.denominator(&all);
        let (mut loss, mut first) = (0.0, step.first as u64);
        for rows in &step.micro_batches {
            match observer.control() {
                Control::Continue => {}
                other => {
                    self.model.zero_grads()?;
                    return Ok(other);
                }
            }
            let mode = Mode::Train { seed: self.p.job.spec.seed, step: epoch };
            let value = on_threads_of(observer, || self.model.train_batch(rows, first, denominator, mode))?;
            if !value.is_finite() {
                return Err(self.not_finite("loss", number, rows));
            }
            loss += value;
            first += rows.len() as u64;
        }
        let norm = self.model.grad_norm()?;
        if !norm.is_finite() {
            return Err(self.not_finite("gradient", number, &all));
        }
        let learning_rate = self.schedule.learning_rate(self.state.step);
        let s = self.spec();
        let clip = if s.max_grad_norm > 0.0 { (s.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let adamw = AdamW {
            lr: learning_rate as f32,
            beta1: s.adam_beta1 as f32,
            beta2: s.adam_beta2 as f32,
            eps: s.adam_epsilon as f32,
            weight_decay: s.weight_decay as f32,
            step: number,
        };
        self.model.update(&adamw, clip as f32)?;
        self.count(&all, loss);
        self.after_step(learning_rate, norm, observer);
        Ok(Control::Continue)
    }

    fn not_finite(&self, what: &'static str, step: u64, rows: &[usize]) -> MlError {
        let lines: Vec<String> = rows.iter().take(32).map(|r| self.model.line(*r).to_string()).collect();
        let more = if rows.len() > 32 { format!(" and {} more", rows.len() - 32) } else { String::new() };
        MlError::NotFinite { what, step, rows: lines.join(", ") + &more }
    }

    fn count(&mut self, rows: &[usize], loss: f64) {
        let state = &mut self.state;
        state.step += 1;
        state.window_loss += loss;
        state.window_steps += 1;
        state.last_loss = loss;
        state.trained_rows += rows.len() as u64;
        state.trained_tokens += rows.iter().map(|r| self.lengths[*r] as u64).sum::<u64>();
    }

    /// Passes over the data so far.
    pub(super) fn epochs(&self) -> f64 {
        self.epoch.0 as f64 + (self.state.step - self.epoch.1) as f64 / self.order.steps.len() as f64
    }

    fn after_step(&mut self, learning_rate: f64, norm: f64, observer: &mut dyn Observer) {
        let (step, total) = (self.state.step, self.p.plan.total_steps);
        let done_here = (self.state.trained_rows - self.window_started.1) as f64;
        let elapsed = self.window_started.0.elapsed().as_secs_f64().max(1e-9);
        let rate = done_here / elapsed;
        let rows_per_step = self.state.trained_rows as f64 / step as f64;
        let eta_seconds = (total - step) as f64 * rows_per_step / rate.max(1e-9);
        observer.progress(Progress {
            step,
            total_steps: total,
            epoch: self.epochs(),
            eta_seconds,
            trained_tokens: self.state.trained_tokens,
        });
        let last = step == total;
        let epoch_ends = step == self.epoch.1 + self.order.steps.len() as u64;
        if step.is_multiple_of(self.spec().logging_steps.max(1)) || last {
            let tokens = (self.state.trained_tokens - self.window_started.2) as f64;
            let entry = json!({
                "step": step, "epoch": self.epochs(), "loss": self.state.window_loss / self.state.window_steps as f64,
                "learning_rate": learning_rate, "grad_norm": norm, "samples_per_second": rate, "tokens_per_second": tokens / elapsed,
                "eta_seconds": eta_seconds,
            });
            if let Value::Object(entry) = entry {
                observer.log(entry);
            }
            (self.state.window_loss, self.state.window_steps) = (0.0, 0);
            self.window_started = (Instant::now(), self.state.trained_rows, self.state.trained_tokens);
        }
        let due = |every: Option<u64>| every.map_or(epoch_ends, |n| step.is_multiple_of(n.max(1)));
        self.state.evaluation_due = self.p.plan.eval_rows > 0 && (due(self.spec().eval_steps) || last);
        self.state.checkpoint_due = due(self.spec().save_steps) || last;
    }

    fn checkpoint(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let step = self.state.step;
        // A checkpoint is offered as a model, and resumed from: it must be neither of nothing.
        if !self.model.params().are_finite(self.p.job.kernels)? {
            return Err(MlError::Diverged { what: "the trained weights are", step });
        }
        self.state.train_seconds += self.started.elapsed().as_secs_f64();
        self.started = Instant::now();
        let folder = self.p.job.work_dir.join(format!("checkpoint-{step}"));
        let model = folder.join("model");
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|e| MlError::io(&folder, e))?;
        }
        fs::create_dir_all(&model).map_err(|e| MlError::io(&model, e))?;
        self.model.save(&model)?;
        self.state.save(&folder, self.model.params())?;
        let mut metrics = Map::from_iter([("step".to_owned(), json!(step)), ("train_loss".to_owned(), json!(self.state.last_loss))]);
        if let Some(evaluation) = &self.state.last_evaluation {
            metrics.insert("valid_loss".to_owned(), evaluation["eval_loss"].clone());
            metrics.extend(evaluation.clone());
        }
        observer.checkpoint(CheckpointReady { step, folder: &folder, metrics, is_best: self.state.best_step == Some(step) })?;
        self.saved_at = Some(step);
        Ok(())
    }

    /// Chooses the weights, writes the model.
    fn finish(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut model_step = self.state.step;
        if self.spec().load_best_model_at_end
            && let Some(best) = self.state.best_step
            && best != model_step
        {
            let folder = observer.state_folder(best)?;
            load_tensors(&folder, self.model.params(), false)?;
            self.model.pack()?;
            model_step = best;
            observer.event(
                Level::Info,
                format!("Loaded the best weights, of step {best}."),
                json!({"step": best, "best_metric": self.state.best_metric}),
            );
        }
        let model = self.p.job.work_dir.join("model");
        if model.exists() {
            fs::remove_dir_all(&model).map_err(|e| MlError::io(&model, e))?;
        }
        fs::create_dir_all(&model).map_err(|e| MlError::io(&model, e))?;
        self.model.save(&model)?;
        self.state.train_seconds += self.started.elapsed().as_secs_f64();
        let lora = matches!(self.p.job.spec.tuning, Tuning::Lora(_));
        Ok(Outcome::Finished(Box::new(Finished {
            model,
            model_step,
            trainable_parameters: self.model.params().len(),
            total_parameters: self.model.total_parameters(),
            target_modules: if lora { self.model.target_modules().to_vec() } else { Vec::new() },
            state: self.state,
            eval: Arc::new(FinalEvaluation::Language(Vec::new())),
        })))
    }
}
