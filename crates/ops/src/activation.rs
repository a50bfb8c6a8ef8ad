//! Activation functions over slices and their gradients from the pre-activation. The feed-forward layers and heads call it.
//!
//! An element's bits do not depend on where it stands: what is left over after full vectors goes through the same
//! instructions with masked loads.

use crate::matmul::Shared;
use crate::simd::{Simd, dispatch, math};
use rayon::prelude::*;
use std::ops::Range;

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// An activation, with the meaning that PyTorch gives to the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// GELU by its tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
    /// `x · sigmoid(x)`.
    Silu,
}

/// `y = f(x)`.
pub fn forward(kind: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "activation: input and output differ in length");
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| values(kind, x, y));
}

/// `dx = f'(x) · dy`, with x the pre-activation.
pub fn backward(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "activation backward: x and dy differ in length");
    assert_eq!(x.len(), dx.len(), "activation backward: x and dx differ in length");
    let chunks = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)));
    chunks.for_each(|(dx, (x, dy))| slopes(kind, x, dy, dx));
}

/// `y = f(y)` for a part of y `[.., n]`: these columns of these rows.
///
/// # Safety
/// y must have these elements, and nothing else may use them during the call.
pub(crate) unsafe fn activate(kind: Activation, y: Shared, n: usize, rows: Range<usize>, cols: Range<usize>) {
    for row in rows {
        // SAFETY: passed on to the caller.
        in_place(kind, unsafe { y.part(row * n + cols.start..row * n + cols.end) });
    }
}

dispatch! {
    fn in_place(kind: Activation, y: &mut [f32]) = in_place_with;
}

dispatch! {
    fn values(kind: Activation, x: &[f32], y: &mut [f32]) = values_with;
}

dispatch! {
    fn slopes(kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) = slopes_with;
}

/// Calls `$f` with the curve of an activation.
macro_rules! with_curve {
    ($kind:expr, $f:ident($s:expr, $($arg:expr),*)) => {
        match $kind {
            $crate::activation::Activation::Gelu => $f::<S, $crate::activation::Gelu>($s, $($arg),*),
            $crate::activation::Activation::GeluTanh => $f::<S, $crate::activation::GeluTanh>($s, $($arg),*),
            $crate::activation::Activation::Relu => $f::<S, $crate::activation::Relu>($s, $($arg),*),
            $crate::activation::Activation::Tanh => $f::<S, $crate::activation::Tanh>($s, $($arg),*),
            $crate::activation::Activation::Silu => $f::<S, $crate::activation::Silu>($s, $($arg),*),
        }
    };
}
pub(crate) use with_curve;

#[inline(always)]
fn in_place_with<S: Simd>(s: S, kind: Activation, y: &mut [f32]) {
    with_curve!(kind, map_in_place(s, y));
}

#[inline(always)]
fn values_with<S: Simd>(s: S, kind: Activation, x: &[f32], y: &mut [f32]) {
    with_curve!(kind, map_values(s, x, y));
}

#[inline(always)]
fn slopes_with<S: Simd>(s: S, kind: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    with_curve!(kind, map_slopes(s, x, dy, dx));
}

#[inline(always)]
fn map_in_place<S: Simd, C: Curve>(s: S, y: &mut [f32]) {
    for y in y.chunks_mut(S::LANES) {
        s.store_some(C::value(s, s.load_some(y)), y);
    }
}

#[inline(always)]
fn map_values<S: Simd, C: Curve>(s: S, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
        s.store_some(C::value(s, s.load_some(x)), y);
    }
}

#[inline(always)]
fn map_slopes<S: Simd, C: Curve>(s: S, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((x, dy), dx) in x.chunks(S::LANES).zip(dy.chunks(S::LANES)).zip(dx.chunks_mut(S::LANES)) {
        s.store_some(s.mul(C::slope(s, s.load_some(x)), s.load_some(dy)), dx);
    }
}

/// A function and its slope, of which the compiler computes once what both need.
pub(crate) trait Curve {
    /// The function.
    fn value<S: Simd>(s: S, x: S::F) -> S::F;
    /// Its derivative.
    fn slope<S: Simd>(s: S, x: S::F) -> S::F;
}

/// Beyond this the tails of all curves here are 0 or 1 in f32; limiting x keeps ∞ · 0 out.
const FAR: f32 = 30.0;

pub(crate) struct Gelu;

impl Curve for Gelu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        // max(x, 0) − |x| · Φ(−|x|) has no cancellation where x is negative, unlike x/2 · (1 + erf).
        let a = math::abs(s, math::clamp(s, x, FAR));
        let (_, tail) = math::normal_tail(s, a);
        s.sub(s.max(s.splat(0.0), x), s.mul(a, tail))
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::F) -> S::F {
        let x = math::clamp(s, x, FAR);
        let (density, tail) = math::normal_tail(s, math::abs(s, x));
        let area = s.select_lt(x, s.splat(0.0), tail, s.sub(s.splat(1.0), tail));
        const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
        s.fma(s.mul(x, density), s.splat(FRAC_1_SQRT_2PI), area)
    }
}

pub(crate) struct GeluTanh;

impl GeluTanh {
    const ROOT: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        // x/2 · (1 + tanh u) = x · sigmoid(2u).
        let near = math::clamp(s, x, FAR);
        let cubic = s.fma(s.mul(near, near), s.splat(Self::CUBE), s.splat(1.0));
        let (up, _) = math::sigmoid(s, s.mul(s.mul(near, cubic), s.splat(2.0 * Self::ROOT)));
        s.mul(x, up)
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::F) -> S::F {
        let x = math::clamp(s, x, FAR);
        let square = s.mul(x, x);
        let cubic = s.fma(square, s.splat(Self::CUBE), s.splat(1.0));
        let (up, down) = math::sigmoid(s, s.mul(s.mul(x, cubic), s.splat(2.0 * Self::ROOT)));
        let inner = s.fma(square, s.splat(6.0 * Self::ROOT * Self::CUBE), s.splat(2.0 * Self::ROOT));
        s.fma(s.mul(x, inner), s.mul(up, down), up)
    }
}

pub(crate) struct Relu;

impl Curve for Relu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        s.max(s.splat(0.0), x)
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::F) -> S::F {
        s.select_lt(s.splat(0.0), x, s.splat(1.0), s.splat(0.0))
    }
}

pub(crate) struct Tanh;

impl Curve for Tanh {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        math::tanh(s, x)
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::F) -> S::F {
        let y = math::tanh(s, x);
        s.sub(s.splat(1.0), s.mul(y, y))
    }
}

pub(crate) struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Simd>(s: S, x: S::F) -> S::F {
        let (up, _) = math::sigmoid(s, x);
        s.mul(x, up)
    }
    #[inline(always)]
    fn slope<S: Simd>(s: S, x: S::F) -> S::F {
        let (up, down) = math::sigmoid(s, x);
        // Where down is 0, x may be infinite.
        s.mul(up, s.fma(math::clamp(s, x, 88.0), down, s.splat(1.0)))
    }
}
