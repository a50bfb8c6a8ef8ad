//! What the loop trains: a model with its rows, behind one face. Classifiers and language models are the two of them.

use std::ops::ControlFlow;
use std::path::Path;

use tunesmith_ops::optim::AdamW;

use super::observer::{Control, Observer};
use crate::error::Result;
use crate::eval::EvalReport;
use crate::nn::{Mode, Params};

/// A model in training with its rows.
pub(super) trait Trainee: Sync {
    /// The trained parameters.
    fn params(&self) -> &Params;
    /// Number of all elements.
    fn total_parameters(&self) -> usize;
    /// Full names of the modules with low-rank updates.
    fn target_modules(&self) -> &[String];
    /// Modules that are saved whole with an adapter.
    fn modules_to_save(&self) -> &[String];
    /// The line of a training row in its file.
    fn line(&self, row: usize) -> u64;
    /// What the summed loss of these training rows is divided by.
    fn denominator(&self, rows: &[usize]) -> f64;
    /// Forward and backward over one micro-batch of training rows, the first of which is number `first` of its epoch: adds to the
    /// gradients, returns its share of the loss.
    fn train_batch(&self, rows: &[usize], first: u64, denominator: f64, mode: Mode) -> Result<f64>;
    /// The evaluation rows' figures by the present weights; breaks off if the observer wants something else meanwhile.
    fn evaluate(&self, observer: &mut dyn Observer) -> Result<ControlFlow<Control, EvalReport>>;
    /// Sets the gradients to zero.
    fn zero_grads(&self) -> Result<()>;
    /// L2 norm of the gradients.
    fn grad_norm(&self) -> Result<f64>;
    /// One optimiser step on gradients times `grad_scale`, which are zero after it.
    fn update(&mut self, settings: &AdamW, grad_scale: f32) -> Result<()>;
    /// Puts masters that were changed from outside to use.
    fn pack(&mut self) -> Result<()>;
    /// Writes the model: an adapter's folder for LoRA, a whole model otherwise.
    fn save(&self, folder: &Path) -> Result<()>;
}
