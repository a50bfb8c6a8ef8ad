//! The driver of `c = aᵀ · b`, the gradient of a weight: both operands are packed per call, and K runs along the rows.
//!
//! Rows are taken in slices at fixed borders. All threads pack b's slice, once; then each packs a block of a's columns for itself, which
//! stays in its second-level cache, and fills these rows of c. Neither the borders nor the arithmetic depend on the number of threads.

use super::Precision;
use super::buffer::{Shared, with_scratch, with_shared_scratch};
use super::pack::{PANEL_VECTORS, panel, panel_count};
use super::slab::{Slab, pack_slab, pack_slab_turned};
use super::tile::{Finish, Mode, PAIRS, Start, Tile, Tiles};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a and b per slice; even, so that bf16 pairs do not cross borders. Long, since every slice reads and writes all of c.
pub(super) const SLICE: usize = 1024;
/// Most columns of c that are packed for at once: bounds the scratch.
const COLUMNS: usize = 2048;
/// Most tiles of c's rows in a block: their packed slice (AVX-512: 192 × 1024 × 4 bytes) stays in the second-level cache, and packing reads
/// long enough a run of each row of a.
const BLOCK_TILES: usize = 16;
/// The same of a matrix unit, whose tiles are larger.
const UNIT_TILES: usize = 8;
/// Columns of b that a task packs.
const PACKED_COLUMNS: usize = 192;
/// Elements between the groups of a slab, so that the same step of all groups does not fall into one set of a cache. Room, too, for the
/// whole vector that packing writes at a group's last step.
const APART: usize = 16;
/// Multiply-adds below which a product is not worth a second thread.
pub(super) const SMALL: usize = 1 << 17;

/// The operands and result of one product.
pub(super) struct Transposed<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub t: usize,
    pub n: usize,
    pub k: usize,
    pub scale: f32,
    pub accumulate: bool,
}

/// How a slice of the operands is packed: columns of c as panels of b, blocks of its rows as tiles of a.
struct Packing {
    cols: Range<usize>,
    panels: usize,
    /// Elements of a panel's packed slice.
    right_group: usize,
    /// Elements of a tile's packed slice.
    left_group: usize,
    /// Elements of a row of it, where it lies in the tiles of a matrix unit.
    left_row: Option<usize>,
}

/// Splits the result into blocks and fills them. Lengths were checked by the caller.
pub(super) fn multiply<S: Tiles, const MODE: Mode>(s: S, job: &Transposed, c: &mut [f32]) {
    if c.is_empty() {
        return;
    }
    if job.t == 0 {
        if !job.accumulate {
            c.fill(0.0);
        }
        return;
    }
    let steps = precision::<MODE>().steps(job.t.min(SLICE));
    let c = Shared::new(c);
    for column in (0..job.k).step_by(COLUMNS) {
        let cols = column..job.k.min(column + COLUMNS);
        let packing = Packing {
            panels: panel_count(cols.len(), S::LANES),
            right_group: steps * PANEL_VECTORS * S::LANES + APART,
            left_group: steps.next_multiple_of(S::STEPS) * S::MR + APART,
            left_row: (S::STEPS > 1).then(|| steps.next_multiple_of(S::STEPS)),
            cols,
        };
        job.run_columns::<S, MODE>(s, &packing, c);
    }
}

fn precision<const MODE: Mode>() -> Precision {
    if MODE == PAIRS { Precision::Bf16 } else { Precision::F32 }
}

impl Transposed<'_> {
    fn run_columns<S: Tiles, const MODE: Mode>(&self, s: S, packing: &Packing, c: Shared) {
        let threads = if self.t * self.n * self.k >= SMALL { rayon::current_num_threads() } else { 1 };
        let each = |tasks: usize, run: &(dyn Fn(usize) + Sync)| {
            if threads > 1 && tasks > 1 {
                (0..tasks).into_par_iter().for_each(run);
            } else {
                (0..tasks).for_each(run);
            }
        };
        let tiles = self.n.div_ceil(S::MR);
        let most = if S::STEPS > 1 { UNIT_TILES } else { BLOCK_TILES };
        // As many blocks for each thread, two at least; few ones are shared out by chunks of their panels, each of which packs the block again.
        let blocks = tiles.div_ceil(most).max(2 * threads).next_multiple_of(threads).min(tiles);
        let chunks = (2 * threads).div_ceil(blocks).min(packing.panels);
        with_shared_scratch(packing.panels * packing.right_group, |right| {
            for from in (0..self.t).step_by(SLICE) {
                let slice = from..self.t.min(from + SLICE);
                let packed = Shared::new(right);
                each(packing.panels.div_ceil(PACKED_COLUMNS / (PANEL_VECTORS * S::LANES)), &|task| {
                    self.pack_panels::<S>(packing, &slice, task, precision::<MODE>(), packed);
                });
                each(blocks * chunks, &|task| {
                    let (block, chunk) = (task / chunks, task % chunks);
                    let rows = tiles * block / blocks * S::MR..self.n.min(tiles * (block + 1) / blocks * S::MR);
                    let panels = packing.panels * chunk / chunks..packing.panels * (chunk + 1) / chunks;
                    self.run_block::<S, MODE>(s, packing, &slice, rows, (panels, right), c);
                });
            }
        });
    }

    /// Packs a slice of the panels of a task.
    fn pack_panels<S: Tiles>(&self, packing: &Packing, slice: &Range<usize>, task: usize, precision: Precision, packed: Shared) {
        let width = PANEL_VECTORS * S::LANES;
        let at_once = PACKED_COLUMNS / width;
        let panels = task * at_once..packing.panels.min((task + 1) * at_once);
        let cols = panels.start * width..packing.cols.len().min(panels.end * width);
        let slab = Slab {
            data: &self.b[slice.start * self.k + packing.cols.start + cols.start..],
            stride: self.k,
            cols: cols.len(),
            rows: slice.len(),
            group: width,
            last_width: (cols.len() - (panels.len() - 1) * width).next_multiple_of(S::LANES),
            group_len: packing.right_group,
        };
        // SAFETY: the scratch has so many elements for each panel, and no other task has these panels.
        let out = unsafe { packed.part(panels.start * packing.right_group..panels.end * packing.right_group) };
        pack_slab(slab, precision, out);
    }

    /// Adds a slice to these rows of c, in the columns of these panels.
    fn run_block<S: Tiles, const MODE: Mode>(
        &self,
        s: S,
        packing: &Packing,
        slice: &Range<usize>,
        rows: Range<usize>,
        (panels, right): (Range<usize>, &[f32]),
        c: Shared,
    ) {
        let steps = precision::<MODE>().steps(slice.len());
        let tiles = rows.len().div_ceil(S::MR);
        with_scratch(tiles * packing.left_group, |left| {
            let slab = Slab {
                data: &self.a[slice.start * self.n + rows.start..],
                stride: self.n,
                cols: rows.len(),
                rows: slice.len(),
                group: S::MR,
                last_width: S::MR,
                group_len: packing.left_group,
            };
            match packing.left_row {
                Some(row_len) => pack_slab_turned(slab, row_len, left),
                None => pack_slab(slab, precision::<MODE>(), left),
            }
            for (index, right) in panels.clone().zip(right.chunks_exact(packing.right_group).skip(panels.start)) {
                let p = panel(index, packing.cols.len(), 0, S::LANES);
                for (row, left) in rows.clone().step_by(S::MR).zip(left.chunks_exact(packing.left_group)) {
                    let job = Tile {
                        k: steps,
                        a: left.as_ptr(),
                        a_row: packing.left_row.unwrap_or(1),
                        a_step: if packing.left_row.is_some() { S::STEPS } else { S::MR },
                        b: right.as_ptr(),
                        b_step: p.vectors * S::LANES,
                        c: c.ptr().wrapping_add(row * self.k + packing.cols.start + p.first),
                        c_row: self.k,
                        cols: p.cols,
                        start: Start::Zero,
                        finish: Finish::Store { scale: self.scale, bias: std::ptr::null(), accumulate: self.accumulate || slice.start > 0 },
                    };
                    // SAFETY: both sides were packed with `steps` steps of at least MR rows and of the panel's vectors; c has these rows with
                    // p.cols columns from cols.start + p.first, and no other task has both the same rows and the same panel.
                    unsafe { s.run::<MODE>((rows.end - row).min(S::MR), p.vectors, &job) };
                }
            }
        });
    }
}
