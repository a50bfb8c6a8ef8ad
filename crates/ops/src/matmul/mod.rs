//! Products of activations with packed weights, and of gradients with activations. Every linear layer calls it.
//!
//! The rule: for one weight format and one processor a row's result has the same bits whatever stands beside it. So there
//! is one packed layout, vectors run along the outputs, and every micro-kernel adds over K in the same sequence.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod buffer;
mod each;
mod pack;
mod product;
mod slab;
mod tile;
mod tn;
mod tn_narrow;

pub use each::{Each, add_each};
pub use pack::{Packed, Plain};

use buffer::with_shared_scratch;
pub(crate) use buffer::{Buffer, Shared, with_scratch, written};
pub(crate) use pack::{PANEL_VECTORS, Source, pack_panel, packed_len, panel, panel_count, round_row};
use tile::HALVES;
pub(crate) use tile::{FULL, Finish, Kernels, PAIRS, Start, Tile, tile};

use crate::activation::Activation;
use crate::cpu::{self, Isa};

/// Evaluates an expression with `$s` bound to the token of the best kernels.
macro_rules! with_kernels {
    ($s:ident => $body:expr) => {
        match cpu::isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if cpu::has_bf16() => {
                // SAFETY: `isa` and `has_bf16` found these features on this processor.
                let $s = unsafe { crate::simd::Avx512::<true>::assume() };
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                // SAFETY: `isa` found these features on this processor.
                let $s = unsafe { crate::simd::Avx512::<false>::assume() };
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: `isa` found these features on this processor.
                let $s = unsafe { crate::simd::Avx2::assume() };
                $body
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => {
                // SAFETY: NEON is part of every aarch64 target with a standard library.
                let $s = unsafe { crate::simd::Neon::assume() };
                $body
            }
            _ => {
                let $s = crate::simd::Portable;
                $body
            }
        }
    };
}

#[cfg(test)]
use with_kernels;

/// The token of the matrix unit, where bf16 is multiplied on one.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn matrix_unit() -> Option<amx::Amx> {
    // SAFETY: `has_amx` found the features and has the system's permission.
    cpu::has_amx().then(|| unsafe { amx::Amx::assume() })
}

/// Multiply-adds of bf16 in the registers of the matrix unit, where there is one: how many floating point operations they were.
pub(crate) fn matrix_unit_burst(rounds: usize) -> Option<f64> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return matrix_unit().map(|unit| unit.burst(rounds));
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return None;
}

/// The arithmetic of a product. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32 operands.
    F32,
    /// Operands rounded to bf16, to nearest even.
    Bf16,
}

/// How a weight matrix lies in memory before packing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[n, k]`, Hugging Face's out × in: `y = x · Wᵀ`.
    RowMajor,
    /// `[k, n]`: `y = x · W`.
    Transposed,
}

/// A low-rank update of a product: `+ scale · (u · Bᵀ)`, in f32.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// `[rows, r]`.
    pub u: &'a [f32],
    /// `[n, r]`.
    pub b: &'a Packed,
    /// Factor.
    pub scale: f32,
}

/// What happens to a product before it is stored: `y = f(scale · (x · W) (+ bias) (+ y) (+ update))`, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    /// Added to every row, `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Factor of the product.
    pub scale: f32,
    /// Adds what y held.
    pub accumulate: bool,
    /// Added while the result is at hand, to the bits that a product of its own would give.
    pub update: Option<Update<'a>>,
    /// Applied last, to the bits that the activation alone gives.
    pub activation: Option<Activation>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue { bias: None, scale: 1.0, accumulate: false, update: None, activation: None }
    }
}

/// `y = f(scale · (x · W) (+ bias) (+ y))`. x `[rows, k]`, y `[rows, n]`.
pub fn matmul(x: &[f32], rows: usize, w: &Packed, y: &mut [f32], ep: Epilogue) {
    check_output(y, rows, w.n());
    multiply_packed(x, rows, w, Shared::new(y), ep);
}

/// As [`matmul`] into new memory, which nobody clears first. Nothing can be added to.
pub fn matmul_new(x: &[f32], rows: usize, w: &Packed, ep: Epilogue) -> Vec<f32> {
    assert!(!ep.accumulate, "matmul: there is nothing to add to");
    // SAFETY: a product that is not added to anything writes every element.
    let [y] = unsafe { written([rows * w.n()], |[y]| multiply_packed(x, rows, w, y, ep)) };
    y
}

/// As [`matmul`], to the same bits, with a weight that is packed on the way, piece by piece.
pub fn matmul_plain(x: &[f32], rows: usize, w: &Plain, y: &mut [f32], ep: Epilogue) {
    check_output(y, rows, w.n);
    multiply_plain(x, rows, w, Shared::new(y), ep);
}

/// As [`matmul_plain`] into new memory, which nobody clears first. Nothing can be added to.
pub fn matmul_plain_new(x: &[f32], rows: usize, w: &Plain, ep: Epilogue) -> Vec<f32> {
    assert!(!ep.accumulate, "matmul: there is nothing to add to");
    // SAFETY: as in `matmul_new`.
    let [y] = unsafe { written([rows * w.n], |[y]| multiply_plain(x, rows, w, y, ep)) };
    y
}

fn check_output(y: &[f32], rows: usize, n: usize) {
    assert_eq!(y.len(), rows * n, "matmul: y has {} elements, [{rows}, {n}] needs {}", y.len(), rows * n);
}

fn check_inputs(x: &[f32], rows: usize, n: usize, k: usize, ep: &Epilogue) {
    assert_eq!(x.len(), rows * k, "matmul: x has {} elements, [{rows}, {k}] needs {}", x.len(), rows * k);
    if let Some(bias) = ep.bias {
        assert_eq!(bias.len(), n, "matmul: bias");
    }
    if let Some(Update { u, b, .. }) = ep.update {
        assert_eq!((b.n(), b.precision(), b.is_halves()), (n, Precision::F32, false), "matmul: update");
        assert_eq!(u.len(), rows * b.k(), "matmul: u has {} elements, [{rows}, {}] needs {}", u.len(), b.k(), rows * b.k());
    }
}

/// The update as a product of its own, where its weight has other lanes than the product's.
fn split_update<'a>(ep: Epilogue<'a>, lanes: usize) -> (Epilogue<'a>, Option<(Update<'a>, Epilogue<'a>)>) {
    match ep.update {
        Some(update) if update.b.lanes() != lanes => {
            let after = Epilogue { scale: update.scale, accumulate: true, activation: ep.activation, ..Epilogue::default() };
            (Epilogue { update: None, activation: None, ..ep }, Some((update, after)))
        }
        _ => (ep, None),
    }
}

fn multiply_packed(x: &[f32], rows: usize, w: &Packed, y: Shared, ep: Epilogue) {
    let (n, k) = (w.n(), w.k());
    check_inputs(x, rows, n, k, &ep);
    let (ep, after) = split_update(ep, w.lanes());
    if let Some((update, after)) = after {
        multiply_packed(x, rows, w, y, ep);
        return multiply_packed(update.u, rows, update.b, y, after);
    }
    let right = product::Right { data: w.data(), panels: 0..w.panels(), n, k, precision: w.precision() };
    if w.is_halves() {
        with_kernels!(s => product::multiply::<_, HALVES>(s, x, rows, right, y, ep));
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if w.lanes() == 8 && cpu::isa() == Isa::Avx512 {
        // SAFETY: a processor with AVX-512 counts as such only if it has AVX2 too.
        return product::multiply::<_, FULL>(unsafe { crate::simd::Avx2::assume() }, x, rows, right, y, ep);
    }
    run(x, rows, right, y, ep);
}

fn multiply_plain(x: &[f32], rows: usize, w: &Plain, y: Shared, ep: Epilogue) {
    /// Elements of a piece: it stays in the last-level cache.
    const PIECE: usize = 1 << 20;
    /// But at least as many columns, since the left side is packed again for each piece.
    const COLUMNS: usize = 256;
    let (n, k) = (w.n, w.k);
    check_inputs(x, rows, n, k, &ep);
    let (lanes, steps) = (pack::lanes(), w.precision.steps(k));
    let (ep, after) = split_update(ep, lanes);
    if let Some((update, after)) = after {
        multiply_plain(x, rows, w, y, ep);
        return multiply_packed(update.u, rows, update.b, y, after);
    }
    let count = panel_count(n, lanes);
    let at_once = (PIECE / (lanes * PANEL_VECTORS * steps.max(1))).max(COLUMNS / (lanes * PANEL_VECTORS));
    let pieces = count.div_ceil(at_once);
    for piece in 0..pieces {
        let panels = count * piece / pieces..count * (piece + 1) / pieces;
        with_shared_scratch(panels.len() * lanes * PANEL_VECTORS * steps, |packed| {
            w.pack(panels.clone(), lanes, packed);
            run(x, rows, product::Right { data: packed, panels, n, k, precision: w.precision }, y, ep);
        });
    }
}

fn run(x: &[f32], rows: usize, w: product::Right, y: Shared, ep: Epilogue) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let (Precision::Bf16, Some(unit)) = (w.precision, matrix_unit()) {
        return product::multiply::<_, PAIRS>(unit, x, rows, w, y, ep);
    }
    with_kernels!(s => match w.precision {
        Precision::F32 => product::multiply::<_, FULL>(s, x, rows, w, y, ep),
        Precision::Bf16 => product::multiply::<_, PAIRS>(s, x, rows, w, y, ep),
    });
}

/// `c = scale · aᵀ · b (+ c)`. a `[t, n]`, b `[t, k]`, c `[n, k]`: the gradient of a weight from dy and x.
#[allow(clippy::too_many_arguments)]
pub fn matmul_tn(a: &[f32], b: &[f32], t: usize, n: usize, k: usize, c: &mut [f32], scale: f32, accumulate: bool, precision: Precision) {
    assert_eq!(a.len(), t * n, "matmul_tn: a has {} elements, [{t}, {n}] needs {}", a.len(), t * n);
    assert_eq!(b.len(), t * k, "matmul_tn: b has {} elements, [{t}, {k}] needs {}", b.len(), t * k);
    assert_eq!(c.len(), n * k, "matmul_tn: c has {} elements, [{n}, {k}] needs {}", c.len(), n * k);
    let job = tn::Transposed { a, b, t, n, k, scale, accumulate };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let (Precision::Bf16, Some(unit)) = (precision, matrix_unit()) {
        return tn::multiply::<_, PAIRS>(unit, &job, c);
    }
    with_kernels!(s => match precision {
        Precision::F32 if tn_narrow::multiply(s, &job, c) => {}
        Precision::F32 => tn::multiply::<_, FULL>(s, &job, c),
        Precision::Bf16 => tn::multiply::<_, PAIRS>(s, &job, c),
    });
}
