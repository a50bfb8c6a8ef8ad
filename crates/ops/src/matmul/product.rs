//! The driver of `y = x · W`: which thread computes which rows and panels, and the walk along K within them.
//!
//! A block of rows is packed once into the thread's scratch and stays in the second-level cache; a panel's slice of K stays
//! in the first. Sums cross from one slice to the next through memory, which does not change them. How the work is split
//! depends on the machine, an output element's arithmetic does not.

use super::buffer::{Shared, with_scratch};
use super::pack::{MAX_LANES, PANEL_VECTORS, Panel, Source, pack_panel, pack_rows, panel};
use super::tile::{FULL, Finish, HALVES, Mode, PAIRS, Start, Tile, Tiles};
use super::{Epilogue, Precision};
use crate::activation::activate;
use rayon::prelude::*;
use std::ops::Range;

/// Tiles of rows in a block.
const BLOCK_TILES: usize = 8;
/// Elements of the panels that a matrix unit's tile of rows meets in turn: they stay in the second-level cache.
const UNIT_PANELS: usize = 1 << 17;
/// Up to this many rows are read where they lie instead of packed, and any number that only one panel uses.
const DIRECT_ROWS: usize = 4;
/// Multiply-adds below which a product is not worth a second thread.
const SMALL: usize = 1 << 17;

/// The right side of a product: panels of a packed weight.
pub(super) struct Right<'a> {
    /// The first of the panels, and what follows it.
    pub data: &'a [f32],
    pub panels: Range<usize>,
    /// Outputs of the whole weight.
    pub n: usize,
    pub k: usize,
    pub precision: Precision,
}

/// What all tasks of one product share.
struct Product<'a> {
    x: &'a [f32],
    w: Right<'a>,
    y: Shared,
    ep: Epilogue<'a>,
    steps: usize,
}

/// Splits a product into tasks and runs them. Lengths were checked by the caller. Of `y` the panels' columns are written, all of them,
/// and read only if the product is added to them.
pub(super) fn multiply<S: Tiles, const MODE: Mode>(s: S, x: &[f32], rows: usize, w: Right, y: Shared, ep: Epilogue) {
    let (first, panels) = (w.panels.start, w.panels.len());
    if rows == 0 || panels == 0 {
        return;
    }
    let steps = w.precision.steps(w.k);
    let work = rows * panels * PANEL_VECTORS * S::LANES * steps.max(1);
    let product = Product { x, w, y, ep, steps };
    let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
    let tiles = rows.div_ceil(S::MR);
    // As many for each thread, where there is more than one for each.
    let blocks = tiles.div_ceil(BLOCK_TILES);
    // A matrix unit multiplies a block in little more time than it takes to pack it, so blocks are packed once.
    let blocks = if S::STEPS > 1 && threads > 1 { blocks.max(4 * threads).min(tiles) } else { blocks };
    let blocks = if blocks > threads { blocks.next_multiple_of(threads).min(tiles) } else { blocks };
    // Enough tasks to share evenly; a block of rows is packed again for each chunk of its panels, so not more than that.
    let chunks = (4 * threads).div_ceil(blocks).min(panels).min(work / SMALL + 1);
    let chunks = if threads == 1 { 1 } else { chunks };
    let run = |task: usize| {
        let (block, chunk) = (task / chunks, task % chunks);
        let rows = tiles * block / blocks * S::MR..rows.min(tiles * (block + 1) / blocks * S::MR);
        let panels = first + panels * chunk / chunks..first + panels * (chunk + 1) / chunks;
        product.run_block::<S, MODE>(s, rows, panels);
    };
    if threads == 1 || blocks * chunks == 1 {
        (0..blocks * chunks).for_each(run);
    } else {
        (0..blocks * chunks).into_par_iter().for_each(run);
    }
}

/// The left side of a block of rows: where its tiles begin and how one walks in them.
struct Left {
    start: *const f32,
    tile: usize,
    row: usize,
    step: usize,
}

impl Product<'_> {
    fn run_block<S: Tiles, const MODE: Mode>(&self, s: S, rows: Range<usize>, panels: Range<usize>) {
        let (k, steps) = (self.w.k, self.steps);
        let tiles = rows.len().div_ceil(S::MR);
        // So few rows at a time keep their lines in the first-level cache, whatever their stride.
        let one_pass = panels.len() == 1 && S::MR < 8;
        let direct = MODE != PAIRS && (rows.len() <= DIRECT_ROWS.min(S::MR) || one_pass);
        let row_len = steps.next_multiple_of(S::STEPS);
        // Packing writes whole vectors, perhaps wider ones than the tiles read.
        let packed = if direct { 0 } else { tiles * row_len * S::MR + MAX_LANES };
        let spill = tiles * S::MR * PANEL_VECTORS * S::LANES;
        with_scratch(packed + spill, |scratch| {
            let (packed, spill) = scratch.split_at_mut(packed);
            let x = &self.x[rows.start * k..rows.end * k];
            let left = if direct {
                Left { start: x.as_ptr(), tile: S::MR * k, row: k, step: 1 }
            } else if S::STEPS > 1 {
                pack_rows(x, k, row_len, packed);
                Left { start: packed.as_ptr(), tile: S::MR * row_len, row: row_len, step: S::STEPS }
            } else {
                let precision = if MODE == PAIRS { Precision::Bf16 } else { Precision::F32 };
                for i in 0..tiles {
                    let here = (rows.len() - i * S::MR).min(S::MR);
                    let source = Source { data: &x[i * S::MR * k..], stride: k, across: true };
                    // Whole vectors are written: what a step has too much, the next one replaces.
                    pack_panel(source, here, k, S::MR, precision, &mut packed[i * steps * S::MR..]);
                }
                Left { start: packed.as_ptr(), tile: steps * S::MR, row: 1, step: S::MR }
            };
            // A panel meets all tiles while it is in the first-level cache. A matrix unit, which is faster than the second-level cache, goes
            // along the rows of y instead, for the sake of the stores.
            let (tiles_at_once, panels_at_once) = if S::STEPS > 1 && steps <= S::SLICE {
                (1, (UNIT_PANELS / (steps.max(1) * PANEL_VECTORS * S::LANES)).max(1))
            } else {
                (tiles, panels.len())
            };
            for first in panels.clone().step_by(panels_at_once) {
                let here = first..panels.end.min(first + panels_at_once);
                for tile in (0..tiles).step_by(tiles_at_once) {
                    for index in here.clone() {
                        let panel = panel(index, self.w.n, steps, S::LANES);
                        self.run_panel::<S, MODE>(s, &rows, tile..tile + tiles_at_once, panel, &left, spill);
                    }
                    if let Some(kind) = self.ep.activation {
                        let ended = rows.start + tile * S::MR..rows.end.min(rows.start + (tile + tiles_at_once) * S::MR);
                        let cols = [here.start, here.end].map(|p| (p * PANEL_VECTORS * S::LANES).min(self.w.n));
                        // SAFETY: this task, and no other, has just stored these columns of these rows.
                        unsafe { activate(kind, self.y, self.w.n, ended, cols[0]..cols[1]) };
                    }
                }
            }
        });
    }

    fn run_panel<S: Tiles, const MODE: Mode>(
        &self,
        s: S,
        rows: &Range<usize>,
        tiles: Range<usize>,
        panel: Panel,
        left: &Left,
        spill: &mut [f32],
    ) {
        let (n, steps) = (self.w.n, self.steps);
        let offset = panel.offset - self.w.panels.start * PANEL_VECTORS * S::LANES * steps;
        let width = panel.vectors * S::LANES;
        let slices = steps.div_ceil(S::SLICE).max(1);
        // Still as many slices: SLICE is a multiple too.
        let slice = steps.div_ceil(slices).next_multiple_of(S::STEPS);
        let bias = self.ep.bias.map_or(std::ptr::null(), |b| b[panel.first..].as_ptr());
        for i in 0..slices {
            let first = i * slice;
            let k = slice.min(steps - first);
            let right = match MODE {
                // Two columns share a word there, and a panel of one vector is as wide as one of two.
                HALVES => &self.w.data[offset / PANEL_VECTORS + first * S::LANES..][..k * S::LANES],
                _ => &self.w.data[offset + first * width..][..k * width],
            };
            for (t, spill) in tiles.clone().zip(spill.chunks_exact_mut(S::MR * PANEL_VECTORS * S::LANES)) {
                let here = (rows.len() - t * S::MR).min(S::MR);
                let spill = spill.as_mut_ptr();
                let job = Tile {
                    k,
                    a: left.start.wrapping_add(t * left.tile + first * left.step),
                    a_row: left.row,
                    a_step: left.step,
                    b: right.as_ptr(),
                    b_step: if MODE == HALVES { S::LANES } else { width },
                    c: self.y.ptr().wrapping_add((rows.start + t * S::MR) * n + panel.first),
                    c_row: n,
                    cols: panel.cols,
                    start: if i == 0 { Start::Zero } else { Start::Spilled(spill) },
                    finish: if i + 1 == slices {
                        Finish::Store { scale: self.ep.scale, bias, accumulate: self.ep.accumulate }
                    } else {
                        Finish::Spill(spill)
                    },
                };
                // SAFETY: `a` is the packed (or direct) left side of these rows with `steps` steps, of which first .. first + k are walked;
                // `right` holds `width` columns (with HALVES: LANES words) for each of these; the spill area has MR · 2 vectors; y has these rows, with panel.cols
                // columns from panel.first, and no other task has both the same rows and the same panel; bias has n elements.
                unsafe { s.run::<MODE>(here, panel.vectors, &job) };
                if let (Some(update), true) = (self.ep.update, i + 1 == slices) {
                    let r = update.b.k();
                    let job = Tile {
                        k: r,
                        a: update.u[(rows.start + t * S::MR) * r..].as_ptr(),
                        a_row: r,
                        a_step: 1,
                        b: update.b.data()[panel.first * r..][..width * r].as_ptr(),
                        b_step: width,
                        start: Start::Zero,
                        finish: Finish::Store { scale: update.scale, bias: std::ptr::null(), accumulate: true },
                        ..job
                    };
                    // SAFETY: u has r elements in each of these rows, and the update's weight, whose panels are those of the product's, has
                    // them in each of the panel's columns; y as above.
                    unsafe { s.run::<FULL>(here, panel.vectors, &job) };
                }
            }
        }
    }
}
