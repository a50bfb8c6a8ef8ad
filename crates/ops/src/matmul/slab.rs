//! Packs a slice of rows into all its tiles or panels at once, for `matmul_tn`: K runs along the rows there.
//!
//! Rows are read from left to right, as they lie in memory; panel by panel the reads would jump a row's length each time.

use super::Precision;
use crate::half::bf16_bits;
use crate::simd::{Simd, dispatch};

/// A rectangle of a matrix and how its columns are grouped.
#[derive(Clone, Copy)]
pub(super) struct Slab<'a> {
    /// From the rectangle's first element on.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    pub cols: usize,
    pub rows: usize,
    /// Columns of a group.
    pub group: usize,
    /// Elements per step of a group, whole vectors.
    pub width: usize,
    /// The same for the last group.
    pub last_width: usize,
    /// Elements from one group to the next.
    pub group_len: usize,
}

dispatch! {
    /// Packs a slab: one step per row, or with bf16 per pair of rows, of which the last may lack its second.
    pub(super) fn pack_slab(slab: Slab<'_>, precision: Precision, out: &mut [f32]) = pack_slab_with;
}

#[inline(always)]
fn pack_slab_with<S: Simd>(s: S, slab: Slab<'_>, precision: Precision, out: &mut [f32]) {
    let row = |i: usize| &slab.data[i * slab.stride..][..slab.cols];
    match precision {
        Precision::F32 => {
            for i in 0..slab.rows {
                pack_row(s, &slab, row(i), i, out);
            }
        }
        Precision::Bf16 => {
            for i in 0..slab.rows.div_ceil(2) {
                pack_pair(s, &slab, row(2 * i), (2 * i + 1 < slab.rows).then(|| row(2 * i + 1)), i, out);
            }
        }
    }
}

impl Slab<'_> {
    /// Where step `i` of the group that begins at column `first` lies.
    #[inline(always)]
    fn step<'b>(&self, out: &'b mut [f32], first: usize, i: usize) -> &'b mut [f32] {
        let width = if first + self.group < self.cols { self.width } else { self.last_width };
        &mut out[first / self.group * self.group_len + i * width..][..width]
    }
}

#[inline(always)]
fn pack_row<S: Simd>(s: S, slab: &Slab, row: &[f32], i: usize, out: &mut [f32]) {
    for (index, group) in row.chunks(slab.group).enumerate() {
        let out = slab.step(out, index * slab.group, i);
        for (part, out) in group.chunks(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            s.store(s.load_some(part), out);
        }
    }
}

#[inline(always)]
fn pack_pair<S: Simd>(s: S, slab: &Slab, low: &[f32], high: Option<&[f32]>, i: usize, out: &mut [f32]) {
    for (index, group) in low.chunks(slab.group).enumerate() {
        let first = index * slab.group;
        let out = slab.step(out, first, i);
        for (j, (part, out)) in group.chunks(S::LANES).zip(out.chunks_exact_mut(S::LANES)).enumerate() {
            let low = bf16_bits(s, s.load_some(part));
            let mut both = s.shr::<16>(low);
            if let Some(high) = high {
                let part = &high[first + j * S::LANES..][..part.len()];
                both = s.ior(both, s.iand(bf16_bits(s, s.load_some(part)), s.isplat(0xffff_0000)));
            }
            s.store(s.float(both), out);
        }
    }
}
