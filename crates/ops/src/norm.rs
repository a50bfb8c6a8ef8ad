//! Layer normalisation, forwards and backwards. The norm layers of every encoder call it.
//!
//! A row is summed in vectors over its columns, so its bits depend on the row alone; the gradients of gamma and beta are
//! summed over blocks of rows at fixed borders and then over the blocks in order, so the number of threads does not show.

use crate::matmul::{Shared, written};
use crate::simd::{Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

pub use crate::rms::{rms_norm, rms_norm_backward};

/// Rows per task, and per partial sum of the parameters' gradients.
pub(crate) const BLOCK: usize = 32;

/// `y = (x − mean) · rstd · gamma + beta` per row of `dim` elements. x `[rows, dim]`; returns y of the same shape and `[rows, 2]` of mean
/// and rstd, which are kept for the backward pass. The variance is the biased one, as in PyTorch.
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, dim: usize) -> [Vec<f32>; 2] {
    let rows = check("layer_norm", x.len(), dim, gamma.len());
    assert_eq!(beta.len(), dim, "layer_norm: beta");
    // SAFETY: each block writes all of its rows.
    unsafe {
        written([x.len(), 2 * rows], |[y, stats]| {
            blocks(rows).for_each(|(_, rows)| {
                let at = rows.start * dim..rows.end * dim;
                forward(&x[at.clone()], gamma, beta, eps, dim, y.part(at), stats.part(2 * rows.start..2 * rows.end));
            });
        })
    }
}

/// The gradients of [`layer_norm`]: returns dx, and adds to dgamma and dbeta. `stats` `[rows, 2]`.
pub fn layer_norm_backward(
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    stats: &[f32],
    dim: usize,
    dgamma: Option<&mut [f32]>,
    dbeta: Option<&mut [f32]>,
) -> Vec<f32> {
    let rows = check("layer_norm_backward", x.len(), dim, gamma.len());
    assert_eq!(dy.len(), x.len(), "layer_norm_backward: dy");
    assert_eq!(stats.len(), 2 * rows, "layer_norm_backward: stats");
    // [blocks, gamma and beta, dim]
    let each = if dgamma.is_some() || dbeta.is_some() { 2 * dim } else { 0 };
    let mut partial = vec![0.0; rows.div_ceil(BLOCK) * each];
    let sums = Shared::new(&mut partial);
    // SAFETY: each block writes all of its rows, and has sums of its own.
    let [dx] = unsafe {
        written([x.len()], |[dx]| {
            blocks(rows).for_each(|(block, rows)| {
                let (at, stats) = (rows.start * dim..rows.end * dim, &stats[2 * rows.start..2 * rows.end]);
                let sums = sums.part(block * each..(block + 1) * each);
                backward(&dy[at.clone()], &x[at.clone()], gamma, stats, dim, dx.part(at), sums);
            });
        })
    };
    for (part, gradient) in [dgamma, dbeta].into_iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        assert_eq!(gradient.len(), dim, "layer_norm_backward: dgamma or dbeta");
        for sums in partial.chunks_exact(2 * dim) {
            for (g, s) in gradient.iter_mut().zip(&sums[part * dim..]) {
                *g += s;
            }
        }
    }
    dx
}

/// Checks the lengths that all norms have; returns the number of rows.
pub(crate) fn check(what: &str, x: usize, dim: usize, gamma: usize) -> usize {
    assert!(dim > 0 && x.is_multiple_of(dim), "{what}: {x} elements are not rows of {dim}");
    assert_eq!(gamma, dim, "{what}: gamma");
    x / dim
}

/// Blocks of rows at fixed borders, for the thread pool.
pub(crate) fn blocks(rows: usize) -> impl ParallelIterator<Item = (usize, Range<usize>)> {
    (0..rows.div_ceil(BLOCK)).into_par_iter().map(move |block| (block, block * BLOCK..rows.min((block + 1) * BLOCK)))
}

dispatch! {
    fn forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, dim: usize, y: &mut [f32], stats: &mut [f32]) = forward_with;
}

dispatch! {
    fn backward(dy: &[f32], x: &[f32], gamma: &[f32], stats: &[f32], dim: usize, dx: &mut [f32], sums: &mut [f32]) = backward_with;
}

/// The first `width` lanes of v, and 0 in the others.
#[inline(always)]
fn first_lanes<S: Simd>(s: S, v: S::F, width: usize) -> S::F {
    if width >= S::LANES { v } else { s.select_below(s.iota(), s.isplat(width as u32), v, s.splat(0.0)) }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn forward_with<S: Simd>(s: S, x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, dim: usize, y: &mut [f32], stats: &mut [f32]) {
    let lanes = S::LANES;
    for ((x, y), stats) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(stats.as_chunks_mut().0) {
        let mut sum = s.splat(0.0);
        for part in x.chunks(lanes) {
            sum = s.add(sum, s.load_some(part));
        }
        let m = s.sum(sum) / dim as f32;
        let centre = s.splat(m);
        let mut squares = s.splat(0.0);
        for part in x.chunks(lanes) {
            let d = first_lanes(s, s.sub(s.load_some(part), centre), part.len());
            squares = s.fma(d, d, squares);
        }
        let r = 1.0 / (s.sum(squares) / dim as f32 + eps).sqrt();
        let factor = s.splat(r);
        let parameters = gamma.chunks(lanes).zip(beta.chunks(lanes));
        for ((x, y), (gamma, beta)) in x.chunks(lanes).zip(y.chunks_mut(lanes)).zip(parameters) {
            let normal = s.mul(s.sub(s.load_some(x), centre), factor);
            s.store_some(s.fma(normal, s.load_some(gamma), s.load_some(beta)), y);
        }
        *stats = [m, r];
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_with<S: Simd>(s: S, dy: &[f32], x: &[f32], gamma: &[f32], stats: &[f32], dim: usize, dx: &mut [f32], sums: &mut [f32]) {
    let lanes = S::LANES;
    let rows = dx.chunks_exact_mut(dim).zip(dy.chunks_exact(dim)).zip(x.chunks_exact(dim));
    for (((dx, dy), x), &[mean, rstd]) in rows.zip(stats.as_chunks().0) {
        let (centre, factor) = (s.splat(mean), s.splat(rstd));
        let (mut sum_g, mut sum_gx) = (s.splat(0.0), s.splat(0.0));
        for ((dy, x), gamma) in dy.chunks(lanes).zip(x.chunks(lanes)).zip(gamma.chunks(lanes)) {
            // Lanes beyond the row are 0 in dy, so they add nothing.
            let g = s.mul(s.load_some(dy), s.load_some(gamma));
            let normal = s.mul(s.sub(s.load_some(x), centre), factor);
            sum_g = s.add(sum_g, g);
            sum_gx = s.fma(g, normal, sum_gx);
        }
        let (a, b) = (s.splat(s.sum(sum_g) / dim as f32), s.splat(s.sum(sum_gx) / dim as f32));
        for (((dx, dy), x), gamma) in dx.chunks_mut(lanes).zip(dy.chunks(lanes)).zip(x.chunks(lanes)).zip(gamma.chunks(lanes)) {
            let g = s.mul(s.load_some(dy), s.load_some(gamma));
            let normal = s.mul(s.sub(s.load_some(x), centre), factor);
            let rest = s.sub(s.sub(g, a), s.mul(normal, b));
            s.store_some(s.mul(factor, rest), dx);
        }
        if !sums.is_empty() {
            let (dgamma, dbeta) = sums.split_at_mut(dim);
            let parameters = dgamma.chunks_mut(lanes).zip(dbeta.chunks_mut(lanes));
            for ((dgamma, dbeta), (dy, x)) in parameters.zip(dy.chunks(lanes).zip(x.chunks(lanes))) {
                let d = s.load_some(dy);
                let normal = s.mul(s.sub(s.load_some(x), centre), factor);
                s.store_some(s.fma(d, normal, s.load_some(dgamma)), dgamma);
                s.store_some(s.add(d, s.load_some(dbeta)), dbeta);
            }
        }
    }
}
