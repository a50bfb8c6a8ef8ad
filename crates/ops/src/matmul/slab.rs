//! Packs a slice of rows into all its tiles or panels at once, for `matmul_tn`: K runs along the rows there.
//!
//! Rows are read from left to right, as they lie in memory; panel by panel the reads would jump a row's length each time.

use super::Precision;
use super::pack::{MAX_LANES, UNIT};
use crate::simd::{Simd, dispatch_bf16, prefetch};

/// Rows between the one that is packed and the one that is fetched.
const AHEAD: usize = 4;

/// A rectangle of a matrix and how its columns are grouped.
#[derive(Clone, Copy)]
pub(super) struct Slab<'a> {
    /// From the rectangle's first element on.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    pub cols: usize,
    pub rows: usize,
    /// Columns of a group, and elements of its steps. Whole vectors are written: what a step has too much, the next one replaces.
    pub group: usize,
    /// Elements of the last group's steps.
    pub last_width: usize,
    /// Elements from one group to the next: room for a whole vector at the last step.
    pub group_len: usize,
}

dispatch_bf16! {
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

dispatch_bf16! {
    /// Packs a slab as pairs of bf16 in the tiles of a matrix unit, as `pack_rows` does with columns as rows: `row_len` pairs each, padded
    /// with zeros to a multiple of 16. Columns beyond the last hold anything.
    pub(super) fn pack_slab_turned(slab: Slab<'_>, row_len: usize, out: &mut [f32]) = pack_slab_turned_with;
}

#[inline(always)]
fn pack_slab_turned_with<S: Simd>(s: S, slab: Slab<'_>, row_len: usize, out: &mut [f32]) {
    let lanes = S::LANES;
    // From `column` on, a vector of row i; no row beyond the last has elements.
    let part = |i: usize, column: usize| {
        let row = if i < slab.rows { &slab.data[i * slab.stride..][..slab.cols] } else { &[] };
        row.get(column..).unwrap_or_default()
    };
    for step in (0..row_len).step_by(lanes) {
        for column in (0..slab.cols).step_by(lanes) {
            let mut pairs = [0.0f32; MAX_LANES * MAX_LANES];
            for (i, pairs) in (2 * step..).step_by(2).zip(pairs.chunks_exact_mut(lanes).take(lanes)) {
                slab.fetch(part(i, column), 2 * lanes);
                let both = s.bf16_pairs(s.load_some(part(i, column)), s.load_some(part(i + 1, column)));
                s.store(s.float(both), pairs);
            }
            let (group, within) = (column / slab.group * slab.group_len, column % slab.group);
            let tile = group + (within / UNIT * row_len + step / UNIT * UNIT) * UNIT;
            let out = &mut out[tile + within % UNIT * UNIT + step % UNIT..];
            assert!(out.len() >= (lanes - 1) * UNIT + lanes);
            // SAFETY: the block holds LANES rows of LANES elements, and the output a vector in each of as many rows.
            unsafe { s.transpose(pairs.as_ptr(), lanes, out.as_mut_ptr(), UNIT) };
        }
    }
}

impl Slab<'_> {
    /// Has the processor read what stands some rows below `part`: a slab's rows are too short and too far apart for it to guess.
    #[inline(always)]
    fn fetch(&self, part: &[f32], rows: usize) {
        prefetch(part.as_ptr().wrapping_add(rows * self.stride));
    }

    /// Where step `i` of the group that begins at column `first` lies.
    #[inline(always)]
    fn step(&self, first: usize, i: usize) -> usize {
        let width = if first + self.group < self.cols { self.group } else { self.last_width };
        first / self.group * self.group_len + i * width
    }

    /// Calls `f` for each vector of a row: its first column, its elements in `row`, and where it goes.
    #[inline(always)]
    fn vectors(&self, row: &[f32], lanes: usize, i: usize, mut f: impl FnMut(usize, &[f32], usize)) {
        for first in (0..self.cols).step_by(self.group) {
            let to = self.step(first, i);
            let cols = self.group.min(self.cols - first);
            for column in (0..cols).step_by(lanes) {
                // Of a group that is narrower than a vector, columns of the next one are read too; nobody reads them here.
                f(first + column, &row[first + column..], to + column);
            }
        }
    }
}

#[inline(always)]
fn pack_row<S: Simd>(s: S, slab: &Slab, row: &[f32], i: usize, out: &mut [f32]) {
    slab.vectors(row, S::LANES, i, |_, part, to| {
        slab.fetch(part, AHEAD);
        s.store(s.load_some(part), &mut out[to..]);
    });
}

#[inline(always)]
fn pack_pair<S: Simd>(s: S, slab: &Slab, low: &[f32], high: Option<&[f32]>, i: usize, out: &mut [f32]) {
    slab.vectors(low, S::LANES, i, |column, part, to| {
        slab.fetch(part, AHEAD);
        slab.fetch(part, AHEAD + 1);
        let high = high.map_or(s.splat(0.0), |high| s.load_some(&high[column..]));
        s.store(s.float(s.bf16_pairs(s.load_some(part), high)), &mut out[to..]);
    });
}
