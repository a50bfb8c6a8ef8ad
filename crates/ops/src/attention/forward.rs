//! The forward pass of one head of one sequence: query tiles walk the blocks of keys with a running maximum and sum.

use super::head::{Head, KEY_BLOCK, Left, Right, by_row, by_row_len, key_panels, product, right_len};
use crate::dropout::keep_factors;
use crate::matmul::{Kernels, Shared, panel_count, with_scratch};
use crate::simd::{dispatch_bf16, math};

/// What the pass reads and writes; the shapes are those of [`super::attention`].
pub(super) struct Tensors<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: Shared,
    pub lse: Shared,
}

/// Fills this head's part of `out` and of `lse`.
pub(super) fn run(head: &Head, tensors: &Tensors) {
    // The kernel is called with its scratch, not from within a closure in it: a closure would not have its features.
    with_scratch(scratch_len(head), |scratch| fill(head, tensors, scratch));
}

dispatch_bf16! { fn scratch_len(head: &Head) -> usize = scratch_len_with; }
dispatch_bf16! { fn fill(head: &Head, tensors: &Tensors, scratch: &mut [f32]) = fill_with; }

/// A tile of queries while it walks along the keys.
struct Walk<'a> {
    /// The queries as a left side.
    queries: Left,
    /// Scores, then probabilities: `[MR, KEY_BLOCK]`.
    scores: &'a mut [f32],
    /// The probabilities as pairs of bf16, `[MR, KEY_BLOCK / 2]`; empty in f32.
    rounded: &'a mut [f32],
    /// Sums of probabilities times values: `[MR, padded]`.
    sums: &'a mut [f32],
    /// The running maximum of each row.
    max: [f32; MAX_ROWS],
    /// The running sum of each row, relative to the maximum.
    sum: [f32; MAX_ROWS],
}

/// At least MR of every instruction set.
const MAX_ROWS: usize = 16;

#[inline(always)]
fn scratch_len_with<S: Kernels>(_: S, head: &Head) -> usize {
    let (dim, precision) = (head.spec.head_dim, head.spec.precision);
    let sides = right_len::<S>(head.len, dim, precision) + right_len::<S>(dim, head.len, precision) + head.left_len::<S>(S::MR);
    sides + by_row_len(S::MR, precision) + S::MR * (KEY_BLOCK + head.padded::<S>())
}

#[inline(always)]
fn fill_with<S: Kernels>(s: S, head: &Head, t: &Tensors, scratch: &mut [f32]) {
    let (dim, precision) = (head.spec.head_dim, head.spec.precision);
    let (keys, rest) = scratch.split_at_mut(right_len::<S>(head.len, dim, precision));
    let (values, rest) = rest.split_at_mut(right_len::<S>(dim, head.len, precision));
    let (left, rest) = rest.split_at_mut(head.left_len::<S>(S::MR));
    let (rounded, rest) = rest.split_at_mut(by_row_len(S::MR, precision));
    let (scores, sums) = rest.split_at_mut(S::MR * KEY_BLOCK);
    let keys = head.pack_kv_across::<S>(t.k, keys);
    let values = head.pack_kv_along::<S>(t.v, values);
    let queries = Left { ptr: left.as_ptr(), row: 0, step: 0 };
    let mut walk = Walk { queries, scores, rounded, sums, max: [0.0; MAX_ROWS], sum: [0.0; MAX_ROWS] };
    for first in (0..head.len).step_by(S::MR) {
        let rows = (head.len - first).min(S::MR);
        walk.queries = head.left(s, t.q, first, rows, left);
        walk.max = [f32::NEG_INFINITY; MAX_ROWS];
        walk.sum = [0.0; MAX_ROWS];
        walk.sums.fill(0.0);
        let seen = if head.spec.causal { first + rows } else { head.len };
        // Blocks that lie too far back for all of them are left out.
        let lowest = head.spec.window.map_or(0, |w| (first + 1).saturating_sub(w));
        for block in (lowest / KEY_BLOCK * KEY_BLOCK..seen).step_by(KEY_BLOCK) {
            add_block(s, head, &keys, &values, &mut walk, first, rows, block);
        }
        finish(s, head, t, &walk, first, rows);
    }
}

/// Takes the keys and values of one block into the tile's sums.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn add_block<S: Kernels>(s: S, head: &Head, keys: &Right, values: &Right, walk: &mut Walk, first: usize, rows: usize, block: usize) {
    let (dim, padded) = (head.spec.head_dim, head.padded::<S>());
    let here = head.visible(first + rows - 1, block);
    let panels = key_panels::<S>(block + here, block);
    // SAFETY: the queries are `rows` rows of `dim` inputs; a row of scores has room for all panels of a block.
    unsafe { product(s, walk.queries, rows, *keys, panels, 0..dim, walk.scores.as_mut_ptr(), KEY_BLOCK, head.spec.scale, false) };
    for r in 0..rows {
        let scores = &mut walk.scores[r * KEY_BLOCK..][..here.next_multiple_of(S::LANES)];
        let visible = s.isplat(head.visible(first + r, block) as u32);
        let hidden = s.isplat(head.hidden(first + r, block) as u32);
        let mut highest = s.splat(walk.max[r]);
        for (i, part) in scores.chunks_exact_mut(S::LANES).enumerate() {
            let index = s.iadd(s.iota(), s.isplat((i * S::LANES) as u32));
            let mut score = s.load(part);
            if let Some(cap) = head.spec.softcap {
                score = s.mul(s.splat(cap), math::tanh(s, s.div(score, s.splat(cap))));
            }
            let score = s.select_below(index, visible, score, s.splat(f32::NEG_INFINITY));
            let score = s.select_below(index, hidden, s.splat(f32::NEG_INFINITY), score);
            highest = s.max(highest, score);
            s.store(score, part);
        }
        // A block without visible keys leaves everything as it was; −∞ − (−∞) must not arise.
        let max = s.largest(highest);
        if max == f32::NEG_INFINITY {
            scores.fill(0.0);
            continue;
        }
        let (centre, mut total) = (s.splat(max), s.splat(0.0));
        let mask = head.mask(first + r);
        for (i, part) in scores.chunks_exact_mut(S::LANES).enumerate() {
            let p = math::exp(s, s.sub(s.load(part), centre));
            total = s.add(total, p);
            let p = match mask {
                Some((bits, threshold, factor)) => s.mul(p, keep_factors(s, bits, (block + i * S::LANES) as u32, threshold, factor)),
                None => p,
            };
            s.store(p, part);
        }
        let shrink = math::exp(s, s.sub(s.splat(walk.max[r]), centre));
        for part in walk.sums[r * padded..][..padded].chunks_exact_mut(S::LANES) {
            s.store(s.mul(s.load(part), shrink), part);
        }
        walk.sum[r] = walk.sum[r] * s.largest(shrink) + s.sum(total);
        walk.max[r] = max;
    }
    let left = by_row(s, head.spec.precision, walk.scores, rows, here, walk.rounded);
    let panels = 0..panel_count(dim, S::LANES);
    // SAFETY: `rows` rows hold `here` probabilities each, and zeros up to the end of a vector; a row of sums has room for all panels of the
    // values.
    unsafe { product(s, left, rows, *values, panels, block..block + here, walk.sums.as_mut_ptr(), padded, 1.0, true) };
}

/// Divides by the sum and writes the rows out.
#[inline(always)]
fn finish<S: Kernels>(s: S, head: &Head, t: &Tensors, walk: &Walk, first: usize, rows: usize) {
    let (dim, padded) = (head.spec.head_dim, head.padded::<S>());
    let tokens = head.spec.tokens();
    for r in 0..rows {
        let i = first + r;
        // SAFETY: no other task has this head of this token; both indices are within the checked lengths.
        let out = unsafe {
            *t.lse.ptr().add(head.head * tokens + head.start + i) = walk.max[r] + walk.sum[r].ln();
            std::slice::from_raw_parts_mut(t.out.ptr().add(head.at(i)), dim)
        };
        let total = s.splat(walk.sum[r]);
        for (out, sums) in out.chunks_mut(S::LANES).zip(walk.sums[r * padded..].chunks_exact(S::LANES)) {
            s.store_some(s.div(s.load(sums), total), out);
        }
    }
}
