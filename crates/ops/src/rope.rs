//! Rotary position embedding in the half-split form, forwards and backwards. The attention of rotary decoders calls it.

use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// Tokens per task.
const TOKENS: usize = 16;

/// Turns each head of x in place: pairs (i, i + rotary/2) of its first `rotary` dimensions. x `[tokens, width]` of
/// `width / head_dim` heads; cos and sin `[tokens, rotary/2]`. `inverse` turns back, which is the backward pass.
pub fn rope(x: &mut [f32], width: usize, head_dim: usize, rotary: usize, cos: &[f32], sin: &[f32], inverse: bool) {
    assert!(head_dim > 0 && width > 0 && width.is_multiple_of(head_dim), "rope: {width} is not a number of heads of {head_dim}");
    assert!(rotary <= head_dim && rotary.is_multiple_of(2), "rope: {rotary} of {head_dim} dimensions cannot be turned");
    assert!(x.len().is_multiple_of(width), "rope: {} elements are not rows of {width}", x.len());
    let (tokens, half) = (x.len() / width, rotary / 2);
    assert_eq!(cos.len(), tokens * half, "rope: cos");
    assert_eq!(sin.len(), tokens * half, "rope: sin");
    if half == 0 {
        return;
    }
    let tables = cos.par_chunks(TOKENS * half).zip(sin.par_chunks(TOKENS * half));
    x.par_chunks_mut(TOKENS * width).zip(tables).for_each(|(x, (cos, sin))| turn(x, width, head_dim, half, cos, sin, inverse));
}

dispatch! {
    fn turn(x: &mut [f32], width: usize, head_dim: usize, half: usize, cos: &[f32], sin: &[f32], inverse: bool) = turn_with;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn turn_with<S: Simd>(s: S, x: &mut [f32], width: usize, head_dim: usize, half: usize, cos: &[f32], sin: &[f32], inverse: bool) {
    let lanes = S::LANES;
    let sign = s.splat(if inverse { -1.0 } else { 1.0 });
    for (row, (cos, sin)) in x.chunks_exact_mut(width).zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
        for head in row.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(half);
            let pairs = first.chunks_mut(lanes).zip(second[..half].chunks_mut(lanes));
            for ((a, b), (cos, sin)) in pairs.zip(cos.chunks(lanes).zip(sin.chunks(lanes))) {
                let (x, y) = (s.load_some(a), s.load_some(b));
                let (cos, sin) = (s.load_some(cos), s.mul(sign, s.load_some(sin)));
                s.store_some(s.sub(s.mul(x, cos), s.mul(y, sin)), a);
                s.store_some(s.add(s.mul(y, cos), s.mul(x, sin)), b);
            }
        }
    }
}
