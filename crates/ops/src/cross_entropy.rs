//! Softmax cross-entropy of whole rows of logits, and its gradient in their place. The loss of language models calls it.

use crate::simd::{Simd, dispatch, math};
use rayon::prelude::*;

/// Per row: `losses[i] = −log softmax(row)[targets[i]]`, and `best[i]` the likeliest entry, the first of equal ones. With `gradient`
/// the row becomes `(softmax − one-hot) · weights[i]`. logits `[rows, vocab]`; the others `[rows]`.
pub fn cross_entropy(
    logits: &mut [f32],
    vocab: usize,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    best: &mut [u32],
    gradient: bool,
) {
    let rows = targets.len();
    assert!(vocab > 0 && logits.len() == rows * vocab, "cross_entropy: {} logits are not {rows} rows of {vocab}", logits.len());
    assert!(weights.len() == rows && losses.len() == rows && best.len() == rows, "cross_entropy: one weight, loss and best a row");
    if let Some(target) = targets.iter().find(|t| **t as usize >= vocab) {
        panic!("cross_entropy: target {target} is beyond the vocabulary of {vocab}");
    }
    let read = targets.par_iter().zip(weights);
    let written = losses.par_iter_mut().zip(best);
    logits.par_chunks_mut(vocab).zip(read).zip(written).for_each(|((row, (target, weight)), (loss, best))| {
        (*loss, *best) = row_loss(row, *target as usize, *weight, gradient);
    });
}

dispatch! { fn row_loss(row: &mut [f32], target: usize, weight: f32, gradient: bool) -> (f32, u32) = row_loss_with; }

#[inline(always)]
fn row_loss_with<S: Simd>(s: S, row: &mut [f32], target: usize, weight: f32, gradient: bool) -> (f32, u32) {
    let lanes = S::LANES;
    let (whole, rest) = row.split_at(row.len() - row.len() % lanes);
    let mut highest = s.splat(f32::NEG_INFINITY);
    for part in whole.chunks_exact(lanes) {
        highest = s.max(highest, s.load(part));
    }
    let max = rest.iter().copied().fold(s.largest(highest), f32::max);
    let best = first_of(row, max) as u32;
    let (centre, mut total) = (s.splat(max), s.splat(0.0));
    for part in whole.chunks_exact(lanes) {
        total = s.add(total, math::exp(s, s.sub(s.load(part), centre)));
    }
    let sum = s.sum(total) + rest.iter().map(|v| (v - max).exp()).sum::<f32>();
    let loss = sum.ln() + max - row[target];
    if gradient {
        let factor = weight / sum;
        let factors = s.splat(factor);
        let (whole, rest) = row.split_at_mut(row.len() - row.len() % lanes);
        for part in whole.chunks_exact_mut(lanes) {
            s.store(s.mul(math::exp(s, s.sub(s.load(part), centre)), factors), part);
        }
        rest.iter_mut().for_each(|v| *v = (*v - max).exp() * factor);
        row[target] -= weight;
    }
    (loss, best)
}

/// Where `value` first stands in `x`, or 0. Whole pieces are compared at once, which a search element by element cannot be.
#[inline(always)]
fn first_of(x: &[f32], value: f32) -> usize {
    const PIECE: usize = 256;
    for (i, piece) in x.chunks(PIECE).enumerate() {
        if piece.iter().fold(false, |found, v| found | (*v == value)) {
            return i * PIECE + piece.iter().position(|v| *v == value).unwrap_or(0);
        }
    }
    0
}
