//! Learning-rate schedules, as `transformers.get_scheduler` computes them.

use crate::spec::{SchedulerType, TrainingSpec};

/// Where a polynomial schedule ends.
const POLYNOMIAL_END: f64 = 1e-7;

/// The learning rate of each step.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    kind: SchedulerType,
    peak: f64,
    warmup: f64,
    total: f64,
}

impl Schedule {
    /// The schedule of a job with `total` optimiser steps.
    pub fn new(spec: &TrainingSpec, total: u64) -> Self {
        let warmup = if spec.warmup_steps < 1.0 { (total as f64 * spec.warmup_steps).ceil() } else { spec.warmup_steps };
        Self { kind: spec.lr_scheduler_type, peak: spec.learning_rate, warmup, total: total as f64 }
    }

    /// The learning rate of the step that follows `done` finished ones.
    pub fn learning_rate(&self, done: u64) -> f64 {
        let step = done as f64;
        if self.kind == SchedulerType::Constant {
            return self.peak;
        }
        if step < self.warmup {
            return self.peak * step / self.warmup.max(1.0);
        }
        let left = (self.total - step) / (self.total - self.warmup).max(1.0);
        match self.kind {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => self.peak,
            SchedulerType::Linear => self.peak * left.max(0.0),
            SchedulerType::Cosine => self.peak * (0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos())).max(0.0),
            SchedulerType::Polynomial if step > self.total => POLYNOMIAL_END,
            SchedulerType::Polynomial => (self.peak - POLYNOMIAL_END) * left + POLYNOMIAL_END,
        }
    }
}
