//! One head of one sequence: where its rows are, how they are packed, and small products of packed blocks.
//!
//! Forward and backward passes share this. All scratch has rows of whole vectors, so products here never store partially.

use super::AttentionSpec;
use crate::dropout::RowBits;
use crate::matmul::{
    FULL, Finish, Kernels, PANEL_VECTORS, Precision, Source, Start, Tile, pack_panel, packed_len, panel, panel_count, tile,
};
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

/// The left side of a product: element (row r, step i) is at `ptr + r · row + i · step`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub ptr: *const f32,
    pub row: usize,
    pub step: usize,
}

/// A packed right side of `n` columns and `steps` steps.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub data: &'a [f32],
    pub n: usize,
    pub steps: usize,
}

/// How many elements a right side takes.
pub(super) fn right_len<S: Kernels>(n: usize, steps: usize) -> usize {
    packed_len(n, steps, S::LANES)
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

    /// Packs keys or values as a right side whose columns are tokens and whose steps are the head's dimensions.
    pub fn pack_kv_across<'b, S: Kernels>(&self, x: &[f32], out: &'b mut [f32]) -> Right<'b> {
        let stride = self.spec.kv_heads * self.spec.head_dim;
        self.pack::<S>(&x[self.kv_at(0)..], stride, self.len, self.spec.head_dim, true, out)
    }

    /// Packs keys or values as a right side whose columns are the head's dimensions and whose steps are tokens.
    pub fn pack_kv_along<'b, S: Kernels>(&self, x: &[f32], out: &'b mut [f32]) -> Right<'b> {
        let stride = self.spec.kv_heads * self.spec.head_dim;
        self.pack::<S>(&x[self.kv_at(0)..], stride, self.spec.head_dim, self.len, false, out)
    }

    /// Packs rows of queries as a right side whose columns are the head's dimensions and whose steps are tokens.
    pub fn pack_along<'b, S: Kernels>(&self, x: &[f32], out: &'b mut [f32]) -> Right<'b> {
        self.pack::<S>(&x[self.at(0)..], self.width(), self.spec.head_dim, self.len, false, out)
    }

    fn pack<'b, S: Kernels>(&self, x: &[f32], stride: usize, n: usize, steps: usize, across: bool, out: &'b mut [f32]) -> Right<'b> {
        // Rows of the sequence, from this head's first element to the last token's last.
        let x = &x[..(self.len - 1) * stride + self.spec.head_dim];
        for index in 0..panel_count(n, S::LANES) {
            let p = panel(index, n, steps, S::LANES);
            let from = if across { p.first * stride } else { p.first };
            let source = Source { data: &x[from..], stride, across };
            pack_panel(source, p.cols, steps, p.vectors * S::LANES, Precision::F32, &mut out[p.offset..]);
        }
        Right { data: out, n, steps }
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

/// `c = scale · left · right[panels] (+ c)` over the steps in `steps` of the right side; the left side begins at step 0.
///
/// # Safety
/// `left` must be readable for `rows` rows and the number of steps; c, with `c_row` elements per row, writable for `rows` rows of all
/// vectors of the panels, whose padding is stored too.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product<S: Kernels>(
    s: S,
    left: Left,
    rows: usize,
    right: Right,
    panels: Range<usize>,
    steps: Range<usize>,
    c: *mut f32,
    c_row: usize,
    scale: f32,
    accumulate: bool,
) {
    let first = panels.start;
    for index in panels {
        let p = panel(index, right.n, right.steps, S::LANES);
        let width = p.vectors * S::LANES;
        let from = right.data[p.offset + steps.start * width..][..steps.len() * width].as_ptr();
        for row in (0..rows).step_by(S::MR) {
            let job = Tile {
                k: steps.len(),
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
            // SAFETY: the right side's slice was just checked; left and c are the caller's promise.
            unsafe { tile::<S, FULL>(s, (rows - row).min(S::MR), p.vectors, &job) };
        }
    }
}

/// The panels of a right side that hold the keys of the block that begins at `first`.
pub(super) fn key_panels<S: Kernels>(len: usize, first: usize) -> Range<usize> {
    let width = S::LANES * PANEL_VECTORS;
    first / width..len.min(first + KEY_BLOCK).div_ceil(width)
}
