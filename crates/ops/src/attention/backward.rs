//! The backward pass of one head of one sequence: probabilities are recomputed block by block from the kept denominators.
//!
//! With P the probabilities, M the dropout factors and D the rows' dout · out:
//! dv = (P∘M)ᵀ · dout, dS = P ∘ (M∘(dout · vᵀ) − D) · scale, dq = dS · k, dk = dSᵀ · q.

use super::head::{Head, KEY_BLOCK, Left, Right, by_row, by_row_len, key_panels, product, right_len};
use crate::dropout::keep_factors;
use crate::matmul::{Kernels, Precision, Shared, panel_count, with_scratch};
use crate::simd::{Simd, dispatch_bf16, math};

/// What the pass reads and writes; the shapes are those of [`super::attention_backward`].
pub(super) struct Tensors<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub dout: &'a [f32],
    pub dq: Shared,
    pub dk: Shared,
    pub dv: Shared,
}

/// Fills this head's part of dq, dk and dv.
pub(super) fn run(head: &Head, tensors: &Tensors) {
    // The kernel is called with its scratch, not from within a closure in it: a closure would not have its features.
    with_scratch(scratch_len(head), |scratch| fill(head, tensors, scratch));
}

dispatch_bf16! { fn scratch_len(head: &Head) -> usize = scratch_len_with; }
dispatch_bf16! { fn fill(head: &Head, tensors: &Tensors, scratch: &mut [f32]) = fill_with; }

/// The sequence as the five products read it.
struct Sides<'a> {
    /// Rows of a query head, from its first token on.
    queries: Left,
    gradients: Left,
    /// Columns are keys: k, v.
    keys: Right<'a>,
    values: Right<'a>,
    /// Columns are dimensions: k, q, dout.
    k: Right<'a>,
    q: Right<'a>,
    dout: Right<'a>,
}

/// A block of queries and keys.
struct Block<'a> {
    /// P∘M, `[queries, KEY_BLOCK]`; once rounded, a row holds pairs of two queries.
    kept: &'a mut [f32],
    /// dS, as `kept`.
    slopes: &'a mut [f32],
    /// dS with pairs of two keys, `[queries, KEY_BLOCK / 2]`; empty in f32.
    rounded: &'a mut [f32],
}

/// Queries per block: whole tiles, about 64, and an even number.
fn query_block<S: Kernels>() -> usize {
    S::MR * (64 / S::MR)
}

#[inline(always)]
fn scratch_len_with<S: Kernels>(_: S, head: &Head) -> usize {
    let (dim, len, precision) = (head.spec.head_dim, head.len, head.spec.precision);
    let sides = 2 * right_len::<S>(len, dim, precision) + 3 * right_len::<S>(dim, len, precision) + 2 * head.left_len::<S>(len);
    sides + 2 * query_block::<S>() * KEY_BLOCK + by_row_len(query_block::<S>(), precision) + 3 * len * head.padded::<S>() + len
}

/// Cuts the first `n` elements off.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (part, left) = std::mem::take(rest).split_at_mut(n);
    *rest = left;
    part
}

#[inline(always)]
fn fill_with<S: Kernels>(s: S, head: &Head, t: &Tensors, mut scratch: &mut [f32]) {
    let (dim, padded, len, precision) = (head.spec.head_dim, head.padded::<S>(), head.len, head.spec.precision);
    let (across, along, left) = (right_len::<S>(len, dim, precision), right_len::<S>(dim, len, precision), head.left_len::<S>(len));
    let (block, gradient) = (query_block::<S>() * KEY_BLOCK, len * padded);
    let rest = &mut scratch;
    let keys = head.pack_kv_across::<S>(t.k, take(rest, across));
    let values = head.pack_kv_across::<S>(t.v, take(rest, across));
    let k = head.pack_kv_along::<S>(t.k, take(rest, along));
    let (q, dout) = (take(rest, along), take(rest, along));
    let (queries, gradients) = (take(rest, left), take(rest, left));
    let block =
        &mut Block { kept: take(rest, block), slopes: take(rest, block), rounded: take(rest, by_row_len(query_block::<S>(), precision)) };
    let (dq, dk, dv) = (take(rest, gradient), take(rest, gradient), take(rest, gradient));
    let delta = take(rest, len);
    dk.fill(0.0);
    dv.fill(0.0);
    for member in 0..head.group() {
        let head = &Head { head: head.head + member, ..*head };
        let (queries, gradients) = (head.left(s, t.q, 0, len, queries), head.left(s, t.dout, 0, len, gradients));
        let (q, dout) = (head.pack_along::<S>(t.q, q), head.pack_along::<S>(t.dout, dout));
        let sides = Sides { queries, gradients, keys, values, k, q, dout };
        for (i, delta) in delta.iter_mut().enumerate() {
            *delta = dot(s, &t.dout[head.at(i)..][..dim], &t.out[head.at(i)..][..dim]);
        }
        dq.fill(0.0);
        fill_head(s, head, t, &sides, delta, block, dq, dk, dv);
        write_out(dq, t.dq, padded, dim, |i| head.at(i));
    }
    write_out(dk, t.dk, padded, dim, |i| head.kv_at(i));
    write_out(dv, t.dv, padded, dim, |i| head.kv_at(i));
}

/// Copies rows of sums to where each begins.
fn write_out(sums: &[f32], to: Shared, padded: usize, dim: usize, at: impl Fn(usize) -> usize) {
    for (i, sums) in sums.chunks_exact(padded).enumerate() {
        // SAFETY: no other task has this head of this token; the index is within the checked lengths.
        let out = unsafe { std::slice::from_raw_parts_mut(to.ptr().add(at(i)), dim) };
        out.copy_from_slice(&sums[..dim]);
    }
}

/// Adds one query head's part to the gradients.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn fill_head<S: Kernels>(
    s: S,
    head: &Head,
    t: &Tensors,
    sides: &Sides,
    delta: &[f32],
    block: &mut Block,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (dim, padded, len) = (head.spec.head_dim, head.padded::<S>(), head.len);
    let panels = 0..panel_count(dim, S::LANES);
    for keys in (0..len).step_by(KEY_BLOCK) {
        for queries in (0..len).step_by(query_block::<S>()) {
            let rows = (len - queries).min(query_block::<S>());
            let here = head.visible(queries + rows - 1, keys);
            if here <= head.hidden(queries, keys) {
                continue;
            }
            fill_block(s, head, t, sides, delta, block, queries, rows, keys, here);
            let slopes_by_query = by_row(s, head.spec.precision, block.slopes, rows, here, block.rounded);
            if head.spec.precision == Precision::Bf16 {
                pair_rows(s, block.slopes, rows, here.next_multiple_of(S::LANES));
                pair_rows(s, block.kept, rows, here.next_multiple_of(S::LANES));
            }
            let slopes_by_key = Left { ptr: block.slopes.as_ptr(), row: 1, step: KEY_BLOCK };
            let kept_by_key = Left { ptr: block.kept.as_ptr(), row: 1, step: KEY_BLOCK };
            let (seen, asked) = (keys..keys + here, queries..queries + rows);
            let (dq, dk, dv) = (&mut dq[queries * padded..], &mut dk[keys * padded..], &mut dv[keys * padded..]);
            // SAFETY: the blocks have `rows` rows, or steps of two rows each, of which the first `here` elements were just filled, and zeros up
            // to the end of a vector; dq has `rows` and dk and dv have `here` rows of `padded` elements left, and padded has room for all
            // panels of a head.
            unsafe {
                product(s, slopes_by_query, rows, sides.k, panels.clone(), seen, dq.as_mut_ptr(), padded, 1.0, true);
                product(s, slopes_by_key, here, sides.q, panels.clone(), asked.clone(), dk.as_mut_ptr(), padded, 1.0, true);
                product(s, kept_by_key, here, sides.dout, panels.clone(), asked, dv.as_mut_ptr(), padded, 1.0, true);
            }
        }
    }
}

/// Rounds the first `rows` rows to bf16 in their place: row i becomes the pairs of rows 2i and 2i + 1, of which the last may be missing.
#[inline(always)]
fn pair_rows<S: Simd>(s: S, block: &mut [f32], rows: usize, cols: usize) {
    for pair in 0..rows.div_ceil(2) {
        for column in (0..cols).step_by(S::LANES) {
            let low = s.load(&block[2 * pair * KEY_BLOCK + column..]);
            let high = if 2 * pair + 1 < rows { s.load(&block[(2 * pair + 1) * KEY_BLOCK + column..]) } else { s.splat(0.0) };
            s.store(s.float(s.bf16_pairs(low, high)), &mut block[pair * KEY_BLOCK + column..]);
        }
    }
}

/// Fills a block of P∘M and of dS: `rows` queries from `queries`, `here` keys from `keys`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn fill_block<S: Kernels>(
    s: S,
    head: &Head,
    t: &Tensors,
    sides: &Sides,
    delta: &[f32],
    block: &mut Block,
    queries: usize,
    rows: usize,
    keys: usize,
    here: usize,
) {
    let dim = head.spec.head_dim;
    let panels = key_panels::<S>(keys + here, keys);
    let from = |left: Left| Left { ptr: left.ptr.wrapping_add(queries * left.row), ..left };
    let (q, dout, kept, slopes) = (from(sides.queries), from(sides.gradients), block.kept.as_mut_ptr(), block.slopes.as_mut_ptr());
    // SAFETY: q and dout have `rows` rows of `dim` inputs from here; a row of a block has room for all panels.
    unsafe {
        product(s, q, rows, sides.keys, panels.clone(), 0..dim, kept, KEY_BLOCK, head.spec.scale, false);
        product(s, dout, rows, sides.values, panels, 0..dim, slopes, KEY_BLOCK, 1.0, false);
    }
    let tokens = head.spec.tokens();
    let (scale, whole) = (s.splat(head.spec.scale), here.next_multiple_of(S::LANES));
    for r in 0..rows {
        let i = queries + r;
        let visible = s.isplat(head.visible(i, keys) as u32);
        let hidden = s.isplat(head.hidden(i, keys) as u32);
        let lse = s.splat(t.lse[head.head * tokens + head.start + i]);
        let delta = s.splat(delta[i]);
        let mask = head.mask(i);
        let kept = block.kept[r * KEY_BLOCK..][..whole].chunks_exact_mut(S::LANES);
        let slopes = block.slopes[r * KEY_BLOCK..][..whole].chunks_exact_mut(S::LANES);
        for (c, (kept, slopes)) in kept.zip(slopes).enumerate() {
            let index = s.iadd(s.iota(), s.isplat((c * S::LANES) as u32));
            let (mut score, mut bend) = (s.load(kept), s.splat(1.0));
            if let Some(cap) = head.spec.softcap {
                let t = math::tanh(s, s.div(score, s.splat(cap)));
                score = s.mul(s.splat(cap), t);
                bend = s.sub(bend, s.mul(t, t));
            }
            let p = math::exp(s, s.sub(score, lse));
            let p = s.select_below(index, visible, p, s.splat(0.0));
            let p = s.select_below(index, hidden, s.splat(0.0), p);
            let (mut pm, mut slope) = (p, s.load(slopes));
            if let Some((bits, threshold, factor)) = mask {
                let keep = keep_factors(s, bits, (keys + c * S::LANES) as u32, threshold, factor);
                pm = s.mul(p, keep);
                slope = s.mul(slope, keep);
            }
            let mut slope = s.mul(s.mul(p, s.sub(slope, delta)), scale);
            if head.spec.softcap.is_some() {
                slope = s.mul(slope, bend);
            }
            s.store(pm, kept);
            s.store(s.select_below(index, visible, slope, s.splat(0.0)), slopes);
        }
    }
}

/// Σ a·b.
#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.chunks(S::LANES).zip(b.chunks(S::LANES)) {
        sum = s.fma(s.load_some(a), s.load_some(b), sum);
    }
    s.sum(sum)
}
