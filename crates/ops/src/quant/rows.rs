//! Activations rounded to int8, in the order in which a tile of rows walks along them. The driver of products calls it.

use super::form::{GROUP, QuantKind, Scales};
use crate::simd::{Simd, dispatch};

/// 32 inputs of a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inputs {
    /// Four int8 each, the first in the lowest bits.
    pub codes: [u32; GROUP / 4],
    /// What a code stands for; NaN where an input is not finite.
    pub scale: f32,
    /// The sum of what all codes stand for.
    pub sum: f32,
    /// `−centre · Σ codes` as a two's complement integer: of all 32, or where halves have scales of their own, of each 16.
    pub start: [u32; 2],
}

/// Rounds `rows` rows of k inputs. Group by group, `out` holds the rows' inputs side by side: `[k / 32, rows]`.
pub(super) fn round(x: &[f32], rows: usize, k: usize, kind: QuantKind, centre: i32, out: &mut [Inputs]) {
    let halves = kind.form().scales == Scales::NestedHalves;
    round_rows(x, rows, k, halves, centre, out);
}

dispatch! { fn round_rows(x: &[f32], rows: usize, k: usize, halves: bool, centre: i32, out: &mut [Inputs]) = round_rows_with; }

#[inline(always)]
fn round_rows_with<S: Simd>(s: S, x: &[f32], rows: usize, k: usize, halves: bool, centre: i32, out: &mut [Inputs]) {
    for (r, row) in x.chunks_exact(k).enumerate() {
        for (g, group) in row.as_chunks::<GROUP>().0.iter().enumerate() {
            out[g * rows + r] = round_group(s, group, halves, centre);
        }
    }
}

/// Below this a group counts as zero: the reciprocal of its scale must be finite.
const SMALLEST: f32 = 1e-30;

#[inline(always)]
fn round_group<S: Simd>(s: S, x: &[f32; GROUP], halves: bool, centre: i32) -> Inputs {
    let magnitude = s.isplat(0x7fff_ffff);
    let (mut highest, mut total) = (s.splat(0.0), s.splat(0.0));
    for part in x.chunks_exact(S::LANES) {
        let v = s.float(s.iand(s.bits(s.load(part)), magnitude));
        highest = s.max(highest, v);
        total = s.add(total, v);
    }
    let highest = s.largest(highest);
    // A maximum may lose a NaN, a sum keeps it.
    if !s.sum(total).is_finite() {
        return Inputs { scale: f32::NAN, sum: f32::NAN, ..Inputs::default() };
    }
    if highest < SMALLEST {
        return Inputs::default();
    }
    let mut sums = [0.0f32; 2];
    let mut ints = [0.0f32; GROUP];
    let factor = s.splat(127.0 / highest);
    for (i, (part, out)) in x.chunks_exact(S::LANES).zip(ints.chunks_exact_mut(S::LANES)).enumerate() {
        let rounded = s.round(s.mul(s.load(part), factor));
        // Sums of a few integers are exact in f32.
        sums[i * S::LANES / (GROUP / 2)] += s.sum(rounded);
        s.store(s.float(s.to_int(rounded)), out);
    }
    let sums = sums.map(|sum| sum as i32);
    let bytes = ints.map(|int| int.to_bits() as u8);
    let mut codes = [0; GROUP / 4];
    for (code, bytes) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *code = u32::from_le_bytes(*bytes);
    }
    let scale = highest / 127.0;
    let start = if halves { sums } else { [sums[0] + sums[1], 0] };
    Inputs { codes, scale, sum: scale * (sums[0] + sums[1]) as f32, start: start.map(|sum| (-centre * sum) as u32) }
}
