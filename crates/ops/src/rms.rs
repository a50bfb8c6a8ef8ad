//! Root-mean-square normalisation, forwards and backwards; reached through `norm`. The norm layers of every decoder call it.
//!
//! As in `norm.rs`, a row's bits depend on the row alone, and the gain's gradient is summed over blocks at fixed borders.

use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// Rows per task, and per partial sum of the gain's gradient.
const BLOCK: usize = 32;

/// `y = x · rstd · (offset + gamma)` per row of `dim` elements, with `rstd = 1 / sqrt(mean(x²) + eps)`, which is kept for the
/// backward pass. x and y `[rows, dim]`, rstd `[rows]`.
pub fn rms_norm(x: &[f32], gamma: &[f32], offset: f32, eps: f32, dim: usize, y: &mut [f32], rstd: &mut [f32]) {
    check("rms_norm", x.len(), dim, gamma.len(), rstd.len());
    assert_eq!(y.len(), x.len(), "rms_norm: y");
    let rows = x.par_chunks(BLOCK * dim).zip(y.par_chunks_mut(BLOCK * dim));
    rows.zip(rstd.par_chunks_mut(BLOCK)).for_each(|((x, y), rstd)| forward(x, gamma, offset, eps, dim, y, rstd));
}

/// The gradients of [`rms_norm`]: dx is written, dgamma is added to.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    offset: f32,
    rstd: &[f32],
    dim: usize,
    dx: &mut [f32],
    dgamma: Option<&mut [f32]>,
) {
    check("rms_norm_backward", x.len(), dim, gamma.len(), rstd.len());
    assert_eq!(dy.len(), x.len(), "rms_norm_backward: dy");
    assert_eq!(dx.len(), x.len(), "rms_norm_backward: dx");
    let mut partial = vec![0.0; if dgamma.is_some() { rstd.len().div_ceil(BLOCK) * dim } else { 0 }];
    let rows = dx.par_chunks_mut(BLOCK * dim).zip(dy.par_chunks(BLOCK * dim)).zip(x.par_chunks(BLOCK * dim));
    let rows = rows.zip(rstd.par_chunks(BLOCK));
    match dgamma {
        None => rows.for_each(|(((dx, dy), x), rstd)| backward(dy, x, gamma, offset, rstd, dim, dx, &mut [])),
        Some(dgamma) => {
            assert_eq!(dgamma.len(), dim, "rms_norm_backward: dgamma");
            let work = rows.zip(partial.par_chunks_mut(dim));
            work.for_each(|((((dx, dy), x), rstd), sums)| backward(dy, x, gamma, offset, rstd, dim, dx, sums));
            for sums in partial.chunks_exact(dim) {
                dgamma.iter_mut().zip(sums).for_each(|(g, s)| *g += s);
            }
        }
    }
}

fn check(what: &str, elements: usize, dim: usize, gamma: usize, rstd: usize) {
    assert!(dim > 0, "{what}: dim is 0");
    assert_eq!(gamma, dim, "{what}: gamma");
    assert_eq!(elements, rstd * dim, "{what}: {elements} elements, {rstd} rows of {dim} need {}", rstd * dim);
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
