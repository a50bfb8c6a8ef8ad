//! Dropout from a counter-based generator: whether an element is kept depends on (seed, step, site, row id, column) only.
//!
//! So the backward pass, a recomputation under gradient checkpointing and a resumed job draw the same mask without storing
//! it, and a row's mask does not depend on its batch. Layers give every place with dropout its own `site`.

use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// Rows per task.
const ROWS: usize = 16;

/// What a mask is drawn from, and how much is dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutKey {
    /// The job's seed.
    pub seed: u64,
    /// The optimiser step (with accumulation: of the micro-batch).
    pub step: u64,
    /// The place in the model.
    pub site: u32,
    /// The probability that an element is dropped, in `[0, 1]`.
    pub p: f32,
}

/// The 64 bits of one row, mixed once; columns then cost one 32-bit finaliser each.
#[derive(Debug, Clone, Copy)]
pub struct RowBits {
    low: u32,
    high: u32,
}

impl DropoutKey {
    /// Mixes the key with a row id (and a lane: the head in attention, 0 elsewhere).
    pub fn row(&self, row_id: u64, lane: u32) -> RowBits {
        let place = splitmix64(self.seed ^ splitmix64(self.step ^ splitmix64((u64::from(self.site) << 32) | u64::from(lane))));
        let mixed = splitmix64(place ^ splitmix64(row_id));
        RowBits { low: mixed as u32, high: (mixed >> 32) as u32 }
    }

    /// An element is dropped when its 32 bits are below this.
    pub fn threshold(&self) -> u32 {
        assert!((0.0..=1.0).contains(&self.p), "dropout: p = {} is not in [0, 1]", self.p);
        (f64::from(self.p) * 4_294_967_296.0).min(4_294_967_295.0) as u32
    }

    /// What a kept element is multiplied by: 1 / (1 − p), and 0 when everything is dropped.
    pub fn keep_scale(&self) -> f32 {
        if self.p < 1.0 { 1.0 / (1.0 - self.p) } else { 0.0 }
    }
}

impl RowBits {
    /// 32 uniform bits for one column.
    #[inline(always)]
    pub fn column(self, column: u32) -> u32 {
        // lowbias32 with the row's high half mixed in half-way: two rows whose low halves differ in few bits would
        // otherwise be permutations of each other.
        let mut x = column ^ self.low;
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        x ^= self.high;
        x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        x ^ (x >> 16)
    }
}

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// In place: a kept element becomes `x / (1 − p)`, a dropped one 0. x `[rows, dim]`, one id per row. The backward pass is the
/// same call on the gradient.
pub fn dropout(x: &mut [f32], dim: usize, row_ids: &[u64], key: DropoutKey) {
    assert_eq!(x.len(), row_ids.len() * dim, "dropout: {} elements, {} rows of {dim}", x.len(), row_ids.len());
    if key.p == 0.0 || x.is_empty() {
        return;
    }
    let (threshold, factor) = (key.threshold(), key.keep_scale());
    x.par_chunks_mut(ROWS * dim).zip(row_ids.par_chunks(ROWS)).for_each(|(x, ids)| {
        for (x, &id) in x.chunks_exact_mut(dim).zip(ids) {
            drop_row(x, key.row(id, 0), threshold, factor);
        }
    });
}

dispatch! {
    fn drop_row(x: &mut [f32], bits: RowBits, threshold: u32, factor: f32) = drop_row_with;
}

#[inline(always)]
fn drop_row_with<S: Simd>(s: S, x: &mut [f32], bits: RowBits, threshold: u32, factor: f32) {
    for (i, x) in x.chunks_mut(S::LANES).enumerate() {
        let keep = keep_factors(s, bits, (i * S::LANES) as u32, threshold, factor);
        s.store_some(s.mul(s.load_some(x), keep), x);
    }
}

/// What the columns from `first` on are multiplied by: `factor` or 0.
#[inline(always)]
pub(crate) fn keep_factors<S: Simd>(s: S, bits: RowBits, first: u32, threshold: u32, factor: f32) -> S::F {
    // The same steps as `RowBits::column`.
    let x = s.ixor(s.iadd(s.iota(), s.isplat(first)), s.isplat(bits.low));
    let x = s.imul(s.ixor(x, s.shr::<16>(x)), s.isplat(0x7feb_352d));
    let x = s.ixor(x, s.isplat(bits.high));
    let x = s.imul(s.ixor(x, s.shr::<15>(x)), s.isplat(0x846c_a68b));
    let x = s.ixor(x, s.shr::<16>(x));
    s.select_below(x, s.isplat(threshold), s.splat(0.0), s.splat(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_and_scalars_draw_the_same_mask() {
        let key = DropoutKey { seed: 3, step: 9, site: 2, p: 0.3 };
        let ids = [0, 1, 77, u64::MAX];
        for dim in [1, 5, 16, 37] {
            let mut x = vec![1.0; ids.len() * dim];
            dropout(&mut x, dim, &ids, key);
            for (x, id) in x.chunks_exact(dim).zip(ids) {
                let bits = key.row(id, 0);
                for (c, &v) in x.iter().enumerate() {
                    let expected = if bits.column(c as u32) < key.threshold() { 0.0 } else { key.keep_scale() };
                    assert_eq!(v, expected, "dim {dim}, row {id}, column {c}");
                }
            }
        }
    }
}
