//! The gate of a feed-forward layer, `act(gate) · up`, forwards and backwards. SwiGLU and GeGLU layers call it.

use crate::activation::{Activation, Curve, with_curve};
use crate::matmul::written;
use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// `act(gate) · up`.
pub fn gated(act: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len(), "gated: gate and up differ in length");
    // SAFETY: the chunks are all of y, and each task writes one.
    let [y] = unsafe {
        written([gate.len()], |[y]| {
            let chunks = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).enumerate();
            chunks.for_each(|(i, (gate, up))| products(act, gate, up, std::slice::from_raw_parts_mut(y.ptr().add(i * CHUNK), gate.len())));
        })
    };
    y
}

/// The gradients of [`gated`] from dy, in the place of what it read: gate becomes dgate, and up dup.
pub fn gated_backward(act: Activation, gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    assert!(gate.len() == up.len() && gate.len() == dy.len(), "gated_backward: gate, up and dy differ in length");
    let chunks = gate.par_chunks_mut(CHUNK).zip(up.par_chunks_mut(CHUNK)).zip(dy.par_chunks(CHUNK));
    chunks.for_each(|((gate, up), dy)| gradients(act, gate, up, dy));
}

dispatch! { fn products(act: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) = products_with; }
dispatch! { fn gradients(act: Activation, gate: &mut [f32], up: &mut [f32], dy: &[f32]) = gradients_with; }

#[inline(always)]
fn products_with<S: Simd>(s: S, act: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    with_curve!(act, map_products(s, gate, up, y));
}

#[inline(always)]
fn gradients_with<S: Simd>(s: S, act: Activation, gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    with_curve!(act, map_gradients(s, gate, up, dy));
}

#[inline(always)]
fn map_products<S: Simd, C: Curve>(s: S, gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((gate, up), y) in gate.chunks(S::LANES).zip(up.chunks(S::LANES)).zip(y.chunks_mut(S::LANES)) {
        s.store_some(s.mul(C::value(s, s.load_some(gate)), s.load_some(up)), y);
    }
}

#[inline(always)]
fn map_gradients<S: Simd, C: Curve>(s: S, gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    for ((gate, up), dy) in gate.chunks_mut(S::LANES).zip(up.chunks_mut(S::LANES)).zip(dy.chunks(S::LANES)) {
        let (x, dy) = (s.load_some(gate), s.load_some(dy));
        let slope = s.mul(C::slope(s, x), s.mul(dy, s.load_some(up)));
        s.store_some(slope, gate);
        s.store_some(s.mul(C::value(s, x), dy), up);
    }
}
