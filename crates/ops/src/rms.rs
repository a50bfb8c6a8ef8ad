//! Root-mean-square normalisation, forwards and backwards; reached through `norm`. The norm layers of every decoder call it.
//!
//! As in `norm.rs`, a row's bits depend on the row alone, and the gain's gradient is summed over blocks at fixed borders.

use crate::matmul::{Shared, written};
use crate::norm::{BLOCK, blocks, check};
use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// `y = x · rstd · (offset + gamma)` per row of `dim` elements, with `rstd = 1 / sqrt(mean(x²) + eps)`. x `[rows, dim]`; returns y of the
/// same shape and rstd `[rows]`, which is kept for the backward pass.
pub fn rms_norm(x: &[f32], gamma: &[f32], offset: f32, eps: f32, dim: usize) -> [Vec<f32>; 2] {
    let rows = check("rms_norm", x.len(), dim, gamma.len());
    // SAFETY: each block writes all of its rows.
    unsafe {
        written([x.len(), rows], |[y, rstd]| {
            blocks(rows).for_each(|(_, rows)| {
                let at = rows.start * dim..rows.end * dim;
                forward(&x[at.clone()], gamma, offset, eps, dim, y.part(at), rstd.part(rows));
            });
        })
    }
}

/// The gradients of [`rms_norm`]: returns dx, and adds to dgamma.
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    offset: f32,
    rstd: &[f32],
    dim: usize,
    dgamma: Option<&mut [f32]>,
) -> Vec<f32> {
    let rows = check("rms_norm_backward", x.len(), dim, gamma.len());
    assert_eq!(dy.len(), x.len(), "rms_norm_backward: dy");
    assert_eq!(rstd.len(), rows, "rms_norm_backward: rstd");
    // [blocks, dim]
    let each = if dgamma.is_some() { dim } else { 0 };
    let mut partial = vec![0.0; rows.div_ceil(BLOCK) * each];
    let sums = Shared::new(&mut partial);
    // SAFETY: each block writes all of its rows, and has sums of its own.
    let [dx] = unsafe {
        written([x.len()], |[dx]| {
            blocks(rows).for_each(|(block, rows)| {
                let at = rows.start * dim..rows.end * dim;
                let sums = sums.part(block * each..(block + 1) * each);
                backward(&dy[at.clone()], &x[at.clone()], gamma, offset, &rstd[rows], dim, dx.part(at), sums);
            });
        })
    };
    if let Some(dgamma) = dgamma {
        assert_eq!(dgamma.len(), dim, "rms_norm_backward: dgamma");
        for sums in partial.chunks_exact(dim) {
            dgamma.iter_mut().zip(sums).for_each(|(g, s)| *g += s);
        }
    }
    dx
}

dispatch! { fn forward(x: &[f32], gamma: &[f32], offset: f32, eps: f32, dim: usize, y: &mut [f32], rstd: &mut [f32]) = forward_with; }
dispatch! {
    fn backward(dy: &[f32], x: &[f32], gamma: &[f32], offset: f32, rstd: &[f32], dim: usize, dx: &mut [f32], sums: &mut [f32]) = backward_with;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn forward_with<S: Simd>(s: S, x: &[f32], gamma: &[f32], offset: f32, eps: f32, dim: usize, y: &mut [f32], rstd: &mut [f32]) {
    let lanes = S::LANES;
    for ((x, y), rstd) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(rstd) {
        let mut squares = s.splat(0.0);
        for part in x.chunks(lanes) {
            let v = s.load_some(part);
            squares = s.fma(v, v, squares);
        }
        *rstd = 1.0 / (s.sum(squares) / dim as f32 + eps).sqrt();
        let (factor, offset) = (s.splat(*rstd), s.splat(offset));
        for ((x, y), gamma) in x.chunks(lanes).zip(y.chunks_mut(lanes)).zip(gamma.chunks(lanes)) {
            let normal = s.mul(s.load_some(x), factor);
            s.store_some(s.mul(normal, s.add(offset, s.load_some(gamma))), y);
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_with<S: Simd>(
    s: S,
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    offset: f32,
    rstd: &[f32],
    dim: usize,
    dx: &mut [f32],
    sums: &mut [f32],
) {
    let lanes = S::LANES;
    let offset = s.splat(offset);
    for (((dx, dy), x), rstd) in dx.chunks_exact_mut(dim).zip(dy.chunks_exact(dim)).zip(x.chunks_exact(dim)).zip(rstd) {
        let factor = s.splat(*rstd);
        let mut along = s.splat(0.0);
        for ((dy, x), gamma) in dy.chunks(lanes).zip(x.chunks(lanes)).zip(gamma.chunks(lanes)) {
            // Lanes beyond the row are 0 in dy, so they add nothing.
            let g = s.mul(s.load_some(dy), s.add(offset, s.load_some(gamma)));
            along = s.fma(g, s.mul(s.load_some(x), factor), along);
        }
        let along = s.splat(s.sum(along) / dim as f32);
        for (((dx, dy), x), gamma) in dx.chunks_mut(lanes).zip(dy.chunks(lanes)).zip(x.chunks(lanes)).zip(gamma.chunks(lanes)) {
            let g = s.mul(s.load_some(dy), s.add(offset, s.load_some(gamma)));
            let normal = s.mul(s.load_some(x), factor);
            s.store_some(s.mul(factor, s.sub(g, s.mul(normal, along))), dx);
        }
        if !sums.is_empty() {
            for (sums, (dy, x)) in sums.chunks_mut(lanes).zip(dy.chunks(lanes).zip(x.chunks(lanes))) {
                let normal = s.mul(s.load_some(x), factor);
                s.store_some(s.fma(s.load_some(dy), normal, s.load_some(sums)), sums);
            }
        }
    }
}
