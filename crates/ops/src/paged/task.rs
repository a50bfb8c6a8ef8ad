//! The work of one pass, cut into tasks: some rows of a sequence with the query heads of one key head, along all keys that they see.
//!
//! A task walks block by block, and within a block tile by tile, so that a block is read from memory once. Where there are fewer tasks
//! than threads, a task's blocks are shared out; what they leave is joined in the same order either way.

use super::block::{BLOCK, Keys, Sums, TILE, Tile, block_of, join, result_len};
use super::{PAGE, PagedSpec};
use crate::matmul::{Shared, with_scratch};
use crate::simd::{Simd, dispatch};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a task: their sums and one block of keys and values fit the second-level cache.
const QUERIES: usize = 64;

/// What all tasks share.
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k_pages: &'a [f32],
    pub v_pages: &'a [f32],
    pub spec: &'a PagedSpec<'a>,
    pub out: Shared,
}

/// Rows of one sequence with the query heads of one key and value head.
pub(super) struct Task {
    sequence: usize,
    kv_head: usize,
    rows: Range<usize>,
    /// Position of each query: row after row, head after head.
    positions: Vec<usize>,
}

impl Task {
    /// The tasks of a sequence.
    pub fn of_sequence(spec: &PagedSpec, sequence: usize) -> Vec<Task> {
        let group = spec.heads / spec.kv_heads;
        let (first, end) = (spec.cu_rows[sequence] as usize, spec.cu_rows[sequence + 1] as usize);
        let start = spec.starts[sequence] as usize;
        let step = (QUERIES / group).max(1);
        let mut tasks = Vec::new();
        for kv_head in 0..spec.kv_heads {
            for from in (first..end).step_by(step) {
                let rows = from..end.min(from + step);
                let positions = rows.clone().flat_map(|row| std::iter::repeat_n(start + row - first, group)).collect();
                tasks.push(Task { sequence, kv_head, rows, positions });
            }
        }
        tasks
    }

    /// The blocks that any of its queries sees.
    fn blocks(&self, spec: &PagedSpec) -> Range<usize> {
        let first = spec.window.map_or(0, |w| (self.positions[0] + 1).saturating_sub(w));
        first / BLOCK..self.positions[self.positions.len() - 1] / BLOCK + 1
    }

    /// About how many multiply-adds it takes.
    pub fn work(&self, spec: &PagedSpec) -> usize {
        2 * self.positions.len() * self.blocks(spec).len() * BLOCK * spec.head_dim
    }

    /// Rows of results, whole tiles.
    fn results(&self) -> usize {
        self.positions.len().next_multiple_of(TILE)
    }

    /// Where the i-th query begins in q and in out.
    fn at(&self, spec: &PagedSpec, i: usize) -> usize {
        let group = spec.heads / spec.kv_heads;
        ((self.rows.start + i / group) * spec.heads + self.kv_head * group + i % group) * spec.head_dim
    }

    fn scratch_len(&self, spec: &PagedSpec) -> usize {
        self.results() * (spec.head_dim + result_len(spec.head_dim)) + TILE * (BLOCK + result_len(spec.head_dim))
    }

    /// Computes its rows.
    pub fn run(&self, inputs: &Inputs) {
        with_scratch(self.scratch_len(inputs.spec), |scratch| whole(self, inputs, scratch));
    }

    /// Computes its rows, with the blocks in about `parts` tasks of their own.
    pub fn run_in_parts(&self, inputs: &Inputs, parts: usize) {
        let (spec, blocks) = (inputs.spec, self.blocks(inputs.spec));
        let each = blocks.len().div_ceil(parts).max(1);
        if each >= blocks.len() {
            return self.run(inputs);
        }
        let size = self.results() * result_len(spec.head_dim);
        let mut left = vec![0.0; blocks.len() * size];
        left.par_chunks_mut(each * size).enumerate().for_each(|(i, left)| {
            let first = blocks.start + i * each;
            let here = first..first + left.len() / size;
            with_scratch(self.scratch_len(spec), |scratch| some_blocks(self, inputs, here, left, scratch));
        });
        with_scratch(size, |scratch| join_blocks(self, inputs, &left, scratch));
    }
}

dispatch! { fn whole(task: &Task, inputs: &Inputs, scratch: &mut [f32]) = whole_with; }
dispatch! { fn some_blocks(task: &Task, inputs: &Inputs, blocks: Range<usize>, left: &mut [f32], scratch: &mut [f32]) = some_blocks_with; }
dispatch! { fn join_blocks(task: &Task, inputs: &Inputs, left: &[f32], scratch: &mut [f32]) = join_blocks_with; }

/// Queries of a full tile: as many as the registers have room for.
#[inline(always)]
fn tile_queries<S: Simd>() -> usize {
    if S::LANES == 16 { TILE } else { TILE / 2 }
}

#[inline(always)]
fn whole_with<S: Simd>(s: S, task: &Task, inputs: &Inputs, scratch: &mut [f32]) {
    let (spec, size) = (inputs.spec, result_len(inputs.spec.head_dim));
    let (queries, rest) = scratch.split_at_mut(task.results() * spec.head_dim);
    let (results, rest) = rest.split_at_mut(task.results() * size);
    let (scores, block) = rest.split_at_mut(TILE * BLOCK);
    pack_queries::<S>(task, inputs, queries);
    results.chunks_exact_mut(size).for_each(|result| Sums::of(result).clear());
    for index in task.blocks(spec) {
        for first in (0..task.positions.len()).step_by(tile_queries::<S>()) {
            let tile = tile_at::<S>(task, spec, first, queries);
            if sees(&tile, spec, index) {
                block_of(s, &tile, &keys_of(task, inputs, &tile, index), spec, scores, block);
                let results = results[first * size..].chunks_exact_mut(size).zip(block.chunks_exact(size));
                results.take(tile.positions.len()).for_each(|(result, block)| join(s, result, block));
            }
        }
    }
    write(s, task, inputs, results);
}

/// The results of each of some blocks.
#[inline(always)]
fn some_blocks_with<S: Simd>(s: S, task: &Task, inputs: &Inputs, blocks: Range<usize>, left: &mut [f32], scratch: &mut [f32]) {
    let (spec, size) = (inputs.spec, result_len(inputs.spec.head_dim));
    let (queries, scores) = scratch.split_at_mut(task.results() * spec.head_dim);
    pack_queries::<S>(task, inputs, queries);
    for (index, left) in blocks.zip(left.chunks_exact_mut(task.results() * size)) {
        for first in (0..task.positions.len()).step_by(tile_queries::<S>()) {
            let tile = tile_at::<S>(task, spec, first, queries);
            let results = &mut left[first * size..];
            if sees(&tile, spec, index) {
                block_of(s, &tile, &keys_of(task, inputs, &tile, index), spec, scores, results);
            } else {
                results.chunks_exact_mut(size).take(tile.positions.len()).for_each(|result| Sums::of(result).clear());
            }
        }
    }
}

/// Joins the results of all blocks in order.
#[inline(always)]
fn join_blocks_with<S: Simd>(s: S, task: &Task, inputs: &Inputs, left: &[f32], scratch: &mut [f32]) {
    let size = result_len(inputs.spec.head_dim);
    scratch.chunks_exact_mut(size).for_each(|result| Sums::of(result).clear());
    for block in left.chunks_exact(scratch.len()) {
        let results = scratch.chunks_exact_mut(size).zip(block.chunks_exact(size));
        results.take(task.positions.len()).for_each(|(result, block)| join(s, result, block));
    }
    write(s, task, inputs, scratch);
}

/// The queries of the tile that begins at the i-th, and its width.
#[inline(always)]
fn tile_shape<S: Simd>(task: &Task, first: usize) -> (usize, usize) {
    let here = (task.positions.len() - first).min(tile_queries::<S>());
    (here, here.next_power_of_two())
}

/// Copies the queries tile by tile, side by side.
#[inline(always)]
fn pack_queries<S: Simd>(task: &Task, inputs: &Inputs, queries: &mut [f32]) {
    let dim = inputs.spec.head_dim;
    for first in (0..task.positions.len()).step_by(tile_queries::<S>()) {
        let (here, width) = tile_shape::<S>(task, first);
        let tile = &mut queries[first * dim..][..width * dim];
        tile.fill(0.0);
        for i in 0..here {
            let query = &inputs.q[task.at(inputs.spec, first + i)..][..dim];
            tile.chunks_exact_mut(width).zip(query).for_each(|(place, value)| place[i] = *value);
        }
    }
}

#[inline(always)]
fn tile_at<'a, S: Simd>(task: &'a Task, spec: &PagedSpec, first: usize, queries: &'a [f32]) -> Tile<'a> {
    let (here, width) = tile_shape::<S>(task, first);
    Tile { positions: &task.positions[first..][..here], queries: &queries[first * spec.head_dim..][..width * spec.head_dim], width }
}

/// Whether any query of a tile sees any key of a block.
#[inline(always)]
fn sees(tile: &Tile, spec: &PagedSpec, block: usize) -> bool {
    block * BLOCK < tile.end() && tile.first_key(spec) < (block + 1) * BLOCK
}

#[inline(always)]
fn keys_of<'a>(task: &Task, inputs: &Inputs<'a>, tile: &Tile, block: usize) -> Keys<'a> {
    let first = block * BLOCK;
    let pages = &inputs.spec.tables[task.sequence][first / PAGE..tile.end().min(first + BLOCK).div_ceil(PAGE)];
    let skipped = tile.first_key(inputs.spec).saturating_sub(first) / PAGE;
    Keys { k_pages: inputs.k_pages, v_pages: inputs.v_pages, kv_head: task.kv_head, first, pages, skipped }
}

/// Divides by the sums and writes the rows out.
#[inline(always)]
fn write<S: Simd>(s: S, task: &Task, inputs: &Inputs, results: &mut [f32]) {
    let dim = inputs.spec.head_dim;
    for (i, result) in results.chunks_exact_mut(result_len(dim)).take(task.positions.len()).enumerate() {
        let sums = Sums::of(result);
        // SAFETY: the lengths of q and out were checked for every row and head, and no other task has this row with this head.
        let out = unsafe { std::slice::from_raw_parts_mut(inputs.out.ptr().add(task.at(inputs.spec, i)), dim) };
        let total = s.splat(*sums.total);
        for (out, values) in out.chunks_mut(S::LANES).zip(sums.values.chunks(S::LANES)) {
            s.store_some(s.div(s.load(values), total), out);
        }
    }
}
