//! A few queries against one block of keys and values: scores, probabilities, and the sum of the values that they weigh.
//!
//! A task calls it for every block of a sequence and joins what it leaves. Sums of any number of queries run in one order.

// Queries and vectors are counted, since they index several arrays and pointers at once and every loop must unroll.
#![allow(clippy::needless_range_loop)]

use super::{PAGE, PagedSpec};
use crate::simd::{Simd, math};
use std::ops::Range;

/// Keys in a block: a border of the sequence, the same for every row and every batch.
pub(super) const BLOCK: usize = 128;
/// Most queries of a tile.
pub(super) const TILE: usize = 8;

/// Queries that share what is loaded of a page.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Their positions, in rising order, at most [`TILE`].
    pub positions: &'a [usize],
    /// The queries side by side, `[head_dim, width]`; those beyond `positions` are zero.
    pub queries: &'a [f32],
    /// 1, 2, 4 or 8.
    pub width: usize,
}

impl Tile<'_> {
    /// The first key that any of them sees.
    pub fn first_key(&self, spec: &PagedSpec) -> usize {
        spec.window.map_or(0, |w| (self.positions[0] + 1).saturating_sub(w))
    }

    /// The end of the keys that any of them sees.
    pub fn end(&self) -> usize {
        self.positions[self.positions.len() - 1] + 1
    }
}

/// A block of keys and values of one head.
pub(super) struct Keys<'a> {
    pub k_pages: &'a [f32],
    pub v_pages: &'a [f32],
    pub kv_head: usize,
    /// Its first key.
    pub first: usize,
    /// Its pages, as far as any query of the tile sees.
    pub pages: &'a [u32],
    /// How many of them lie too far back for every query.
    pub skipped: usize,
}

impl Keys<'_> {
    /// The head's part of the i-th page, among keys or among values.
    #[inline(always)]
    fn page<'a>(&self, all: &'a [f32], spec: &PagedSpec, i: usize) -> &'a [f32] {
        let size = spec.head_dim * PAGE;
        &all[(self.pages[i] as usize * spec.kv_heads + self.kv_head) * size..][..size]
    }
}

/// Elements of a query's result: the sum of values in whole vectors, then its maximum, then its sum of probabilities.
pub(super) fn result_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(PAGE) + PAGE
}

/// A query's result.
pub(super) struct Sums<'a> {
    /// Values times probabilities, in whole vectors.
    pub values: &'a mut [f32],
    /// What the probabilities are relative to: the largest score.
    pub max: &'a mut f32,
    /// Sum of the probabilities; 0 where no key is seen.
    pub total: &'a mut f32,
}

impl<'a> Sums<'a> {
    /// A result of [`result_len`] elements taken apart.
    #[inline(always)]
    pub fn of(result: &'a mut [f32]) -> Sums<'a> {
        let (values, rest) = result.split_at_mut(result.len() - PAGE);
        let (max, rest) = rest.split_at_mut(1);
        Sums { values, max: &mut max[0], total: &mut rest[0] }
    }

    /// Nothing seen yet.
    #[inline(always)]
    pub fn clear(self) {
        self.values.fill(0.0);
        (*self.max, *self.total) = (f32::NEG_INFINITY, 0.0);
    }
}

/// Adds the result of a later block.
#[inline(always)]
pub(super) fn join<S: Simd>(s: S, so_far: &mut [f32], block: &[f32]) {
    let (values, rest) = block.split_at(block.len() - PAGE);
    let (max, total) = (rest[0], rest[1]);
    if total == 0.0 {
        return;
    }
    let sums = Sums::of(so_far);
    let highest = sums.max.max(max);
    let before = math::exp(s, s.splat(*sums.max - highest));
    let here = math::exp(s, s.splat(max - highest));
    for (sum, value) in sums.values.chunks_exact_mut(S::LANES).zip(values.chunks_exact(S::LANES)) {
        s.store(s.fma(s.load(value), here, s.mul(s.load(sum), before)), sum);
    }
    *sums.total = *sums.total * s.largest(before) + total * s.largest(here);
    *sums.max = highest;
}

/// Writes the results of a tile's queries in one block. scores: [`TILE`] · [`BLOCK`]; results: `width` times [`result_len`].
#[inline(always)]
pub(super) fn block_of<S: Simd>(s: S, tile: &Tile, keys: &Keys, spec: &PagedSpec, scores: &mut [f32], results: &mut [f32]) {
    // Sums held in registers: 16 of 32 vectors, or 8 of 16.
    if S::LANES == 16 {
        match tile.width {
            1 => run::<S, 1, 8, 4>(s, tile, keys, spec, scores, results),
            2 => run::<S, 2, 8, 4>(s, tile, keys, spec, scores, results),
            4 => run::<S, 4, 4, 4>(s, tile, keys, spec, scores, results),
            _ => run::<S, 8, 2, 2>(s, tile, keys, spec, scores, results),
        }
    } else {
        match tile.width {
            1 => run::<S, 1, 8, 4>(s, tile, keys, spec, scores, results),
            2 => run::<S, 2, 4, 4>(s, tile, keys, spec, scores, results),
            _ => run::<S, 4, 2, 2>(s, tile, keys, spec, scores, results),
        }
    }
}

/// `N` queries, scores of `P` vectors of keys at a time, values in `C` vectors at a time.
#[inline(always)]
fn run<S: Simd, const N: usize, const P: usize, const C: usize>(
    s: S,
    tile: &Tile,
    keys: &Keys,
    spec: &PagedSpec,
    scores: &mut [f32],
    results: &mut [f32],
) {
    let n = tile.positions.len();
    let size = result_len(spec.head_dim);
    assert!(n <= N && tile.queries.len() == spec.head_dim * N && scores.len() >= N * BLOCK && results.len() >= N * size);
    let per_page = PAGE / S::LANES;
    let (mut at, end) = (keys.skipped * per_page, keys.pages.len() * per_page);
    while at + P <= end {
        score::<S, N, P>(s, tile, keys, spec, at, scores);
        at += P;
    }
    while at < end {
        score::<S, N, 1>(s, tile, keys, spec, at, scores);
        at += 1;
    }
    let mut seen: [Range<usize>; N] = std::array::from_fn(|_| 0..0);
    for i in 0..n {
        let sums = Sums::of(&mut results[i * size..][..size]);
        seen[i] = probabilities(s, tile.positions[i], spec, keys.first, &mut scores[i * BLOCK..][..BLOCK], sums);
    }
    // Keys that all queries see are walked together; the few before and after that only some see, query by query.
    let first = seen[..n].iter().map(|r| r.start).max().unwrap_or(0);
    let end = seen[..n].iter().map(|r| r.end).min().unwrap_or(0).max(first);
    let sums = |results: &mut [f32]| results.as_mut_ptr();
    for i in 0..n {
        let (row, result) = (&scores[i * BLOCK..][..BLOCK], &mut results[i * size..][..size]);
        weigh::<S, 1, 4>(s, keys, spec, seen[i].start..seen[i].end.min(first), row, sums(result), size);
    }
    weigh::<S, N, C>(s, keys, spec, first..end, scores, sums(results), size);
    for i in 0..n {
        let (row, result) = (&scores[i * BLOCK..][..BLOCK], &mut results[i * size..][..size]);
        weigh::<S, 1, 4>(s, keys, spec, seen[i].start.max(end)..seen[i].end, row, sums(result), size);
    }
}

/// Scores of `P` vectors of keys, of which the first is the block's `at`-th.
#[inline(always)]
fn score<S: Simd, const N: usize, const P: usize>(s: S, tile: &Tile, keys: &Keys, spec: &PagedSpec, at: usize, scores: &mut [f32]) {
    let mut from = [std::ptr::null(); P];
    for p in 0..P {
        let key = (at + p) * S::LANES;
        from[p] = keys.page(keys.k_pages, spec, key / PAGE)[key % PAGE..].as_ptr();
    }
    let mut acc = [[s.splat(0.0); N]; P];
    for (d, queries) in tile.queries.as_chunks::<N>().0.iter().enumerate() {
        for p in 0..P {
            // SAFETY: the page's slice has PAGE keys for each of the head_dim dimensions, and a vector begins at a multiple of LANES, which
            // divides PAGE.
            let keys = unsafe { s.load_ptr(from[p].add(d * PAGE)) };
            for i in 0..N {
                acc[p][i] = s.fma(s.splat(queries[i]), keys, acc[p][i]);
            }
        }
    }
    let scale = s.splat(spec.scale);
    for p in 0..P {
        for i in 0..N {
            s.store(s.mul(acc[p][i], scale), &mut scores[i * BLOCK + (at + p) * S::LANES..]);
        }
    }
}

/// Turns a query's scores into probabilities relative to the largest of the block, clears its values, and answers which keys it sees.
#[inline(always)]
fn probabilities<S: Simd>(s: S, position: usize, spec: &PagedSpec, block: usize, scores: &mut [f32], sums: Sums) -> Range<usize> {
    let visible = (position + 1).saturating_sub(block).min(BLOCK);
    let hidden = spec.window.map_or(0, |w| (position + 1).saturating_sub(w)).saturating_sub(block);
    let Sums { values, max, total } = sums;
    values.fill(0.0);
    if hidden >= visible {
        (*max, *total) = (f32::NEG_INFINITY, 0.0);
        return 0..0;
    }
    let scores = &mut scores[..visible.next_multiple_of(S::LANES)];
    let (last, first) = (s.isplat(visible as u32), s.isplat(hidden as u32));
    let mut highest = s.splat(f32::NEG_INFINITY);
    for (c, part) in scores.chunks_exact_mut(S::LANES).enumerate() {
        let index = s.iadd(s.iota(), s.isplat((c * S::LANES) as u32));
        let mut score = s.load(part);
        if let Some(cap) = spec.softcap {
            score = s.mul(s.splat(cap), math::tanh(s, s.div(score, s.splat(cap))));
        }
        let score = s.select_below(index, last, score, s.splat(f32::NEG_INFINITY));
        let score = s.select_below(index, first, s.splat(f32::NEG_INFINITY), score);
        highest = s.max(highest, score);
        s.store(score, part);
    }
    *max = s.largest(highest);
    let (centre, mut sum) = (s.splat(*max), s.splat(0.0));
    for part in scores.chunks_exact_mut(S::LANES) {
        let p = math::exp(s, s.sub(s.load(part), centre));
        sum = s.add(sum, p);
        s.store(p, part);
    }
    *total = s.sum(sum);
    hidden..visible
}

/// Adds the values of some keys, times their probabilities, to the results of `N` queries: `C` vectors of the head at a time.
#[inline(always)]
fn weigh<S: Simd, const N: usize, const C: usize>(
    s: S,
    keys: &Keys,
    spec: &PagedSpec,
    range: Range<usize>,
    scores: &[f32],
    results: *mut f32,
    size: usize,
) {
    if range.is_empty() {
        return;
    }
    assert!(scores.len() >= N * BLOCK && range.end <= BLOCK);
    let (dim, wide) = (spec.head_dim, C * S::LANES);
    let whole = dim - dim % wide;
    for at in (0..whole).step_by(wide) {
        // SAFETY: the caller's results are N rows of `size`, at least `dim` long, and these columns end at or before dim.
        unsafe { columns::<S, N, C>(s, keys, spec, range.clone(), scores, results.add(at), size, at) };
    }
    let vectors = dim - dim % S::LANES;
    for at in (whole..vectors).step_by(S::LANES) {
        // SAFETY: as above.
        unsafe { columns::<S, N, 1>(s, keys, spec, range.clone(), scores, results.add(at), size, at) };
    }
    if vectors < dim {
        for i in 0..N {
            // SAFETY: a row of results has room for whole vectors.
            let result = unsafe { std::slice::from_raw_parts_mut(results.add(i * size + vectors), S::LANES) };
            let mut acc = s.load(result);
            for key in range.clone() {
                let values = &keys.page(keys.v_pages, spec, key / PAGE)[key % PAGE * dim..][vectors..dim];
                acc = s.fma(s.splat(scores[i * BLOCK + key]), s.load_some(values), acc);
            }
            s.store(acc, result);
        }
    }
}

/// `C` vectors of the head from column `at` on.
///
/// # Safety
/// `results` must be valid for `C` vectors in each of `N` rows of `size` elements, `C` vectors from `at` on must end within the head, and
/// scores must have `N` rows of [`BLOCK`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn columns<S: Simd, const N: usize, const C: usize>(
    s: S,
    keys: &Keys,
    spec: &PagedSpec,
    range: Range<usize>,
    scores: &[f32],
    results: *mut f32,
    size: usize,
    at: usize,
) {
    let mut acc = [[s.splat(0.0); N]; C];
    for c in 0..C {
        for i in 0..N {
            // SAFETY: the caller's promise.
            acc[c][i] = unsafe { s.load_ptr(results.add(i * size + c * S::LANES)) };
        }
    }
    for page in range.start / PAGE..range.end.div_ceil(PAGE) {
        let values = keys.page(keys.v_pages, spec, page).as_ptr();
        for key in range.start.max(page * PAGE)..range.end.min((page + 1) * PAGE) {
            let values = values.wrapping_add(key % PAGE * spec.head_dim + at);
            for c in 0..C {
                // SAFETY: the page holds head_dim values of each of its keys; these columns end within them.
                let values = unsafe { s.load_ptr(values.add(c * S::LANES)) };
                for i in 0..N {
                    // SAFETY: key is below BLOCK, as the caller checked.
                    let p = unsafe { *scores.as_ptr().add(i * BLOCK + key) };
                    acc[c][i] = s.fma(s.splat(p), values, acc[c][i]);
                }
            }
        }
    }
    for c in 0..C {
        for i in 0..N {
            // SAFETY: the caller's promise.
            unsafe { s.store_ptr(acc[c][i], results.add(i * size + c * S::LANES)) };
        }
    }
}
