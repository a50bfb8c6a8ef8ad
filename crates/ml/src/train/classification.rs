//! Classification as the loop sees it: a classifier with the rows of its job.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use tunesmith_data::Target;
use tunesmith_ops::optim::AdamW;

use super::classifier::Classifier;
use super::evaluate::EVAL_TOKENS;
use super::loss::LossSettings;
use super::observer::{Control, Observer, on_threads_of};
use super::prepare::Prepared;
use super::trainee::Trainee;
use crate::error::Result;
use crate::eval::{EvalReport, report};
use crate::infer::{Answer, DEFAULT_THRESHOLD};
use crate::nn::{Batch, Mode, Params};
use crate::text::{Encoded, by_tokens};

/// The rows of a classification job as tokens.
pub(super) struct ClassificationRows {
    pub train: Vec<Encoded>,
    pub eval: Vec<Encoded>,
    pub loss: LossSettings,
}

/// A classifier in training.
pub(super) struct ClassificationTask<'a> {
    pub classifier: Classifier,
    pub rows: &'a ClassificationRows,
    pub p: &'a Prepared,
    /// The targets of the training rows, and their lines.
    pub targets: Vec<(&'a Target, u64)>,
}

impl ClassificationTask<'_> {
    fn batch(&self, rows: impl Iterator<Item = usize>, encoded: &[Encoded], first: u64) -> Batch {
        let mut batch = Batch::new();
        for (i, row) in rows.enumerate() {
            let e = &encoded[row];
            batch.push(&e.ids, &e.type_ids, first + i as u64, self.classifier.position_offset());
        }
        batch
    }

    fn targets(&self, rows: &[usize]) -> Vec<&Target> {
        rows.iter().map(|r| self.targets[*r].0).collect()
    }
}

impl Trainee for ClassificationTask<'_> {
    fn params(&self) -> &Params {
        &self.classifier.params
    }

    fn total_parameters(&self) -> usize {
        self.classifier.total_parameters()
    }

    fn target_modules(&self) -> &[String] {
        self.classifier.target_modules()
    }

    fn modules_to_save(&self) -> &[String] {
        self.classifier.modules_to_save()
    }

    fn line(&self, row: usize) -> u64 {
        self.targets[row].1
    }

    fn denominator(&self, rows: &[usize]) -> f64 {
        self.rows.loss.denominator(self.targets(rows).into_iter(), self.classifier.outputs())
    }

    fn train_batch(&self, rows: &[usize], first: u64, denominator: f64, mode: Mode) -> Result<f64> {
        let batch = self.batch(rows.iter().copied(), &self.rows.train, first);
        self.classifier.train_batch(&batch, &self.targets(rows), &self.rows.loss, denominator, mode)
    }

    fn evaluate(&self, observer: &mut dyn Observer) -> Result<ControlFlow<Control, EvalReport>> {
        let started = Instant::now();
        let mut logits = Vec::new();
        for rows in by_tokens(self.rows.eval.iter().map(|r| r.ids.len()), EVAL_TOKENS) {
            match observer.control() {
                Control::Continue => {}
                other => return Ok(ControlFlow::Break(other)),
            }
            logits.extend(on_threads_of(observer, || self.classifier.logits(&self.batch(rows, &self.rows.eval, 0)))?);
        }
        let (examples, labels) = (self.p.job.rows.eval_examples(), &self.p.job.spec.data.labels);
        Ok(ControlFlow::Continue(report(examples, &logits, labels, &self.rows.loss, DEFAULT_THRESHOLD, started.elapsed())))
    }

    fn zero_grads(&self) -> Result<()> {
        self.classifier.zero_grads()
    }

    fn grad_norm(&self) -> Result<f64> {
        self.classifier.grad_norm()
    }

    fn update(&mut self, settings: &AdamW, grad_scale: f32) -> Result<()> {
        self.classifier.update(settings, grad_scale)
    }

    fn pack(&mut self) -> Result<()> {
        self.classifier.pack()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let spec = &self.p.job.spec;
        self.classifier.save(folder, spec, &self.p.job.base_name, self.p.max_length)?;
        Answer { problem_type: spec.data.problem_type, threshold: DEFAULT_THRESHOLD }.write(folder)
    }
}
