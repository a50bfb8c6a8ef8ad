//! Layer normalisation, forwards and backwards. The norm layers of every encoder call it.
//!
//! A row is summed in vectors over its columns, so its bits depend on the row alone; the gradients of gamma and beta are
//! summed over blocks of rows at fixed borders and then over the blocks in order, so the number of threads does not show.

use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

pub use crate::rms::{rms_norm, rms_norm_backward};

/// Rows per task, and per partial sum of the parameters' gradients.
const BLOCK: usize = 32;

/// `y = (x − mean) · rstd · gamma + beta` per row. x and y `[rows, dim]`; mean and rstd `[rows]` are kept for the backward
/// pass. The variance is the biased one, as in PyTorch.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, dim: usize, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32]) {
    check("layer_norm", x.len(), dim, gamma.len(), mean.len(), rstd.len());
    assert_eq!(beta.len(), dim, "layer_norm: beta");
    assert_eq!(y.len(), x.len(), "layer_norm: y");
    let rows = x.par_chunks(BLOCK * dim).zip(y.par_chunks_mut(BLOCK * dim));
    let kept = mean.par_chunks_mut(BLOCK).zip(rstd.par_chunks_mut(BLOCK));
    rows.zip(kept).for_each(|((x, y), (mean, rstd))| forward(x, gamma, beta, eps, dim, y, mean, rstd));
}

/// The gradients of [`layer_norm`]: dx is written, dgamma and dbeta are added to.
#[allow(clippy::too_many_arguments)]
pub fn layer_norm_backward(
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dim: usize,
    dx: &mut [f32],
    dgamma: Option<&mut [f32]>,
    dbeta: Option<&mut [f32]>,
) {
    check("layer_norm_backward", x.len(), dim, gamma.len(), mean.len(), rstd.len());
    assert_eq!(dy.len(), x.len(), "layer_norm_backward: dy");
    assert_eq!(dx.len(), x.len(), "layer_norm_backward: dx");
    let blocks = mean.len().div_ceil(BLOCK);
    // [blocks, gamma and beta, dim]
    let mut partial = if dgamma.is_some() || dbeta.is_some() { vec![0.0; blocks * 2 * dim] } else { Vec::new() };
    let rows = dx.par_chunks_mut(BLOCK * dim).zip(dy.par_chunks(BLOCK * dim)).zip(x.par_chunks(BLOCK * dim));
    let kept = mean.par_chunks(BLOCK).zip(rstd.par_chunks(BLOCK));
    if partial.is_empty() {
        rows.zip(kept).for_each(|(((dx, dy), x), (mean, rstd))| backward(dy, x, gamma, mean, rstd, dim, dx, &mut []));
    } else {
        let work = rows.zip(kept).zip(partial.par_chunks_mut(2 * dim));
        work.for_each(|((((dx, dy), x), (mean, rstd)), sums)| backward(dy, x, gamma, mean, rstd, dim, dx, sums));
    }
    for (part, gradient) in [dgamma, dbeta].into_iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        assert_eq!(gradient.len(), dim, "layer_norm_backward: dgamma or dbeta");
        for sums in partial.chunks_exact(2 * dim) {
            for (g, s) in gradient.iter_mut().zip(&sums[part * dim..]) {
                *g += s;
            }
        }
    }
}

fn check(what: &str, x: usize, dim: usize, gamma: usize, mean: usize, rstd: usize) {
    assert!(dim > 0 && x.is_multiple_of(dim), "{what}: {x} elements are not rows of {dim}");
    assert_eq!(gamma, dim, "{what}: gamma");
    assert_eq!(mean, x / dim, "{what}: mean needs one element per row");
    assert_eq!(rstd, x / dim, "{what}: rstd needs one element per row");
}

dispatch! {
    fn forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, dim: usize, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32]) = forward_with;
}

dispatch! {
    fn backward(dy: &[f32], x: &[f32], gamma: &[f32], mean: &[f32], rstd: &[f32], dim: usize, dx: &mut [f32], sums: &mut [f32]) = backward_with;
}

/// The first `width` lanes of v, and 0 in the others.
#[inline(always)]
fn first_lanes<S: Simd>(s: S, v: S::F, width: usize) -> S::F {
    if width >= S::LANES { v } else { s.select_below(s.iota(), s.isplat(width as u32), v, s.splat(0.0)) }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn forward_with<S: Simd>(
    s: S,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    dim: usize,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let lanes = S::LANES;
    for (i, (x, y)) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).enumerate() {
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
        mean[i] = m;
        rstd[i] = r;
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_with<S: Simd>(
    s: S,
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dim: usize,
    dx: &mut [f32],
    sums: &mut [f32],
) {
    let lanes = S::LANES;
    for (i, ((dx, dy), x)) in dx.chunks_exact_mut(dim).zip(dy.chunks_exact(dim)).zip(x.chunks_exact(dim)).enumerate() {
        let (centre, factor) = (s.splat(mean[i]), s.splat(rstd[i]));
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
