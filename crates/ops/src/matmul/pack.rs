//! Weights in the layout that the micro-kernels read: panels of two vectors of outputs, each laid out step by step along K.
//!
//! Layers pack a weight once when they serve and after every update when they train. The last panel is one vector wide
//! where that suffices; its padding is zero. With bf16 a step is a pair of inputs, interleaved in 32 bits. Halves are bf16 in memory
//! and f32 in arithmetic: a step is one input there, and a word has it for a column of either vector.

use super::buffer::Buffer;
use super::{Layout, Precision};
use crate::simd::{Simd, dispatch, dispatch_bf16, prefetch};
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// A weight matrix ready for [`super::matmul`].
#[derive(Debug, Clone)]
pub struct Packed {
    data: Buffer,
    n: usize,
    k: usize,
    layout: Layout,
    precision: Precision,
    lanes: usize,
    halves: bool,
}

/// A panel of the packed matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel {
    /// Its first output.
    pub first: usize,
    /// Its outputs.
    pub cols: usize,
    /// Its width in vectors, 1 or 2.
    pub vectors: usize,
    /// Where its elements begin.
    pub offset: usize,
}

/// Vectors of a full panel.
pub(crate) const PANEL_VECTORS: usize = 2;

/// Elements below which packing is not worth a second thread.
const SMALL: usize = 1 << 14;

/// Lanes of a vector of the kernels in use.
pub(crate) fn lanes() -> usize {
    dispatch! { fn ask() -> usize = lanes_of; }
    #[inline(always)]
    fn lanes_of<S: Simd>(_: S) -> usize {
        S::LANES
    }
    ask()
}

/// Lanes of the panels of a packed f32 weight: half of a vector of AVX-512 where that holds all outputs, as those of an adapter's A.
/// An output's sum takes the same steps on either, so it has the same bits.
fn lanes_for(n: usize, precision: Precision) -> usize {
    match (precision, lanes()) {
        (Precision::F32, 16) if (1..=8).contains(&n) => 8,
        (_, lanes) => lanes,
    }
}

/// Number of panels of `n` outputs.
pub(crate) fn panel_count(n: usize, lanes: usize) -> usize {
    n.div_ceil(lanes * PANEL_VECTORS)
}

/// The panel with this index, for `n` outputs and `steps` steps along K.
pub(crate) fn panel(index: usize, n: usize, steps: usize, lanes: usize) -> Panel {
    let width = lanes * PANEL_VECTORS;
    let first = index * width;
    let cols = (n - first).min(width);
    // All panels before this one are full, so its offset is a product.
    Panel { first, cols, vectors: cols.div_ceil(lanes), offset: first * steps }
}

/// Elements of all panels together.
pub(crate) fn packed_len(n: usize, steps: usize, lanes: usize) -> usize {
    match panel_count(n, lanes) {
        0 => 0,
        count => {
            let last = panel(count - 1, n, steps, lanes);
            last.offset + last.vectors * lanes * steps
        }
    }
}

impl Precision {
    /// Steps along K: inputs, or pairs of inputs.
    pub(crate) fn steps(self, k: usize) -> usize {
        match self {
            Precision::F32 => k,
            Precision::Bf16 => k.div_ceil(2),
        }
    }
}

impl Packed {
    /// Packs `w`, which has `n · k` elements in the given layout.
    pub fn new(w: &[f32], n: usize, k: usize, layout: Layout, precision: Precision) -> Packed {
        let lanes = lanes_for(n, precision);
        // Packing writes whole vectors of the kernels in use.
        let room = self::lanes() - lanes;
        let data = Buffer::zeros(packed_len(n, precision.steps(k), lanes) + room);
        let mut packed = Packed { data, n, k, layout, precision, lanes, halves: false };
        packed.repack(w);
        packed
    }

    /// Packs `w`, whose `n · k` elements are bf16 numbers, in half the memory: products have the bits that f32 would give. An element
    /// that is no bf16 number is rounded to one.
    pub fn halves(w: &[f32], n: usize, k: usize, layout: Layout) -> Packed {
        assert_eq!(w.len(), n * k, "pack: w has {} elements, [{n}, {k}] needs {}", w.len(), n * k);
        let lanes = lanes();
        let words = lanes * k;
        let mut data = Buffer::zeros(panel_count(n, lanes) * words);
        let bits = |column: usize, input: usize| {
            let at = if layout == Layout::RowMajor { column * k + input } else { input * n + column };
            u32::from(bf16::from_f32(w[at]).to_bits())
        };
        if words > 0 {
            let panels = data.as_mut_slice()[..panel_count(n, lanes) * words].par_chunks_mut(words).enumerate();
            panels.for_each(|(index, out)| {
                let first = index * lanes * PANEL_VECTORS;
                for lane in 0..lanes.min(n - first) {
                    let other = Some(first + lanes + lane).filter(|column| *column < n);
                    for (input, word) in out.iter_mut().skip(lane).step_by(lanes).enumerate() {
                        let high = other.map_or(0, |column| bits(column, input));
                        *word = f32::from_bits(high << 16 | bits(first + lane, input));
                    }
                }
            });
        }
        Packed { data, n, k, layout, precision: Precision::F32, lanes, halves: true }
    }

    /// Whether it was packed by [`Packed::halves`].
    pub fn is_halves(&self) -> bool {
        self.halves
    }

    /// Writes the weights of output `n` to `row`, `[k]`. Only of halves, whose embedding tables are read this way.
    ///
    /// # Panics
    /// If there is no such output, `row` has another length, or the weight is not in halves.
    pub fn row(&self, n: usize, row: &mut [f32]) {
        assert!(self.halves && n < self.n && row.len() == self.k, "row {n} of [{}, {}] in halves", self.n, self.k);
        let lanes = lanes();
        let (panel, column) = (n / (lanes * PANEL_VECTORS), n % (lanes * PANEL_VECTORS));
        let words = self.data()[panel * lanes * self.k..].iter().skip(column % lanes).step_by(lanes);
        for (out, word) in row.iter_mut().zip(words) {
            let bits = word.to_bits();
            *out = f32::from_bits(if column < lanes { bits << 16 } else { bits & 0xffff_0000 });
        }
    }

    /// Packs new values of the same shape in place.
    pub fn repack(&mut self, w: &[f32]) {
        if self.halves {
            *self = Packed::halves(w, self.n, self.k, self.layout);
            return;
        }
        let plain = Plain::new(w, self.n, self.k, self.layout, self.precision);
        plain.pack(0..self.panels(), self.lanes, self.data.as_mut_slice());
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.data.as_slice().len() * 4
    }

    /// The arithmetic of products with this weight.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        panel_count(self.n, self.lanes)
    }

    /// Lanes of a panel's vectors.
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    /// All panels.
    pub(super) fn data(&self) -> &[f32] {
        self.data.as_slice()
    }
}

/// A weight matrix as it lies in memory, for products of many rows: training, where packing ahead would keep a second and a third copy.
#[derive(Debug, Clone, Copy)]
pub struct Plain<'a> {
    pub(super) w: &'a [f32],
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) layout: Layout,
    pub(super) precision: Precision,
}

impl<'a> Plain<'a> {
    /// `w` has `n · k` elements in the given layout.
    pub fn new(w: &'a [f32], n: usize, k: usize, layout: Layout, precision: Precision) -> Plain<'a> {
        assert_eq!(w.len(), n * k, "plain: w has {} elements, [{n}, {k}] needs {}", w.len(), n * k);
        Plain { w, n, k, layout, precision }
    }

    /// Packs these panels on all threads; `out` begins with the first of them.
    pub(super) fn pack(&self, panels: Range<usize>, lanes: usize, out: &mut [f32]) {
        let steps = self.precision.steps(self.k);
        if steps == 0 {
            return;
        }
        let pack = |(index, out): (usize, &mut [f32])| {
            let panel = panel(index, self.n, steps, lanes);
            let source = match self.layout {
                Layout::RowMajor => Source { data: &self.w[panel.first * self.k..], stride: self.k, across: true },
                Layout::Transposed => Source { data: &self.w[panel.first..], stride: self.n, across: false },
            };
            pack_panel(source, panel.cols, self.k, panel.vectors * lanes, self.precision, out);
        };
        let full = lanes * PANEL_VECTORS * steps;
        if panels.len() == 1 {
            pack((panels.start, out));
        } else if full * panels.len() < SMALL {
            panels.zip(out.chunks_mut(full)).for_each(pack);
        } else {
            panels.into_par_iter().zip(out.par_chunks_mut(full)).for_each(pack);
        }
    }
}

/// A matrix to pack: element (column c, step i) is `data[c · stride + i]` if `across`, else `data[i · stride + c]`.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub across: bool,
}

dispatch_bf16! {
    /// Packs `cols` columns of `k` inputs into steps of `width` columns; columns beyond `cols` become 0, or hold anything where `width`
    /// is not a multiple of the lanes. Whole vectors are written, so `out` must have room for one at the last step.
    pub(crate) fn pack_panel(source: Source<'_>, cols: usize, k: usize, width: usize, precision: Precision, out: &mut [f32]) = pack_panel_with;
}

#[inline(always)]
fn pack_panel_with<S: Simd>(s: S, source: Source<'_>, cols: usize, k: usize, width: usize, precision: Precision, out: &mut [f32]) {
    let steps = precision.steps(k);
    assert!(cols <= width && (steps == 0 || out.len() >= (steps - 1) * width + width.next_multiple_of(S::LANES)));
    match (precision, source.across) {
        (Precision::F32, true) => pack_across(s, source, cols, k, width, out),
        (Precision::F32, false) => pack_along(s, source, cols, k, width, out),
        (Precision::Bf16, true) => pack_pairs_across(s, source, cols, k, width, out),
        (Precision::Bf16, false) => pack_pairs_along(s, source, cols, k, width, out),
    }
}

/// Rows and words a row of a tile of a matrix unit.
pub(super) const UNIT: usize = 16;

dispatch_bf16! {
    /// Rounds rows of `k` elements to pairs of bf16 in the tiles of a matrix unit: for each 16 rows tile after tile along K, of 16 pairs
    /// of each row. Pairs beyond k are 0, rows beyond the last keep what was there. `row_len` is k in pairs, in whole tiles.
    pub(super) fn pack_rows(x: &[f32], k: usize, row_len: usize, out: &mut [f32]) = pack_rows_with;
}

#[inline(always)]
fn pack_rows_with<S: Simd>(s: S, x: &[f32], k: usize, row_len: usize, out: &mut [f32]) {
    assert_eq!(row_len, k.div_ceil(2 * UNIT) * UNIT);
    if k == 0 {
        return;
    }
    for (rows, out) in x.chunks(UNIT * k).zip(out.chunks_mut(UNIT * row_len)) {
        for (r, row) in rows.chunks_exact(k).enumerate() {
            let (whole, rest) = row.as_chunks::<{ 2 * UNIT }>();
            let mut tiles = out.chunks_exact_mut(UNIT * UNIT).map(|tile| &mut tile[r * UNIT..][..UNIT]);
            for (part, out) in whole.iter().zip(&mut tiles) {
                round_row(s, part, out);
            }
            if let Some(out) = tiles.next() {
                round_row(s, rest, out);
                out[rest.len().div_ceil(2 * S::LANES) * S::LANES..].fill(0.0);
            }
        }
    }
}

/// Rounds a row to pairs of bf16, in whole vectors, with zeros behind its last element.
#[inline(always)]
pub(crate) fn round_row<S: Simd>(s: S, row: &[f32], out: &mut [f32]) {
    let lanes = S::LANES;
    for (part, pairs) in row.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
        let low = s.load_some(&part[..part.len().min(lanes)]);
        let high = s.load_some(part.get(lanes..).unwrap_or_default());
        s.store(s.float(s.bf16_adjacent(low, high)), pairs);
    }
}

/// Rows between the one that is packed and the one that is fetched, where rows lie far apart: a row takes a few cycles, memory some hundred.
const AHEAD: usize = 32;
/// Most lanes of any instruction set; blocks of this size squared fit on the stack.
pub(super) const MAX_LANES: usize = 16;

/// Reads `LANES` columns by at most `LANES` inputs of a source that lies across, and leaves them step by step in `turned`.
#[inline(always)]
fn turn_block<S: Simd>(s: S, source: Source<'_>, column: usize, input: usize, inputs: usize, turned: &mut [f32; MAX_LANES * MAX_LANES]) {
    let lanes = S::LANES;
    let mut block = [0.0f32; MAX_LANES * MAX_LANES];
    for r in 0..lanes {
        let Some(row) = source.data.get((column + r) * source.stride + input..).filter(|row| row.len() >= inputs) else {
            break;
        };
        s.store(s.load_some(&row[..inputs]), &mut block[r * lanes..]);
    }
    // SAFETY: both blocks hold LANES rows of LANES elements, and LANES is at most MAX_LANES.
    unsafe { s.transpose(block.as_ptr(), lanes, turned.as_mut_ptr(), lanes) };
}

#[inline(always)]
fn pack_across<S: Simd>(s: S, source: Source<'_>, cols: usize, k: usize, width: usize, out: &mut [f32]) {
    let lanes = S::LANES;
    for column in (0..cols).step_by(lanes) {
        // Columns beyond `cols` that the source still has are read too: their lanes are never stored.
        let whole = source.data.len() >= (column + lanes - 1) * source.stride + k;
        for input in (0..k).step_by(lanes) {
            if whole && input + lanes <= k {
                // SAFETY: the source has `lanes` rows from `column` and, in the last of them, k inputs; the output has whole vectors
                // from each of the k steps on (checked by the caller), and a source never overlaps its output (`&` and `&mut`).
                unsafe {
                    let from = source.data.as_ptr().add(column * source.stride + input);
                    s.transpose(from, source.stride, out.as_mut_ptr().add(input * width + column), width);
                }
            } else {
                let inputs = (k - input).min(lanes);
                let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
                turn_block(s, source, column, input, inputs, &mut turned);
                for i in 0..inputs {
                    s.store(s.load(&turned[i * lanes..]), &mut out[(input + i) * width + column..]);
                }
            }
        }
    }
    clear_padding(cols.next_multiple_of(lanes), k, width, out);
}

#[inline(always)]
fn pack_along<S: Simd>(s: S, source: Source<'_>, cols: usize, k: usize, width: usize, out: &mut [f32]) {
    let lanes = S::LANES;
    for i in 0..k {
        let row = &source.data[i * source.stride..][..cols];
        for column in (0..cols).step_by(lanes) {
            prefetch(row.as_ptr().wrapping_add(AHEAD * source.stride + column));
            s.store(s.load_some(&row[column..]), &mut out[i * width + column..]);
        }
    }
    clear_padding(cols.next_multiple_of(lanes), k, width, out);
}

#[inline(always)]
fn pack_pairs_across<S: Simd>(s: S, source: Source<'_>, cols: usize, k: usize, width: usize, out: &mut [f32]) {
    let lanes = S::LANES;
    for column in (0..cols).step_by(lanes) {
        for input in (0..k).step_by(2 * lanes) {
            let inputs = (k - input).min(2 * lanes);
            let mut pairs = [0.0f32; MAX_LANES * MAX_LANES];
            for (r, pairs) in pairs.chunks_exact_mut(lanes).take(lanes).enumerate() {
                // Columns beyond `cols` that the source still has are read too: their lanes are padding.
                let Some(row) = source.data.get((column + r) * source.stride + input..).filter(|row| row.len() >= inputs) else {
                    break;
                };
                let low = s.load_some(&row[..inputs.min(lanes)]);
                let high = s.load_some(row[..inputs].get(lanes..).unwrap_or_default());
                s.store(s.float(s.bf16_adjacent(low, high)), pairs);
            }
            let steps = inputs.div_ceil(2);
            let out = &mut out[input / 2 * width + column..];
            if steps == lanes {
                assert!(out.len() >= (lanes - 1) * width + lanes);
                // SAFETY: the block holds LANES rows of LANES elements, and the output has a whole vector at each of as many steps.
                unsafe { s.transpose(pairs.as_ptr(), lanes, out.as_mut_ptr(), width) };
            } else {
                let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
                // SAFETY: both blocks hold LANES rows of LANES elements.
                unsafe { s.transpose(pairs.as_ptr(), lanes, turned.as_mut_ptr(), lanes) };
                for (i, turned) in turned.chunks_exact(lanes).take(steps).enumerate() {
                    s.store(s.load(turned), &mut out[i * width..]);
                }
            }
        }
    }
    clear_padding(cols.next_multiple_of(lanes), k.div_ceil(2), width, out);
}

#[inline(always)]
fn pack_pairs_along<S: Simd>(s: S, source: Source<'_>, cols: usize, k: usize, width: usize, out: &mut [f32]) {
    let lanes = S::LANES;
    for (pair, out) in (0..k).step_by(2).zip(out.chunks_mut(width)) {
        let low = &source.data[pair * source.stride..][..cols];
        let high = if pair + 1 < k { &source.data[(pair + 1) * source.stride..][..cols] } else { &[] };
        for (i, out) in (0..cols).step_by(lanes).zip(out.chunks_mut(lanes)) {
            prefetch(low.as_ptr().wrapping_add(AHEAD * source.stride + i));
            prefetch(low.as_ptr().wrapping_add((AHEAD + 1) * source.stride + i));
            let both = s.bf16_pairs(s.load_some(&low[i..]), s.load_some(high.get(i..).unwrap_or_default()));
            s.store_some(s.float(both), out);
        }
    }
    clear_padding(cols.next_multiple_of(lanes), k.div_ceil(2), width, out);
}

#[inline(always)]
fn clear_padding(from: usize, steps: usize, width: usize, out: &mut [f32]) {
    if from < width {
        for step in out.chunks_exact_mut(width).take(steps) {
            step[from..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pairs_are_rounded_to_nearest_even_in_both_layouts() {
        // Ties, what rounds up to the next power or to infinity, and what is no number; odd and even, beyond a vector and below.
        let special = [0x3f80_8000, 0x3f81_8000, 0x3fff_ffff, 0x7f7f_ffff, 0x7f80_0001, 0xffc0_0000, 0x7f80_0000, 0xbf80_8000, 0x3f80_7fff];
        let (n, k) = (3 * lanes() + 1, 4 * lanes() + 3);
        let values: Vec<f32> = (0..n * k).map(|i| f32::from_bits(special[i % special.len()] ^ (i as u32 % 7) << 16)).collect();
        let steps = Precision::Bf16.steps(k);
        for layout in [Layout::RowMajor, Layout::Transposed] {
            let packed = Packed::new(&values, n, k, layout, Precision::Bf16);
            for (column, step) in (0..n).flat_map(|column| (0..steps).map(move |step| (column, step))) {
                let panel = panel(column / (lanes() * PANEL_VECTORS), n, steps, lanes());
                let word = packed.data()[panel.offset + step * panel.vectors * lanes() + column - panel.first].to_bits();
                for (input, half) in [(2 * step, word as u16), (2 * step + 1, (word >> 16) as u16)] {
                    let at = if layout == Layout::RowMajor { column * k + input } else { input * n + column };
                    let expected = if input < k { bf16::from_f32(values[at]).to_bits() } else { 0 };
                    assert_eq!(half, expected, "{layout:?}: column {column}, input {input}");
                }
            }
        }
    }
}
