//! The driver of `c = aᵀ · b`, the gradient of a weight: both operands are packed per call, and K runs along the rows.
//!
//! A task owns a rectangle of c and walks along the rows in slices at fixed borders; within a slice it packs its part of
//! both operands into its scratch. Neither the borders nor the arithmetic depend on the number of threads.

use super::Precision;
use super::buffer::{Shared, with_scratch};
use super::pack::{PANEL_VECTORS, panel, panel_count};
use super::slab::{Slab, pack_slab};
use super::tile::{Finish, Kernels, Mode, PAIRS, Start, Tile, tile};
use rayon::prelude::*;

/// Rows of a and b per slice; even, so that bf16 pairs do not cross borders.
const SLICE: usize = 384;
/// Most rows of c in a task's rectangle.
const MAX_ROWS: usize = 288;
/// Most panels of c in a task's rectangle.
const MAX_PANELS: usize = 12;
/// Elements between the groups of a slab, so that the same step of all groups does not fall into one set of a cache.
const APART: usize = 16;
/// Multiply-adds below which a product is not worth a second thread.
const SMALL: usize = 1 << 17;

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

/// Splits the result into rectangles and fills them. Lengths were checked by the caller.
pub(super) fn multiply<S: Kernels, const MODE: Mode>(s: S, job: &Transposed, c: &mut [f32]) {
    if c.is_empty() {
        return;
    }
    if job.t == 0 {
        if !job.accumulate {
            c.fill(0.0);
        }
        return;
    }
    let panels = panel_count(job.k, S::LANES);
    let threads = if job.t * job.n * job.k < SMALL { 1 } else { rayon::current_num_threads() };
    let tiles = job.n.div_ceil(S::MR);
    let (mut high, mut wide) = ((MAX_ROWS / S::MR).min(tiles), MAX_PANELS.min(panels));
    while threads > 1 && tiles.div_ceil(high) * panels.div_ceil(wide) < 3 * threads && (wide > 2 || high > 2) {
        if wide > 2 && wide * PANEL_VECTORS * S::LANES >= high * S::MR || high <= 2 {
            wide = wide.div_ceil(2);
        } else {
            high = high.div_ceil(2);
        }
    }
    let columns = panels.div_ceil(wide);
    let tasks = tiles.div_ceil(high) * columns;
    let c = Shared::new(c);
    let run = |task: usize| {
        let (row, column) = (task / columns * high * S::MR, task % columns * wide);
        let rows = row..job.n.min(row + high * S::MR);
        job.run_rectangle::<S, MODE>(s, rows, column..panels.min(column + wide), c);
    };
    if threads == 1 || tasks == 1 {
        (0..tasks).for_each(run);
    } else {
        (0..tasks).into_par_iter().for_each(run);
    }
}

impl Transposed<'_> {
    fn run_rectangle<S: Kernels, const MODE: Mode>(&self, s: S, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>, c: Shared) {
        let precision = if MODE == PAIRS { Precision::Bf16 } else { Precision::F32 };
        let (n, k, width) = (self.n, self.k, PANEL_VECTORS * S::LANES);
        let first = panels.start * width;
        let cols = k.min(panels.end * width) - first;
        let most = precision.steps(self.t.min(SLICE));
        let last = panel(panels.len() - 1, cols, 0, S::LANES);
        let (left_group, right_group) = (most * S::MR + APART, most * width + APART);
        let left_len = rows.len().div_ceil(S::MR) * left_group;
        with_scratch(left_len + panels.len() * right_group, |scratch| {
            let (left, right) = scratch.split_at_mut(left_len);
            for from in (0..self.t).step_by(SLICE) {
                let deep = (self.t - from).min(SLICE);
                let steps = precision.steps(deep);
                let (data, group_len) = (&self.a[from * n + rows.start..], left_group);
                let slab = Slab { data, stride: n, cols: rows.len(), rows: deep, group: S::MR, width: S::MR, last_width: S::MR, group_len };
                pack_slab(slab, precision, left);
                let (data, group_len, last_width) = (&self.b[from * k + first..], right_group, last.vectors * S::LANES);
                let slab = Slab { data, stride: k, cols, rows: deep, group: width, width, last_width, group_len };
                pack_slab(slab, precision, right);
                for (index, right) in right.chunks_exact(right_group).enumerate() {
                    let p = panel(index, cols, steps, S::LANES);
                    for (i, left) in left.chunks_exact(left_group).enumerate() {
                        let row = rows.start + i * S::MR;
                        let job = Tile {
                            k: steps,
                            a: left.as_ptr(),
                            a_row: 1,
                            a_step: S::MR,
                            b: right.as_ptr(),
                            b_step: p.vectors * S::LANES,
                            c: c.ptr().wrapping_add(row * k + first + p.first),
                            c_row: k,
                            cols: p.cols,
                            start: Start::Zero,
                            finish: Finish::Store { scale: self.scale, bias: std::ptr::null(), accumulate: self.accumulate || from > 0 },
                        };
                        // SAFETY: both sides were just packed with `steps` steps of at least MR rows and of the panel's vectors; c has these
                        // rows with p.cols columns from first + p.first, and the tasks' rectangles are disjoint.
                        unsafe { tile::<S, MODE>(s, (rows.end - row).min(S::MR), p.vectors, &job) };
                    }
                }
            }
        });
    }
}
