//! One head of one sequence: where its rows are, how they are packed, and small products of packed blocks.
//!
//! Forward and backward passes share this. All scratch has rows of whole vectors, so products here never store partially.

use super::AttentionSpec;
use crate::dropout::RowBits;
use crate::matmul::{
    FULL, Finish, Kernels, PAIRS, PANEL_VECTORS, Precision, Source, Start, Tile, pack_panel, packed_len, panel, panel_count, round_row,
    tile,
};
use crate::simd::Simd;
use std::ops::Range;

/// Keys per step of the online softmax: a border of the sequence, the same for every row and every batch.
pub(super) const KEY_BLOCK: usize = 128;

/// One head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub spec: &'a AttentionSpec<'a>,
    pub head: usize,
    /// The sequence's first token.
    pub start: usize,
    /// Its tokens.
    pub len: usize,
}

/// The left side of a product: step i of row r, an input or in bf16 a pair of inputs, is at `ptr + r · row + i · step`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub ptr: *const f32,
    pub row: usize,
    pub step: usize,
}

/// A packed right side of `n` columns and `k` inputs.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub data: &'a [f32],
    pub n: usize,
    pub k: usize,
    pub precision: Precision,
}

/// How many elements a right side takes.
pub(super) fn right_len<S: Kernels>(n: usize, k: usize, precision: Precision) -> usize {
    packed_len(n, precision.steps(k), S::LANES)
}

/// Words of a row of `k` inputs that was rounded to pairs of bf16: whole vectors.
fn rounded_len<S: Simd>(k: usize) -> usize {
    k.div_ceil(2 * S::LANES) * S::LANES
}

impl Head<'_> {
    /// Elements from one token to the next.
    pub fn width(&self) -> usize {
        self.spec.heads * self.spec.head_dim
    }

    /// Columns of a head in scratch: whole vectors.
    pub fn padded<S: Kernels>(&self) -> usize {
        self.spec.head_dim.next_multiple_of(S::LANES * PANEL_VECTORS)
    }

    /// Where this head's part of the sequence's i-th token begins.
    pub fn at(&self, i: usize) -> usize {
        (self.start + i) * self.width() + self.head * self.spec.head_dim
    }

    /// Query heads that share a key head.
    pub fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    /// The same for keys and values: where this head's part of the sequence's i-th token begins.
    pub fn kv_at(&self, i: usize) -> usize {
        ((self.start + i) * self.spec.kv_heads + self.head / self.group()) * self.spec.head_dim
    }

    /// Packs keys or values as a right side whose columns are tokens and whose inputs are the head's dimensions.
    pub fn pack_kv_across<'b, S: Kernels>(&self, x: &[f32], out: &'b mut [f32]) -> Right<'b> {
        let stride = self.spec.kv_heads * self.spec.head_dim;
        self.pack::<S>(&x[self.kv_at(0)..], stride, self.len, self.spec.head_dim, true, out)
    }

    /// Packs keys or values as a right side whose columns are the head's dimensions and whose inputs are tokens.
    pub fn pack_kv_along<'b, S: Kernels>(&self, x: &[f32], out: &'b mut [f32]) -> Right<'b> {
        let stride = self.spec.kv_heads * self.spec.head_dim;
        self.pack::<S>(&x[self.kv_at(0)..], stride, self.spec.head_dim, self.len, false, out)
    }

    /// Packs rows of queries as a right side whose columns are the head's dimensions and whose inputs are tokens.
    pub fn pack_along<'b, S: Kernels>(&self, x: &[f32], out: &'b mut [f32]) -> Right<'b> {
        self.pack::<S>(&x[self.at(0)..], self.width(), self.spec.head_dim, self.len, false, out)
    }

    fn pack<'b, S: Kernels>(&self, x: &[f32], stride: usize, n: usize, k: usize, across: bool, out: &'b mut [f32]) -> Right<'b> {
        let precision = self.spec.precision;
        // Rows of the sequence, from this head's first element to the last token's last.
        let x = &x[..(self.len - 1) * stride + self.spec.head_dim];
        for index in 0..panel_count(n, S::LANES) {
            let p = panel(index, n, precision.steps(k), S::LANES);
            let from = if across { p.first * stride } else { p.first };
            let source = Source { data: &x[from..], stride, across };
            pack_panel(source, p.cols, k, p.vectors * S::LANES, precision, &mut out[p.offset..]);
        }
        Right { data: out, n, k, precision }
    }

    /// Words that [`Self::left`] needs for `rows` rows.
    pub fn left_len<S: Simd>(&self, rows: usize) -> usize {
        match self.spec.precision {
            Precision::F32 => 0,
            Precision::Bf16 => rows * rounded_len::<S>(self.spec.head_dim),
        }
    }

    /// `rows` rows of queries from the i-th on as a left side whose inputs are the head's dimensions: where they lie, or rounded to bf16
    /// in `out`, which it must not outlive.
    #[inline(always)]
    pub fn left<S: Simd>(&self, s: S, x: &[f32], i: usize, rows: usize, out: &mut [f32]) -> Left {
        let dim = self.spec.head_dim;
        if self.spec.precision == Precision::F32 {
            return Left { ptr: x[self.at(i)..].as_ptr(), row: self.width(), step: 1 };
        }
        let row = rounded_len::<S>(dim);
        for (r, out) in out.chunks_exact_mut(row).take(rows).enumerate() {
            round_row(s, &x[self.at(i + r)..][..dim], out);
        }
        Left { ptr: out.as_ptr(), row, step: 1 }
    }

    /// How many keys of a block that begins at key `first` the i-th query sees.
    pub fn visible(&self, i: usize, first: usize) -> usize {
        let end = if self.spec.causal { i + 1 } else { self.len };
        end.saturating_sub(first).min(KEY_BLOCK)
    }

    /// How many keys of a block that begins at key `first` lie too far back for the i-th query.
    pub fn hidden(&self, i: usize, first: usize) -> usize {
        let lowest = self.spec.window.map_or(0, |w| (i + 1).saturating_sub(w));
        lowest.saturating_sub(first).min(KEY_BLOCK)
    }

    /// The dropout mask's row for the i-th query, with the threshold and the factor of what is kept.
    pub fn mask(&self, i: usize) -> Option<(RowBits, u32, f32)> {
        let dropout = self.spec.dropout.as_ref().filter(|d| d.key.p > 0.0)?;
        let bits = dropout.key.row(dropout.row_ids[self.start + i], self.head as u32);
        Some((bits, dropout.key.threshold(), dropout.key.keep_scale()))
    }
}

/// Words of `rows` rows of a block of keys once [`by_row`] has rounded them.
pub(super) fn by_row_len(rows: usize, precision: Precision) -> usize {
    if precision == Precision::Bf16 { rows * KEY_BLOCK / 2 } else { 0 }
}

/// `rows` rows of a block of keys as a left side whose inputs are its first `here` keys: where they lie, or rounded to bf16 in `rounded`,
/// which it must not outlive. A row holds zeros behind them up to the end of a vector.
#[inline(always)]
pub(super) fn by_row<S: Simd>(s: S, precision: Precision, block: &[f32], rows: usize, here: usize, rounded: &mut [f32]) -> Left {
    if precision == Precision::F32 {
        return Left { ptr: block.as_ptr(), row: KEY_BLOCK, step: 1 };
    }
    for (row, rounded) in block.chunks_exact(KEY_BLOCK).zip(rounded.chunks_exact_mut(KEY_BLOCK / 2)).take(rows) {
        round_row(s, &row[..here.next_multiple_of(S::LANES)], rounded);
    }
    Left { ptr: rounded.as_ptr(), row: KEY_BLOCK / 2, step: 1 }
}

/// `c = scale · left · right[panels] (+ c)` over the inputs in `range` of the right side; the left side begins at the first of them. In
/// bf16 a range begins at a pair, and what it shares its last pair with must be 0 on the left.
///
/// # Safety
/// `left` must be readable for `rows` rows and the steps of the range; c, with `c_row` elements per row, writable for `rows` rows of all
/// vectors of the panels, whose padding is stored too.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product<S: Kernels>(
    s: S,
    left: Left,
    rows: usize,
    right: Right,
    panels: Range<usize>,
    range: Range<usize>,
    c: *mut f32,
    c_row: usize,
    scale: f32,
    accumulate: bool,
) {
    let first = panels.start;
    let (start, steps) = match right.precision {
        Precision::F32 => (range.start, range.len()),
        Precision::Bf16 => (range.start / 2, range.len().div_ceil(2)),
    };
    for index in panels {
        let p = panel(index, right.n, right.precision.steps(right.k), S::LANES);
        let width = p.vectors * S::LANES;
        let from = right.data[p.offset + start * width..][..steps * width].as_ptr();
        for row in (0..rows).step_by(S::MR) {
            let job = Tile {
                k: steps,
                a: left.ptr.wrapping_add(row * left.row),
                a_row: left.row,
                a_step: left.step,
                b: from,
                b_step: width,
                c: c.wrapping_add(row * c_row + (index - first) * S::LANES * PANEL_VECTORS),
                c_row,
                cols: width,
                start: Start::Zero,
                finish: Finish::Store { scale, bias: std::ptr::null(), accumulate },
            };
            let rows = (rows - row).min(S::MR);
            // SAFETY: the right side's slice was just checked; left and c are the caller's promise.
            unsafe {
                match right.precision {
                    Precision::F32 => tile::<S, FULL>(s, rows, p.vectors, &job),
                    Precision::Bf16 => tile::<S, PAIRS>(s, rows, p.vectors, &job),
                }
            }
        }
    }
}

/// The panels of a right side that hold the keys of the block that begins at `first`.
pub(super) fn key_panels<S: Kernels>(len: usize, first: usize) -> Range<usize> {
    let width = S::LANES * PANEL_VECTORS;
    first / width..len.min(first + KEY_BLOCK).div_ceil(width)
}
