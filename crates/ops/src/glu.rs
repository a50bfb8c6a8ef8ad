//! The gate of a feed-forward layer, `act(gate) · up`, forwards and backwards. SwiGLU and GeGLU layers call it.

use crate::activation::{Activation, backward, forward};
use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// Elements per task: what it reads and writes stays in the second-level cache.
const CHUNK: usize = 1 << 14;

/// `y = act(gate) · up`.
pub fn gated(act: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == y.len(), "gated: gate, up and y differ in length");
    y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK))).for_each(|(y, (gate, up))| {
        forward(act, gate, y);
        multiply(y, up);
    });
}

/// The gradients of [`gated`]: dgate and dup are written.
pub fn gated_backward(act: Activation, gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let n = gate.len();
    assert!([up.len(), dy.len(), dgate.len(), dup.len()].iter().all(|l| *l == n), "gated_backward: slices differ in length");
    let read = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
    dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK)).zip(read).for_each(|((dgate, dup), ((gate, up), dy))| {
        // dup holds dy · up until dgate is made of it.
        dup.copy_from_slice(dy);
        multiply(dup, up);
        backward(act, gate, dup, dgate);
        forward(act, gate, dup);
        multiply(dup, dy);
    });
}

dispatch! { fn multiply(y: &mut [f32], x: &[f32]) = multiply_with; }

#[inline(always)]
fn multiply_with<S: Simd>(_: S, y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y *= x;
    }
}
