//! Losses over logits and their gradients, as PyTorch's `CrossEntropyLoss`, `BCEWithLogitsLoss` and `MSELoss` define them.

use std::collections::BTreeMap;

use tunesmith_data::Target;

use crate::error::{MlError, Result};
use crate::spec::{ClassWeights, ProblemType};

/// What the loss depends on beside logits and targets.
#[derive(Debug, Clone)]
pub struct LossSettings {
    /// Which loss.
    pub problem_type: ProblemType,
    /// Share of the target that is spread over all labels.
    pub label_smoothing: f64,
    /// Weight of each class; empty: all 1.
    pub class_weights: Vec<f64>,
}

impl LossSettings {
    fn weight(&self, class: usize) -> f64 {
        self.class_weights.get(class).copied().unwrap_or(1.0)
    }

    /// What the summed loss of these rows is divided by: their weights, or their elements.
    pub fn denominator<'a>(&self, targets: impl Iterator<Item = &'a Target>, outputs: usize) -> f64 {
        match self.problem_type {
            ProblemType::SingleLabelClassification => {
                let sum = targets.map(|t| if let Target::Class(c) = t { self.weight(*c as usize) } else { 1.0 }).sum();
                // Rows of weight 0 alone: their loss is 0, not 0/0.
                if sum == 0.0 { 1.0 } else { sum }
            }
            ProblemType::MultiLabelClassification => (targets.count() * outputs) as f64,
            ProblemType::Regression => targets.count() as f64,
        }
    }
}

/// The summed loss of rows divided by `denominator`, and its gradient by the logits `[rows, outputs]`.
pub fn loss(logits: &[f32], targets: &[&Target], outputs: usize, settings: &LossSettings, denominator: f64) -> (f64, Vec<f32>) {
    let mut total = 0.0;
    let mut grads = vec![0f32; logits.len()];
    for ((row, grad), target) in logits.chunks_exact(outputs).zip(grads.chunks_exact_mut(outputs)).zip(targets) {
        total += match target {
            Target::Class(class) => cross_entropy(row, *class as usize, settings, denominator, grad),
            Target::Classes(classes) => binary(row, classes, settings, denominator, grad),
            Target::Value(value) => {
                let error = f64::from(row[0]) - f64::from(*value);
                grad[0] = (2.0 * error / denominator) as f32;
                error * error
            }
        };
    }
    (total / denominator, grads)
}

/// `-(1 - ε) w_y log p_y - ε/C Σ w_c log p_c`.
fn cross_entropy(row: &[f32], class: usize, s: &LossSettings, denominator: f64, grad: &mut [f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = row.iter().map(|x| (f64::from(*x) - f64::from(max)).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let log_p = |c: usize| f64::from(row[c]) - f64::from(max) - sum.ln();
    let (own, spread) = ((1.0 - s.label_smoothing) * s.weight(class), s.label_smoothing / row.len() as f64);
    let mass = own + spread * (0..row.len()).map(|c| s.weight(c)).sum::<f64>();
    let mut total = -own * log_p(class);
    for (c, g) in grad.iter_mut().enumerate() {
        let aim = if c == class { own } else { 0.0 } + spread * s.weight(c);
        *g = ((mass * exp[c] / sum - aim) / denominator) as f32;
        if spread > 0.0 {
            total -= spread * s.weight(c) * log_p(c);
        }
    }
    total
}

/// `Σ w_c (max(x, 0) - x y + log(1 + e^-|x|))` over the labels.
fn binary(row: &[f32], classes: &[u32], s: &LossSettings, denominator: f64, grad: &mut [f32]) -> f64 {
    let mut total = 0.0;
    for (c, (x, g)) in row.iter().zip(grad).enumerate() {
        let (x, y) = (f64::from(*x), if classes.contains(&(c as u32)) { 1.0 } else { 0.0 });
        total += s.weight(c) * (x.max(0.0) - x * y + (-x.abs()).exp().ln_1p());
        *g = (s.weight(c) * (1.0 / (1.0 + (-x).exp()) - y) / denominator) as f32;
    }
    total
}

/// The weight of each class.
///
/// # Errors
/// If the setting names a label that does not exist, or a word other than "balanced".
pub fn class_weights(setting: Option<&ClassWeights>, labels: &[String], targets: &[Target]) -> Result<Vec<f64>> {
    const PARAM: &str = "training.class_weights";
    match setting {
        None => Ok(Vec::new()),
        Some(ClassWeights::Named(name)) if name == "balanced" => {
            let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
            for target in targets {
                match target {
                    Target::Class(c) => *counts.entry(*c as usize).or_default() += 1.0,
                    Target::Classes(cs) => cs.iter().for_each(|c| *counts.entry(*c as usize).or_default() += 1.0),
                    Target::Value(_) => return Err(MlError::setting(PARAM, "a regression has no classes")),
                }
            }
            let rows = targets.len() as f64;
            Ok((0..labels.len()).map(|c| counts.get(&c).map_or(1.0, |n| rows / (labels.len() as f64 * n))).collect())
        }
        Some(ClassWeights::Named(name)) => {
            Err(MlError::setting(PARAM, format!("{name:?} is not known; use \"balanced\" or a map of labels to weights")))
        }
        Some(ClassWeights::Map(map)) => {
            if let Some((label, _)) = map.iter().find(|(l, w)| !labels.contains(l) || !w.is_finite() || **w < 0.0) {
                return Err(MlError::setting(
                    PARAM,
                    format!("{label:?} is no label of the data, or its weight is negative; labels: {}", labels.join(", ")),
                ));
            }
            Ok(labels.iter().map(|l| map.get(l).copied().unwrap_or(1.0)).collect())
        }
    }
}
