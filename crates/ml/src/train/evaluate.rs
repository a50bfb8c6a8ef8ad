//! Evaluation within the loop: the figures of the current weights, the choice of the best step, early stopping.

use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::{Map, json};

use super::observer::{Control, Level, Observer};
use super::run::Run;
use crate::error::{MlError, Result};
use crate::eval::EvalReport;

/// Tokens in an evaluation batch.
pub const EVAL_TOKENS: usize = 4096;

/// An evaluation's figures that say "smaller is better".
fn smaller_is_better(metric: &str) -> bool {
    ["loss", "mse", "rmse", "mae", "perplexity"].iter().any(|m| metric.trim_start_matches("eval_") == *m)
}

impl Run<'_> {
    /// Evaluates the current weights; breaks off if the observer wants something else meanwhile.
    ///
    /// # Errors
    /// If the loss is not finite: the weights are lost, and later steps only hide where.
    pub(super) fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<ControlFlow<Control, EvalReport>> {
        let report = match self.model.evaluate(observer)? {
            ControlFlow::Continue(report) => report,
            ControlFlow::Break(other) => return Ok(ControlFlow::Break(other)),
        };
        // What is not finite stands as null in the report.
        if report.metrics.get("eval_loss").is_some_and(|loss| !loss.is_number()) {
            return Err(MlError::Diverged { what: "the evaluation loss is", step: self.state.step });
        }
        let mut entry = Map::from_iter([("step".to_owned(), json!(self.state.step)), ("epoch".to_owned(), json!(self.epochs()))]);
        entry.extend(report.metrics.clone());
        observer.log(entry);
        self.window_started = (Instant::now(), self.state.trained_rows, self.state.trained_tokens);
        Ok(ControlFlow::Continue(report))
    }

    /// Compares with the best so far, and ends the run where patience is over.
    ///
    /// # Errors
    /// If the evaluation has no such figure.
    pub(super) fn judge(&mut self, evaluation: &EvalReport, observer: &mut dyn Observer) -> Result<()> {
        self.state.last_evaluation = Some(evaluation.metrics.clone());
        let spec = &self.p.job.spec.training;
        if spec.metric_for_best_model.is_none() && !spec.load_best_model_at_end && spec.early_stopping_patience.is_none() {
            return Ok(());
        }
        let name = spec.metric_for_best_model.as_deref().unwrap_or("loss");
        let key = if name.starts_with("eval_") { name.to_owned() } else { format!("eval_{name}") };
        let Some(value) = evaluation.metrics.get(&key) else {
            let known: Vec<&str> = evaluation.metrics.iter().filter(|(_, v)| v.is_number()).map(|(k, _)| k.as_str()).collect();
            let message = format!("{name:?} is no figure of this evaluation; there are: {}", known.join(", "));
            return Err(MlError::setting("training.metric_for_best_model", message));
        };
        let greater = spec.greater_is_better.unwrap_or(!smaller_is_better(name));
        // A figure that is not a number stands as null in the report, and is never the best.
        let better = value.as_f64().filter(|v| self.state.best_metric.is_none_or(|best| if greater { *v > best } else { *v < best }));
        if better.is_some() {
            self.state.best_metric = better;
            self.state.best_step = Some(self.state.step);
            self.state.evaluations_without_gain = 0;
            self.state.checkpoint_due |= spec.load_best_model_at_end;
            return Ok(());
        }
        self.state.evaluations_without_gain += 1;
        if spec.early_stopping_patience.is_some_and(|p| self.state.evaluations_without_gain >= p) {
            self.state.stopped_early = true;
            self.state.checkpoint_due = true;
            let message = format!(
                "Stopped early at step {}: {key} has not improved in {} evaluations.",
                self.state.step, self.state.evaluations_without_gain
            );
            observer.event(
                Level::Info,
                message,
                json!({"step": self.state.step, "best_metric": self.state.best_metric, "best_step": self.state.best_step}),
            );
        }
        Ok(())
    }
}
