//! Sums and scalings of whole slices: residual connections, bias gradients, the gradient norm.
//!
//! The loops name no vectors: compiled with an instruction set's features they become vector code, with the same bits.

use crate::simd::{Simd, dispatch, math};
use rayon::prelude::*;

/// Elements per task, and per partial sum.
const CHUNK: usize = 1 << 14;
/// Columns per task of [`column_sums`].
const COLUMNS: usize = 128;

fn same(what: &str, a: usize, b: usize) {
    assert_eq!(a, b, "{what}: slices of {a} and {b} elements");
}

/// `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    same("add", a.len(), b.len());
    same("add", a.len(), y.len());
    let chunks = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)));
    chunks.for_each(|(y, (a, b))| add_chunk(a, b, y));
}

/// `y += x`.
pub fn add_assign(y: &mut [f32], x: &[f32]) {
    same("add_assign", y.len(), x.len());
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| add_assign_chunk(y, x));
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| scale_chunk(x, factor));
}

/// `x = cap · tanh(x / cap)`.
pub fn softcap(x: &mut [f32], cap: f32) {
    x.par_chunks_mut(CHUNK).for_each(|x| softcap_chunk(x, cap));
}

/// The gradient of [`softcap`] from what it wrote, y: `dy *= 1 − (y / cap)²`.
pub fn softcap_backward(y: &[f32], dy: &mut [f32], cap: f32) {
    same("softcap_backward", y.len(), dy.len());
    dy.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(dy, y)| softcap_slopes(y, dy, cap));
}

/// `out[c] += Σ_rows dy[row, c]`, rows in order. dy `[rows, n]`, out `[n]`.
pub fn column_sums(dy: &[f32], n: usize, out: &mut [f32]) {
    same("column_sums", n, out.len());
    assert!(n > 0 && dy.len().is_multiple_of(n), "column_sums: {} elements are not rows of {n}", dy.len());
    out.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, out)| column_block(dy, n, i * COLUMNS, out));
}

/// `Σ x²` in f64, over chunks at fixed borders, so that the number of threads does not show.
pub fn sum_squares(x: &[f32]) -> f64 {
    let partial: Vec<f64> = x.par_chunks(CHUNK).map(sum_squares_chunk).collect();
    partial.iter().sum()
}

dispatch! { fn add_chunk(a: &[f32], b: &[f32], y: &mut [f32]) = add_with; }
dispatch! { fn add_assign_chunk(y: &mut [f32], x: &[f32]) = add_assign_with; }
dispatch! { fn scale_chunk(x: &mut [f32], factor: f32) = scale_with; }
dispatch! { fn softcap_chunk(x: &mut [f32], cap: f32) = softcap_with; }
dispatch! { fn softcap_slopes(y: &[f32], dy: &mut [f32], cap: f32) = softcap_slopes_with; }
dispatch! { fn column_block(dy: &[f32], n: usize, first: usize, out: &mut [f32]) = column_block_with; }
dispatch! { fn sum_squares_chunk(x: &[f32]) -> f64 = sum_squares_with; }

#[inline(always)]
fn add_with<S: Simd>(_: S, a: &[f32], b: &[f32], y: &mut [f32]) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = a + b;
    }
}

#[inline(always)]
fn add_assign_with<S: Simd>(_: S, y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

#[inline(always)]
fn scale_with<S: Simd>(_: S, x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
fn softcap_with<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let cap = s.splat(cap);
    for x in x.chunks_mut(S::LANES) {
        s.store_some(s.mul(cap, math::tanh(s, s.div(s.load_some(x), cap))), x);
    }
}

#[inline(always)]
fn softcap_slopes_with<S: Simd>(_: S, y: &[f32], dy: &mut [f32], cap: f32) {
    for (dy, y) in dy.iter_mut().zip(y) {
        let t = y / cap;
        *dy *= 1.0 - t * t;
    }
}

#[inline(always)]
fn column_block_with<S: Simd>(_: S, dy: &[f32], n: usize, first: usize, out: &mut [f32]) {
    for row in dy.chunks_exact(n) {
        for (o, d) in out.iter_mut().zip(&row[first..]) {
            *o += d;
        }
    }
}

#[inline(always)]
fn sum_squares_with<S: Simd>(_: S, x: &[f32]) -> f64 {
    let mut sums = [0.0f64; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for (s, &v) in sums.iter_mut().zip(block) {
            *s += f64::from(v) * f64::from(v);
        }
    }
    for (s, &v) in sums.iter_mut().zip(rest) {
        *s += f64::from(v) * f64::from(v);
    }
    sums.iter().sum()
}
