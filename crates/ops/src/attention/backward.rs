//! The backward pass of one head of one sequence: probabilities are recomputed block by block from the kept denominators.
//!
//! With P the probabilities, M the dropout factors and D the rows' dout · out:
//! dv = (P∘M)ᵀ · dout, dS = P ∘ (M∘(dout · vᵀ) − D) · scale, dq = dS · k, dk = dSᵀ · q.

use super::head::{Head, KEY_BLOCK, Left, Right, key_panels, product, right_len};
use crate::dropout::keep_factors;
use crate::matmul::{Kernels, Shared, panel_count, with_scratch};
use crate::simd::{Simd, dispatch, math};

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

dispatch! { fn scratch_len(head: &Head) -> usize = scratch_len_with; }
dispatch! { fn fill(head: &Head, tensors: &Tensors, scratch: &mut [f32]) = fill_with; }

/// Both sides of the sequence, packed for the five products.
struct Sides<'a> {
    /// Columns are keys: k, v.
    keys: Right<'a>,
    values: Right<'a>,
    /// Columns are dimensions: k, q, dout.
    k: Right<'a>,
    q: Right<'a>,
    dout: Right<'a>,
}

/// Queries per block: whole tiles, about 64.
fn query_block<S: Kernels>() -> usize {
    S::MR * (64 / S::MR)
}

#[inline(always)]
fn scratch_len_with<S: Kernels>(_: S, head: &Head) -> usize {
    let (dim, len) = (head.spec.head_dim, head.len);
    let sides = 2 * right_len::<S>(len, dim) + 3 * right_len::<S>(dim, len);
    sides + 2 * query_block::<S>() * KEY_BLOCK + 3 * len * head.padded::<S>() + len
}

/// Cuts the first `n` elements off.
fn take<'a>(rest: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (part, left) = std::mem::take(rest).split_at_mut(n);
    *rest = left;
    part
}

#[inline(always)]
fn fill_with<S: Kernels>(s: S, head: &Head, t: &Tensors, mut scratch: &mut [f32]) {
    let (dim, padded, len) = (head.spec.head_dim, head.padded::<S>(), head.len);
    let (across, along) = (right_len::<S>(len, dim), right_len::<S>(dim, len));
    let (block, gradient) = (query_block::<S>() * KEY_BLOCK, len * padded);
    let rest = &mut scratch;
    let keys = head.pack_kv_across::<S>(t.k, take(rest, across));
    let values = head.pack_kv_across::<S>(t.v, take(rest, across));
    let k = head.pack_kv_along::<S>(t.k, take(rest, along));
    let (q, dout) = (take(rest, along), take(rest, along));
    let (kept, slopes) = (take(rest, block), take(rest, block));
    let (dq, dk, dv) = (take(rest, gradient), take(rest, gradient), take(rest, gradient));
    let delta = take(rest, len);
    dk.fill(0.0);
    dv.fill(0.0);
    for member in 0..head.group() {
        let head = &Head { head: head.head + member, ..*head };
        let sides = Sides { keys, values, k, q: head.pack_along::<S>(t.q, q), dout: head.pack_along::<S>(t.dout, dout) };
        for (i, delta) in delta.iter_mut().enumerate() {
            *delta = dot(s, &t.dout[head.at(i)..][..dim], &t.out[head.at(i)..][..dim]);
        }
        dq.fill(0.0);
        fill_head(s, head, t, &sides, delta, kept, slopes, dq, dk, dv);
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
    kept: &mut [f32],
    slopes: &mut [f32],
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
            fill_block(s, head, t, sides, delta, kept, slopes, queries, rows, keys, here);
            let by_query = Left { ptr: slopes.as_ptr(), row: KEY_BLOCK, step: 1 };
            let slopes_by_key = Left { ptr: slopes.as_ptr(), row: 1, step: KEY_BLOCK };
            let kept_by_key = Left { ptr: kept.as_ptr(), row: 1, step: KEY_BLOCK };
            let (seen, asked) = (keys..keys + here, queries..queries + rows);
            let (dq, dk, dv) = (&mut dq[queries * padded..], &mut dk[keys * padded..], &mut dv[keys * padded..]);
            // SAFETY: both blocks have `rows` rows of KEY_BLOCK elements, of which the first `here` were just filled; dq has `rows` and
            // dk and dv have `here` rows of `padded` elements left, and padded has room for all panels of a head.
            unsafe {
                product(s, by_query, rows, sides.k, panels.clone(), seen, dq.as_mut_ptr(), padded, 1.0, true);
                product(s, slopes_by_key, here, sides.q, panels.clone(), asked.clone(), dk.as_mut_ptr(), padded, 1.0, true);
                product(s, kept_by_key, here, sides.dout, panels.clone(), asked, dv.as_mut_ptr(), padded, 1.0, true);
            }
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
    kept: &mut [f32],
    slopes: &mut [f32],
    queries: usize,
    rows: usize,
    keys: usize,
    here: usize,
) {
    let (dim, width) = (head.spec.head_dim, head.width());
    let panels = key_panels::<S>(keys + here, keys);
    let left = |x: &[f32]| Left { ptr: x[head.at(queries)..].as_ptr(), row: width, step: 1 };
    // SAFETY: q and dout have `rows` rows of `dim` elements from here at stride width; a row of a block has room for all panels.
    unsafe {
        product(s, left(t.q), rows, sides.keys, panels.clone(), 0..dim, kept.as_mut_ptr(), KEY_BLOCK, head.spec.scale, false);
        product(s, left(t.dout), rows, sides.values, panels, 0..dim, slopes.as_mut_ptr(), KEY_BLOCK, 1.0, false);
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
        let kept = kept[r * KEY_BLOCK..][..whole].chunks_exact_mut(S::LANES);
        let slopes = slopes[r * KEY_BLOCK..][..whole].chunks_exact_mut(S::LANES);
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
