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
    let (magnitude, infinity) = (s.isplat(0x7fff_ffff), s.splat(f32::INFINITY));
    let mut highest = s.splat(0.0);
    for part in x.chunks_exact(S::LANES) {
        let v = s.float(s.iand(s.bits(s.load(part)), magnitude));
        // A maximum may lose a NaN, which is below nothing.
        highest = s.max(highest, s.select_lt(v, infinity, v, infinity));
    }
    let highest = s.largest(highest);
    if highest == f32::INFINITY {
        return Inputs { scale: f32::NAN, sum: f32::NAN, ..Inputs::default() };
    }
    if highest < SMALLEST {
        return Inputs::default();
    }
    // Sums of a few integers are exact in f32.
    let mut sums = [s.splat(0.0); 2];
    let mut bytes = [0u8; GROUP];
    let factor = s.splat(127.0 / highest);
    for (i, (part, out)) in x.chunks_exact(S::LANES).zip(bytes.chunks_exact_mut(S::LANES)).enumerate() {
        let rounded = s.round(s.mul(s.load(part), factor));
        let half = i * S::LANES / (GROUP / 2);
        sums[half] = s.add(sums[half], rounded);
        s.to_bytes(rounded, out);
    }
    let sums = if halves { [s.sum(sums[0]) as i32, s.sum(sums[1]) as i32] } else { [s.sum(s.add(sums[0], sums[1])) as i32, 0] };
    let mut codes = [0; GROUP / 4];
    for (code, bytes) in codes.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *code = u32::from_le_bytes(*bytes);
    }
    let scale = highest / 127.0;
    Inputs { codes, scale, sum: scale * (sums[0] + sums[1]) as f32, start: sums.map(|sum| (-centre * sum) as u32) }
}
