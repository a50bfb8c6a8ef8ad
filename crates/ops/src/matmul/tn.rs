//! The driver of `c = aᵀ · b`, the gradient of a weight: both operands are packed per call, and K runs along the rows.
//!
//! Rows are taken in slices at fixed borders. All threads pack a slice, each operand once, then each thread fills rectangles of c
//! from it. Neither the borders nor the arithmetic depend on the number of threads.

use super::Precision;
use super::buffer::{Shared, with_shared_scratch};
use super::pack::{PANEL_VECTORS, Panel, panel, panel_count};
use super::slab::{Slab, pack_slab, pack_slab_turned};
use super::tile::{Finish, Mode, PAIRS, Start, Tile, Tiles};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a and b per slice; even, so that bf16 pairs do not cross borders. Long, since every slice reads and writes all of c.
pub(super) const SLICE: usize = 1024;
/// Most rows and columns of c that are packed for at once: bounds the scratch.
const BLOCK: usize = 2048;
/// Rows of c in a task's rectangle: their packed slice (AVX-512: 48 × 1024 × 4 bytes) stays in the second-level cache.
const HIGH: usize = 48;
/// Columns of c in a task's rectangle.
const WIDE: usize = 128;
/// Columns of either operand that a task packs.
const PACKED_COLUMNS: usize = 192;
/// Elements between the groups of a slab, so that the same step of all groups does not fall into one set of a cache.
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

/// A part of c, and how a slice of its operands is packed: the tiles of the left side, then the panels of the right one.
struct Block {
    rows: Range<usize>,
    cols: Range<usize>,
    tiles: usize,
    panels: usize,
    /// Elements of a tile's packed slice.
    left_group: usize,
    /// Elements of a row of it, where it lies row after row.
    left_row: Option<usize>,
    /// Elements of a panel's packed slice.
    right_group: usize,
    parallel: bool,
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
    let parallel = job.t * job.n * job.k >= SMALL && rayon::current_num_threads() > 1;
    let steps = precision::<MODE>().steps(job.t.min(SLICE));
    let c = Shared::new(c);
    for row in (0..job.n).step_by(BLOCK) {
        for column in (0..job.k).step_by(BLOCK) {
            let (rows, cols) = (row..job.n.min(row + BLOCK), column..job.k.min(column + BLOCK));
            let block = Block {
                tiles: rows.len().div_ceil(S::MR),
                panels: panel_count(cols.len(), S::LANES),
                left_group: steps.next_multiple_of(S::STEPS) * S::MR + APART,
                left_row: (S::STEPS > 1).then(|| steps.next_multiple_of(S::STEPS)),
                right_group: steps * PANEL_VECTORS * S::LANES + APART,
                rows,
                cols,
                parallel,
            };
            job.run_block::<S, MODE>(s, &block, c);
        }
    }
}

fn precision<const MODE: Mode>() -> Precision {
    if MODE == PAIRS { Precision::Bf16 } else { Precision::F32 }
}

impl Block {
    /// Runs tasks on all threads, or on this one where they are not worth more.
    fn each(&self, tasks: usize, run: impl Fn(usize) + Send + Sync) {
        if self.parallel && tasks > 1 {
            (0..tasks).into_par_iter().for_each(run);
        } else {
            (0..tasks).for_each(run);
        }
    }

    fn panel<S: Tiles>(&self, index: usize) -> Panel {
        panel(index, self.cols.len(), 0, S::LANES)
    }
}

impl Transposed<'_> {
    fn run_block<S: Tiles, const MODE: Mode>(&self, s: S, block: &Block, c: Shared) {
        let (high, wide) = (HIGH / S::MR, WIDE / (PANEL_VECTORS * S::LANES));
        let columns = block.panels.div_ceil(wide);
        with_shared_scratch(block.tiles * block.left_group + block.panels * block.right_group, |scratch| {
            let (left, right) = scratch.split_at_mut(block.tiles * block.left_group);
            for from in (0..self.t).step_by(SLICE) {
                let slice = from..self.t.min(from + SLICE);
                self.pack::<S, MODE>(block, slice.clone(), left, right);
                block.each(block.tiles.div_ceil(high) * columns, |task| {
                    let (tile, panel) = (task / columns * high, task % columns * wide);
                    let (tiles, panels) = (tile..block.tiles.min(tile + high), panel..block.panels.min(panel + wide));
                    self.run_rectangle::<S, MODE>(s, block, &slice, (tiles, left), (panels, right), c);
                });
            }
        });
    }

    /// Packs a slice of both operands.
    fn pack<S: Tiles, const MODE: Mode>(&self, block: &Block, slice: Range<usize>, left: &mut [f32], right: &mut [f32]) {
        let (data, stride, group_len) = (self.a, self.n, block.left_group);
        let left = Side {
            data,
            stride,
            range: &block.rows,
            group: S::MR,
            unit: S::MR,
            group_len,
            row_len: block.left_row,
            out: Shared::new(left),
        };
        let (data, stride, group_len, group) = (self.b, self.k, block.right_group, PANEL_VECTORS * S::LANES);
        let right = Side { data, stride, range: &block.cols, group, unit: S::LANES, group_len, row_len: None, out: Shared::new(right) };
        let tasks = left.tasks();
        block.each(tasks + right.tasks(), |task| match task.checked_sub(tasks) {
            None => left.pack(task, &slice, precision::<MODE>()),
            Some(task) => right.pack(task, &slice, precision::<MODE>()),
        });
    }

    /// Adds a slice to a rectangle of c: these tiles and panels, each with the packed operand of its side.
    fn run_rectangle<S: Tiles, const MODE: Mode>(
        &self,
        s: S,
        block: &Block,
        slice: &Range<usize>,
        (tiles, left): (Range<usize>, &[f32]),
        (panels, right): (Range<usize>, &[f32]),
        c: Shared,
    ) {
        let steps = precision::<MODE>().steps(slice.len());
        for (index, right) in panels.clone().zip(right.chunks_exact(block.right_group).skip(panels.start)) {
            let p = block.panel::<S>(index);
            for (i, left) in tiles.clone().zip(left.chunks_exact(block.left_group).skip(tiles.start)) {
                let row = block.rows.start + i * S::MR;
                let job = Tile {
                    k: steps,
                    a: left.as_ptr(),
                    a_row: block.left_row.unwrap_or(1),
                    a_step: if block.left_row.is_some() { 1 } else { S::MR },
                    b: right.as_ptr(),
                    b_step: p.vectors * S::LANES,
                    c: c.ptr().wrapping_add(row * self.k + block.cols.start + p.first),
                    c_row: self.k,
                    cols: p.cols,
                    start: Start::Zero,
                    finish: Finish::Store { scale: self.scale, bias: std::ptr::null(), accumulate: self.accumulate || slice.start > 0 },
                };
                // SAFETY: both sides were packed with `steps` steps of at least MR rows and of the panel's vectors; c has these rows with
                // p.cols columns from block.cols.start + p.first, and the tasks' rectangles are disjoint.
                unsafe { s.run::<MODE>((block.rows.end - row).min(S::MR), p.vectors, &job) };
            }
        }
    }
}

/// An operand and where its packed slice goes.
struct Side<'a> {
    data: &'a [f32],
    stride: usize,
    /// Columns that are packed.
    range: &'a Range<usize>,
    /// Columns of a tile or a panel.
    group: usize,
    /// The last of them is as wide as its columns, in these.
    unit: usize,
    group_len: usize,
    /// As a block's `left_row`.
    row_len: Option<usize>,
    out: Shared,
}

impl Side<'_> {
    /// Groups of a task.
    fn groups(&self) -> usize {
        PACKED_COLUMNS / self.group
    }

    fn tasks(&self) -> usize {
        self.range.len().div_ceil(self.groups() * self.group)
    }

    fn pack(&self, task: usize, slice: &Range<usize>, precision: Precision) {
        let first = task * self.groups();
        let from = self.range.start + first * self.group;
        let cols = (self.range.end - from).min(self.groups() * self.group);
        let groups = cols.div_ceil(self.group);
        let slab = Slab {
            data: &self.data[slice.start * self.stride + from..],
            stride: self.stride,
            cols,
            rows: slice.len(),
            group: self.group,
            last_width: (cols - (groups - 1) * self.group).next_multiple_of(self.unit),
            group_len: self.group_len,
        };
        // SAFETY: the scratch has so many elements for each group, and no other task has these groups.
        let out = unsafe { std::slice::from_raw_parts_mut(self.out.ptr().add(first * self.group_len), groups * self.group_len) };
        match self.row_len {
            Some(row_len) => pack_slab_turned(slab, row_len, out),
            None => pack_slab(slab, precision, out),
        }
    }
}
