//! AdamW over flat parameter buffers in one fused pass, as `torch.optim.AdamW` computes it. The trainer calls it per range of
//! parameters, each with its own weight decay.

use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// The settings of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The number of this step, from 1.
    pub step: u64,
}

/// Updates master weights and moments from `grad · grad_scale` (the clipping factor), and leaves zeros in `grad` for the next step to add
/// to. All slices have one length.
pub fn adamw(cfg: &AdamW, master: &mut [f32], grad: &mut [f32], grad_scale: f32, exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) {
    let n = master.len();
    let moments = (exp_avg.len(), exp_avg_sq.len());
    assert!(grad.len() == n && moments == (n, n), "adamw: {n} weights, {} gradients, {moments:?} moments", grad.len());
    assert!(cfg.step > 0, "adamw: steps count from 1");
    let bias1 = 1.0 - f64::from(cfg.beta1).powf(cfg.step as f64);
    let bias2 = 1.0 - f64::from(cfg.beta2).powf(cfg.step as f64);
    let step_size = (f64::from(cfg.lr) / bias1) as f32;
    let root_bias2 = bias2.sqrt() as f32;
    let decay = 1.0 - cfg.lr * cfg.weight_decay;
    let step = Step { decay, step_size, root_bias2, grad_scale, cfg: *cfg };
    let moments = exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK));
    let chunks = master.par_chunks_mut(CHUNK).zip(grad.par_chunks_mut(CHUNK)).zip(moments);
    chunks.for_each(|((master, grad), (exp_avg, exp_avg_sq))| update(&step, master, grad, exp_avg, exp_avg_sq));
}

/// What is the same for every element of a step.
struct Step {
    decay: f32,
    step_size: f32,
    root_bias2: f32,
    grad_scale: f32,
    cfg: AdamW,
}

dispatch! {
    fn update(step: &Step, master: &mut [f32], grad: &mut [f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) = update_with;
}

// The loop names no vectors: compiled with an instruction set's features it becomes vector code, with the same bits.
#[inline(always)]
fn update_with<S: Simd>(_: S, step: &Step, master: &mut [f32], grad: &mut [f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) {
    let Step { decay, step_size, root_bias2, grad_scale, cfg } = *step;
    let (keep1, keep2) = (1.0 - cfg.beta1, 1.0 - cfg.beta2);
    for (((w, g), m), v) in master.iter_mut().zip(grad).zip(exp_avg).zip(exp_avg_sq) {
        let g = std::mem::take(g) * grad_scale;
        *m += (g - *m) * keep1;
        *v = *v * cfg.beta2 + g * g * keep2;
        *w = *w * decay - step_size * (*m / (v.sqrt() / root_bias2 + cfg.eps));
    }
}
