//! The order of rows: a permutation for each epoch, drawn from the seed and the epoch alone, cut into micro-batches and
//! optimiser steps. A resumed job finds its place again by counting.

use crate::models::Stream;
use crate::spec::TrainingSpec;
use crate::text::by_tokens;

/// One optimiser step: its micro-batches of row numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Rows of each micro-batch.
    pub micro_batches: Vec<Vec<usize>>,
    /// Number of the first row in the epoch's order.
    pub first: usize,
}

impl Step {
    /// Every row of the step.
    pub fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.micro_batches.iter().flatten().copied()
    }
}

/// The steps of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder {
    /// In order.
    pub steps: Vec<Step>,
}

impl EpochOrder {
    /// The order of `epoch` (from 0) over rows of the given token counts. The last step of an epoch may be short.
    pub fn new(seed: u64, epoch: u64, lengths: &[usize], spec: &TrainingSpec) -> Self {
        let mut rows: Vec<usize> = (0..lengths.len()).collect();
        let mut stream = Stream::new(seed, &format!("order of epoch {epoch}"));
        for i in (1..rows.len()).rev() {
            rows.swap(i, stream.below(i + 1));
        }
        let micro_batches: Vec<Vec<usize>> = match spec.micro_batch_tokens() {
            Some(limit) => by_tokens(rows.iter().map(|r| lengths[*r]), limit).into_iter().map(|range| rows[range].to_vec()).collect(),
            None => rows.chunks(spec.per_device_train_batch_size.max(1)).map(<[usize]>::to_vec).collect(),
        };
        let mut first = 0;
        let steps = micro_batches.chunks(spec.gradient_accumulation_steps.max(1)).map(|group| {
            let step = Step { micro_batches: group.to_vec(), first };
            first += step.rows().count();
            step
        });
        Self { steps: steps.collect() }
    }
}

/// Optimiser steps of the whole job.
pub fn total_steps(seed: u64, lengths: &[usize], spec: &TrainingSpec) -> u64 {
    if spec.max_steps > 0 {
        return spec.max_steps as u64;
    }
    let whole = spec.num_train_epochs.floor() as u64;
    let steps = |epoch| EpochOrder::new(seed, epoch, lengths, spec).steps.len() as f64;
    let part = spec.num_train_epochs - whole as f64;
    let full: f64 = match spec.micro_batch_tokens() {
        Some(_) => (0..whole).map(steps).sum(),
        None => whole as f64 * steps(0),
    };
    ((full + part * steps(whole)).ceil() as u64).max(1)
}
