//! Attention out of a cache of pages, for serving: new rows are written into their sequences' pages and attend to all of them.
//!
//! The rule: a row's bits depend on its query and on the keys and values before it, and on nothing else: not on how many rows are
//! computed beside it, nor on which pages they lie in. So keys are walked in blocks at fixed borders, every sum runs over the
//! head's dimensions or over the keys in order, and a row never adds what it does not see.

use crate::matmul::{Shared, with_scratch};
use crate::simd::{Simd, dispatch, math};
use rayon::prelude::*;

/// Keys in a page.
pub const PAGE: usize = 16;

/// Keys per step of the online softmax.
const BLOCK: usize = 128;
/// Pages per step.
const BLOCK_PAGES: usize = BLOCK / PAGE;
/// Queries that share what is loaded of a page.
const TILE: usize = 8;
/// Multiply-adds that are worth a task of their own.
const TASK: usize = 1 << 17;

/// Where the rows of a pass belong.
#[derive(Debug, Clone, Copy)]
pub struct PagedSpec<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// How many tokens back a row sees, itself included.
    pub window: Option<usize>,
    /// Scores become `cap·tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Where each sequence's rows begin in the pass, and the end of the last: `[sequences + 1]`.
    pub cu_rows: &'a [u32],
    /// Position of each sequence's first row, `[sequences]`.
    pub starts: &'a [u32],
    /// Each sequence's pages in order, `[sequences]`.
    pub tables: &'a [&'a [u32]],
}

impl PagedSpec<'_> {
    fn sequences(&self) -> usize {
        self.starts.len()
    }

    fn rows(&self) -> usize {
        self.cu_rows.last().map_or(0, |r| *r as usize)
    }

    /// Elements of one page of one kind.
    fn page_elements(&self) -> usize {
        self.kv_heads * self.head_dim * PAGE
    }

    /// Checks everything that indices are made of: nothing below reads or writes beyond it.
    fn check(&self, what: &str, k_pages: usize, v_pages: usize) {
        assert!(self.kv_heads > 0 && self.head_dim > 0 && self.heads.is_multiple_of(self.kv_heads) && self.heads > 0, "{what}: heads");
        assert_eq!(self.cu_rows.len(), self.sequences() + 1, "{what}: cu_rows");
        assert_eq!(self.tables.len(), self.sequences(), "{what}: tables");
        assert!(self.cu_rows[0] == 0 && self.cu_rows.windows(2).all(|w| w[0] <= w[1]), "{what}: cu_rows must begin with 0 and not fall");
        assert!(self.window != Some(0), "{what}: a window of 0 sees nothing");
        assert_eq!(k_pages, v_pages, "{what}: as many pages of keys as of values");
        let pages = k_pages / self.page_elements();
        for s in 0..self.sequences() {
            let end = self.starts[s] as usize + (self.cu_rows[s + 1] - self.cu_rows[s]) as usize;
            assert!(
                end <= self.tables[s].len() * PAGE,
                "{what}: sequence {s} has {end} tokens, but pages for {}",
                self.tables[s].len() * PAGE
            );
            if let Some(page) = self.tables[s].iter().find(|p| **p as usize >= pages) {
                panic!("{what}: page {page} is beyond the {pages} pages");
            }
        }
    }
}

/// Stores the rows' keys and values at their positions. k and v `[rows, kv_heads · head_dim]`; k_pages
/// `[pages, kv_heads, head_dim, PAGE]`, v_pages `[pages, kv_heads, PAGE, head_dim]`.
pub fn write_pages(k: &[f32], v: &[f32], spec: &PagedSpec, k_pages: &mut [f32], v_pages: &mut [f32]) {
    spec.check("write_pages", k_pages.len(), v_pages.len());
    let (dim, width) = (spec.head_dim, spec.kv_heads * spec.head_dim);
    assert!(k.len() == spec.rows() * width && v.len() == k.len(), "write_pages: k or v");
    for s in 0..spec.sequences() {
        for (i, row) in (spec.cu_rows[s] as usize..spec.cu_rows[s + 1] as usize).enumerate() {
            let position = spec.starts[s] as usize + i;
            let page = spec.tables[s][position / PAGE] as usize * spec.page_elements();
            let slot = position % PAGE;
            for head in 0..spec.kv_heads {
                let from = row * width + head * dim;
                let to = page + head * dim * PAGE;
                for (d, value) in k[from..from + dim].iter().enumerate() {
                    k_pages[to + d * PAGE + slot] = *value;
                }
                v_pages[to + slot * dim..][..dim].copy_from_slice(&v[from..from + dim]);
            }
        }
    }
}

/// `out = softmax(scale · q · kᵀ) · v` of each row over the keys at and before its position. q and out `[rows, heads · head_dim]`; the
/// pages as in [`write_pages`]. What lies in a page beyond its sequence's last token does not matter.
pub fn paged_attention(q: &[f32], k_pages: &[f32], v_pages: &[f32], spec: &PagedSpec, out: &mut [f32]) {
    spec.check("paged_attention", k_pages.len(), v_pages.len());
    let width = spec.heads * spec.head_dim;
    assert!(q.len() == spec.rows() * width && out.len() == q.len(), "paged_attention: q or out");
    let group = spec.heads / spec.kv_heads;
    let mut tasks = Vec::new();
    for s in 0..spec.sequences() {
        let (first, end) = (spec.cu_rows[s] as usize, spec.cu_rows[s + 1] as usize);
        let seen = spec.starts[s] as usize + (end - first);
        let work = (group * seen * spec.head_dim).max(1);
        let rows = (TASK / work).max(TILE / group.min(TILE)).max(1);
        for kv_head in 0..spec.kv_heads {
            for from in (first..end).step_by(rows) {
                tasks.push(Task { sequence: s, kv_head, rows: from..end.min(from + rows) });
            }
        }
    }
    let out = Shared::new(out);
    let scratch = TILE * (BLOCK + spec.head_dim.next_multiple_of(PAGE)) + 2 * PAGE;
    let run = |task: &Task| with_scratch(scratch, |scratch| attend(task, q, k_pages, v_pages, spec, out, scratch));
    if tasks.len() == 1 { tasks.iter().for_each(run) } else { tasks.par_iter().for_each(run) }
}

/// Rows of one sequence with the query heads of one key and value head.
struct Task {
    sequence: usize,
    kv_head: usize,
    rows: std::ops::Range<usize>,
}

dispatch! {
    fn attend(task: &Task, q: &[f32], k_pages: &[f32], v_pages: &[f32], spec: &PagedSpec, out: Shared, scratch: &mut [f32]) = attend_with;
}

/// Queries that walk along the keys together.
struct Tile<'a> {
    /// Where each query begins in q and in out.
    at: [usize; TILE],
    /// Its position.
    position: [usize; TILE],
    max: [f32; TILE],
    sum: [f32; TILE],
    /// Scores, then probabilities: `[TILE, BLOCK]`.
    scores: &'a mut [f32],
    /// Sums of probabilities times values: `[TILE, padded]`.
    sums: &'a mut [f32],
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn attend_with<S: Simd>(
    s: S,
    task: &Task,
    q: &[f32],
    k_pages: &[f32],
    v_pages: &[f32],
    spec: &PagedSpec,
    out: Shared,
    scratch: &mut [f32],
) {
    let group = spec.heads / spec.kv_heads;
    let (dim, width) = (spec.head_dim, spec.heads * spec.head_dim);
    let padded = dim.next_multiple_of(PAGE);
    let (scores, sums) = scratch.split_at_mut(TILE * BLOCK);
    let mut tile =
        Tile { at: [0; TILE], position: [0; TILE], max: [0.0; TILE], sum: [0.0; TILE], scores, sums: &mut sums[..TILE * padded] };
    let start = spec.starts[task.sequence] as usize;
    let first_row = spec.cu_rows[task.sequence] as usize;
    let pairs = task.rows.len() * group;
    for from in (0..pairs).step_by(TILE) {
        let n = TILE.min(pairs - from);
        for i in 0..n {
            let (row, head) = (task.rows.start + (from + i) / group, task.kv_head * group + (from + i) % group);
            tile.at[i] = row * width + head * dim;
            tile.position[i] = start + row - first_row;
        }
        tile.max = [f32::NEG_INFINITY; TILE];
        tile.sum = [0.0; TILE];
        tile.sums.fill(0.0);
        // Rows of a task are in order, so the first sees the first key and the last sees the last.
        let lowest = spec.window.map_or(0, |w| (tile.position[0] + 1).saturating_sub(w));
        let end = tile.position[n - 1] + 1;
        for block in (lowest / BLOCK * BLOCK..end).step_by(BLOCK) {
            let table = spec.tables[task.sequence];
            let pages = &table[block / PAGE..end.min(block + BLOCK).div_ceil(PAGE)];
            match n {
                TILE => block_of::<S, TILE>(s, &mut tile, n, q, k_pages, v_pages, spec, task.kv_head, block, pages),
                1 => block_of::<S, 1>(s, &mut tile, n, q, k_pages, v_pages, spec, task.kv_head, block, pages),
                2..=4 => block_of::<S, 4>(s, &mut tile, n, q, k_pages, v_pages, spec, task.kv_head, block, pages),
                _ => block_of::<S, TILE>(s, &mut tile, n, q, k_pages, v_pages, spec, task.kv_head, block, pages),
            }
        }
        for i in 0..n {
            // SAFETY: `check` and the lengths of q and out hold for every row and head, and no other task has these.
            let out = unsafe { std::slice::from_raw_parts_mut(out.ptr().add(tile.at[i]), dim) };
            let total = s.splat(tile.sum[i]);
            for (out, sums) in out.chunks_mut(S::LANES).zip(tile.sums[i * padded..].chunks(S::LANES)) {
                s.store_some(s.div(s.load(sums), total), out);
            }
        }
    }
}

/// Takes the keys and values of one block into the sums of `n` queries; `N` is at least n, and the queries beyond n repeat the last.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn block_of<S: Simd, const N: usize>(
    s: S,
    tile: &mut Tile,
    n: usize,
    q: &[f32],
    k_pages: &[f32],
    v_pages: &[f32],
    spec: &PagedSpec,
    kv_head: usize,
    block: usize,
    pages: &[u32],
) {
    let dim = spec.head_dim;
    let padded = dim.next_multiple_of(PAGE);
    let within = |page: u32| page as usize * spec.page_elements() + kv_head * dim * PAGE;
    let queries: [&[f32]; N] = std::array::from_fn(|i| &q[tile.at[i.min(n - 1)]..][..dim]);
    for (p, page) in pages.iter().enumerate() {
        let keys = &k_pages[within(*page)..][..dim * PAGE];
        for v in (0..PAGE).step_by(S::LANES) {
            let mut acc = [s.splat(0.0); N];
            for (d, keys) in keys.chunks_exact(PAGE).enumerate() {
                let keys = s.load(&keys[v..]);
                for (acc, query) in acc.iter_mut().zip(&queries) {
                    *acc = s.fma(s.splat(query[d]), keys, *acc);
                }
            }
            for (i, acc) in acc.iter().enumerate().take(n) {
                s.store(s.mul(*acc, s.splat(spec.scale)), &mut tile.scores[i * BLOCK + p * PAGE + v..]);
            }
        }
    }
    let mut visible = [0usize; TILE];
    for (i, visible) in visible.iter_mut().enumerate().take(n) {
        *visible = probabilities(s, tile, i, spec, block, padded);
    }
    // Keys that all of them see together; the few that only later rows see follow one by one.
    let together = visible[..n].iter().copied().min().unwrap_or(0);
    for at in (0..dim).step_by(S::LANES) {
        let columns = S::LANES.min(dim - at);
        let mut acc: [S::F; N] = std::array::from_fn(|i| s.load(&tile.sums[i.min(n - 1) * padded + at..]));
        for key in 0..together {
            let values = s.load_some(&v_pages[within(pages[key / PAGE]) + key % PAGE * dim + at..][..columns]);
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = s.fma(s.splat(tile.scores[i.min(n - 1) * BLOCK + key]), values, *acc);
            }
        }
        for i in 0..n {
            let mut acc = acc[i];
            for key in together..visible[i] {
                let values = s.load_some(&v_pages[within(pages[key / PAGE]) + key % PAGE * dim + at..][..columns]);
                acc = s.fma(s.splat(tile.scores[i * BLOCK + key]), values, acc);
            }
            s.store(acc, &mut tile.sums[i * padded + at..]);
        }
    }
}

/// Turns the scores of query i in this block into probabilities relative to its running maximum, and answers how many keys of the
/// block it sees.
#[inline(always)]
fn probabilities<S: Simd>(s: S, tile: &mut Tile, i: usize, spec: &PagedSpec, block: usize, padded: usize) -> usize {
    let position = tile.position[i];
    let visible = (position + 1).saturating_sub(block).min(BLOCK);
    let hidden = spec.window.map_or(0, |w| (position + 1).saturating_sub(w)).saturating_sub(block);
    if visible == 0 || hidden >= visible {
        return 0;
    }
    let scores = &mut tile.scores[i * BLOCK..][..visible.next_multiple_of(S::LANES)];
    let (last, first) = (s.isplat(visible as u32), s.isplat(hidden as u32));
    let mut highest = s.splat(tile.max[i]);
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
    let max = s.largest(highest);
    let (centre, mut total) = (s.splat(max), s.splat(0.0));
    for part in scores.chunks_exact_mut(S::LANES) {
        let p = math::exp(s, s.sub(s.load(part), centre));
        total = s.add(total, p);
        s.store(p, part);
    }
    let shrink = math::exp(s, s.sub(s.splat(tile.max[i]), centre));
    for part in tile.sums[i * padded..][..padded].chunks_exact_mut(S::LANES) {
        s.store(s.mul(s.load(part), shrink), part);
    }
    tile.sum[i] = tile.sum[i] * s.largest(shrink) + s.sum(total);
    tile.max[i] = max;
    visible
}

const _: () = assert!(BLOCK_PAGES * PAGE == BLOCK);
