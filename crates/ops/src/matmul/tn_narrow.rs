//! `c = aᵀ · b` where one side has few columns, as the gradients of an adapter's A and B: nothing is packed.
//!
//! Tiles read the wide operand where it lies, some rows at a time, so that a row is read from end to end; the sums of a slice of rows
//! wait in scratch memory meanwhile. Slices have the borders of the other way, and the results its bits.

use super::buffer::{Shared, with_scratch};
use super::tile::{FULL, Finish, Kernels, Start, Tile, tile};
use super::tn::{SLICE, SMALL, Transposed};
use rayon::prelude::*;
use std::ops::Range;

/// Most columns of the narrow side: with more, packing pays.
const NARROW: usize = 32;
/// Rows that a tile walks at a time.
const ROWS: usize = 64;
/// Fewest columns of the wide side in a task.
const COLUMNS: usize = 128;
/// Vectors of a tile.
const VECTORS: usize = 2;

/// A product as this way sees it: `wide [t, cols]`, `narrow [t, r]`.
struct Narrow<'a> {
    job: &'a Transposed<'a>,
    wide: &'a [f32],
    cols: usize,
    narrow: &'a [f32],
    r: usize,
    /// Whether c is `[r, cols]`, else `[cols, r]`.
    along: bool,
}

/// Fills c if this product is one for this way.
pub(super) fn multiply<S: Kernels>(s: S, job: &Transposed, c: &mut [f32]) -> bool {
    let narrow = if job.n <= job.k {
        Narrow { job, wide: job.b, cols: job.k, narrow: job.a, r: job.n, along: true }
    } else {
        Narrow { job, wide: job.a, cols: job.n, narrow: job.b, r: job.k, along: false }
    };
    // Tiles read whole vectors, of which nothing may stand behind the last row.
    if narrow.r > NARROW || !narrow.cols.is_multiple_of(S::LANES) || job.t == 0 || c.is_empty() {
        return false;
    }
    let parallel = job.t * job.n * job.k >= SMALL;
    let tasks = if parallel { (2 * rayon::current_num_threads()).min(narrow.cols / COLUMNS).max(1) } else { 1 };
    let blocks = narrow.cols.div_ceil(VECTORS * S::LANES);
    let c = Shared::new(c);
    let run = |task: usize| {
        let border = |task: usize| narrow.cols.min(blocks * task / tasks * VECTORS * S::LANES);
        narrow.fill(s, border(task)..border(task + 1), c);
    };
    if tasks == 1 {
        run(0)
    } else {
        (0..tasks).into_par_iter().for_each(run)
    }
    true
}

/// Where the sums of a slice go: element (row 0, first column of the task).
#[derive(Clone, Copy)]
struct Target {
    c: *mut f32,
    row: usize,
    accumulate: bool,
}

impl Narrow<'_> {
    /// Fills what belongs to these columns of the wide side.
    fn fill<S: Kernels>(&self, s: S, cols: Range<usize>, c: Shared) {
        let width = VECTORS * S::LANES;
        let area = cols.len().next_multiple_of(width) * self.r;
        with_scratch(2 * area, |scratch| {
            let (spill, turned) = scratch.split_at_mut(area);
            for from in (0..self.job.t).step_by(SLICE) {
                let slice = from..self.job.t.min(from + SLICE);
                let accumulate = self.job.accumulate || from > 0;
                let target = if self.along {
                    Target { c: c.ptr().wrapping_add(cols.start), row: self.cols, accumulate }
                } else {
                    Target { c: turned.as_mut_ptr(), row: cols.len(), accumulate: false }
                };
                for first in slice.clone().step_by(ROWS) {
                    let rows = first..slice.end.min(first + ROWS);
                    for (column, spill) in (0..cols.len()).step_by(width).zip(spill.chunks_exact_mut(width * self.r)) {
                        let target = Target { c: target.c.wrapping_add(column), ..target };
                        let here = cols.start + column..cols.end.min(cols.start + column + width);
                        self.add_rows(s, rows.clone(), &slice, here, spill, target);
                    }
                }
                if !self.along {
                    // SAFETY: these rows of c are this task's.
                    let c = unsafe { c.part(cols.start * self.r..cols.end * self.r) };
                    for (i, c) in c.chunks_exact_mut(self.r).enumerate() {
                        for (c, sums) in c.iter_mut().zip(turned.chunks_exact(cols.len())) {
                            *c = if accumulate { sums[i] + *c } else { sums[i] };
                        }
                    }
                }
            }
        });
    }

    /// Adds some rows of a slice to the sums of at most two vectors of columns; its last rows end them.
    fn add_rows<S: Kernels>(&self, s: S, rows: Range<usize>, slice: &Range<usize>, cols: Range<usize>, spill: &mut [f32], to: Target) {
        let high = self.r.div_ceil(self.r.div_ceil(S::MR));
        for (first, spill) in (0..self.r).step_by(high).zip(spill.chunks_mut(high * VECTORS * S::LANES)) {
            let job = Tile {
                k: rows.len(),
                a: self.narrow[rows.start * self.r + first..].as_ptr(),
                a_row: 1,
                a_step: self.r,
                b: self.wide[rows.start * self.cols + cols.start..].as_ptr(),
                b_step: self.cols,
                c: to.c.wrapping_add(first * to.row),
                c_row: to.row,
                cols: cols.len(),
                start: if rows.start == slice.start { Start::Zero } else { Start::Spilled(spill.as_ptr()) },
                finish: if rows.end == slice.end {
                    Finish::Store { scale: self.job.scale, bias: std::ptr::null(), accumulate: to.accumulate }
                } else {
                    Finish::Spill(spill.as_mut_ptr())
                },
            };
            // SAFETY: `narrow` has r columns in each of these rows and `wide` the columns of as many whole vectors; the spill area has two
            // vectors for each of the tile's rows; the target has these columns in each of r rows, and they are this task's.
            unsafe { tile::<S, FULL>(s, high.min(self.r - first), cols.len() / S::LANES, &job) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{tn, with_kernels};
    use super::*;
    use crate::cpu::{self, Isa};

    #[test]
    fn the_bits_are_those_of_packed_operands() {
        let number = |i: usize| ((i * 2_654_435_761) >> 7 & 0xffff) as f32 / 65_536.0 - 0.5;
        // Narrow on either side; rows in part of a walk, of a slice and beyond one; tiles of several heights; one vector beside pairs.
        for (t, n, k) in [(3, 8, 16), (64, 16, 1), (130, 8, 320), (1100, 304, 9), (1025, 32, 176), (70, 48, 31)] {
            let (a, b): (Vec<f32>, Vec<f32>) = ((0..t * n).map(number).collect(), (7..7 + t * k).map(number).collect());
            for accumulate in [false, true] {
                let job = Transposed { a: &a, b: &b, t, n, k, scale: 0.3, accumulate };
                let (mut packed, mut narrow) = (vec![1.0f32; n * k], vec![1.0f32; n * k]);
                with_kernels!(s => {
                    tn::multiply::<_, FULL>(s, &job, &mut packed);
                    assert!(multiply(s, &job, &mut narrow));
                });
                assert!(packed.iter().zip(&narrow).all(|(p, n)| p.to_bits() == n.to_bits()), "[{t}, {n}, {k}], accumulate {accumulate}");
            }
        }
    }
}
