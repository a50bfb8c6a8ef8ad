//! The peak of this processor: multiply-adds that stay in registers. Products are measured against it.

use crate::matmul::{self, Precision};
use crate::simd::{Simd, dispatch, dispatch_bf16};

/// Accumulators of vectors: more than latency times units of any processor that we know, and with two operands as many as AVX2 has registers.
const BURST: usize = 14;

/// Multiplies and adds in registers on the fastest unit that products of this precision use, on one thread. Returns the floating point
/// operations, for the caller to divide by the time.
pub fn burst(precision: Precision, rounds: usize) -> f64 {
    match precision {
        Precision::F32 => vectors_f32(rounds),
        Precision::Bf16 => matmul::matrix_unit_burst(rounds).unwrap_or_else(|| vectors_bf16(rounds)),
    }
}

dispatch! { fn vectors_f32(rounds: usize) -> f64 = vectors::<_, false>; }

dispatch_bf16! { fn vectors_bf16(rounds: usize) -> f64 = vectors::<_, true>; }

#[inline(always)]
fn vectors<S: Simd, const BF16: bool>(s: S, rounds: usize) -> f64 {
    let (factor, add) = (s.splat(std::hint::black_box(0.999)), s.splat(std::hint::black_box(0.001)));
    let mut acc = [s.splat(0.0); BURST];
    // Values that the compiler cannot know, different per accumulator, so that no chain is folded into another.
    for (i, a) in acc.iter_mut().enumerate() {
        *a = s.splat(std::hint::black_box(i as f32));
    }
    for _ in 0..rounds {
        for a in &mut acc {
            *a = if BF16 { s.dot_bf16(*a, s.bits(factor), s.bits(add)) } else { s.fma(*a, factor, add) };
        }
    }
    std::hint::black_box(acc.iter().map(|a| s.sum(*a)).sum::<f32>());
    (rounds * BURST * S::LANES * if BF16 { 4 } else { 2 }) as f64
}
