//! Weights in the layout that the micro-kernels read: panels of two vectors of outputs, each laid out step by step along K.
//!
//! Layers pack a weight once when they serve and after every update when they train. The last panel is one vector wide
//! where that suffices; its padding is zero. With bf16 a step is a pair of inputs, interleaved in 32 bits. Halves are bf16 in memory
//! and f32 in arithmetic: a step is one input there, and a word has it for a column of either vector.

use super::buffer::Buffer;
use super::{Layout, Precision};
use crate::half::bf16_bits;
use crate::simd::{Simd, dispatch};
use half::bf16;
use rayon::prelude::*;

/// A weight matrix ready for [`super::matmul`].
#[derive(Debug, Clone)]
pub struct Packed {
    data: Buffer,
    n: usize,
    k: usize,
    layout: Layout,
    precision: Precision,
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

/// Lanes of a vector of the kernels in use.
pub(crate) fn lanes() -> usize {
    dispatch! { fn ask() -> usize = lanes_of; }
    #[inline(always)]
    fn lanes_of<S: Simd>(_: S) -> usize {
        S::LANES
    }
    ask()
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
        let data = Buffer::zeros(packed_len(n, precision.steps(k), lanes()));
        let mut packed = Packed { data, n, k, layout, precision, halves: false };
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
        Packed { data, n, k, layout, precision: Precision::F32, halves: true }
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
        let (n, k, precision, layout) = (self.n, self.k, self.precision, self.layout);
        assert_eq!(w.len(), n * k, "pack: w has {} elements, [{n}, {k}] needs {}", w.len(), n * k);
        let (lanes, steps) = (lanes(), precision.steps(k));
        if steps == 0 {
            return;
        }
        let full = lanes * PANEL_VECTORS * steps;
        let data = &mut self.data.as_mut_slice()[..packed_len(n, steps, lanes)];
        data.par_chunks_mut(full).enumerate().for_each(|(index, out)| {
            let panel = panel(index, n, steps, lanes);
            let source = match layout {
                Layout::RowMajor => Source { data: &w[panel.first * k..], stride: k, across: true },
                Layout::Transposed => Source { data: &w[panel.first..], stride: n, across: false },
            };
            pack_panel(source, panel.cols, k, panel.vectors * lanes, precision, out);
        });
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

    /// Packs steps `first .. first + steps` of a panel.
    pub(super) fn pack(&self, panel: &Panel, first: usize, steps: usize, width: usize, out: &mut [f32]) {
        if steps == 0 {
            return;
        }
        let per_step = if self.precision == Precision::Bf16 { 2 } else { 1 };
        let input = first * per_step;
        let inputs = (steps * per_step).min(self.k - input);
        let source = match self.layout {
            Layout::RowMajor => Source { data: &self.w[panel.first * self.k + input..], stride: self.k, across: true },
            Layout::Transposed => Source { data: &self.w[input * self.n + panel.first..], stride: self.n, across: false },
        };
        pack_panel(source, panel.cols, inputs, width, self.precision, out);
    }
}

/// A matrix to pack: element (column c, step i) is `data[c · stride + i]` if `across`, else `data[i · stride + c]`.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub across: bool,
}

dispatch! {
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
        (Precision::Bf16, _) => pack_pairs(s, source, cols, k, width, out),
    }
}

/// Most lanes of any instruction set; blocks of this size squared fit on the stack.
const MAX_LANES: usize = 16;

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
        let out = &mut out[i * width..][..width];
        for (row, out) in row.chunks(lanes).zip(out.chunks_mut(lanes)) {
            s.store(s.load_some(row), out);
        }
    }
    clear_padding(cols.next_multiple_of(lanes), k, width, out);
}

#[inline(always)]
fn pack_pairs<S: Simd>(s: S, source: Source<'_>, cols: usize, k: usize, width: usize, out: &mut [f32]) {
    let lanes = S::LANES;
    assert!(lanes.is_multiple_of(2), "pairs of inputs fill a vector");
    for column in (0..cols).step_by(lanes) {
        for input in (0..k).step_by(lanes) {
            let inputs = (k - input).min(lanes);
            let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
            if source.across {
                turn_block(s, source, column, input, inputs, &mut turned);
            } else {
                let here = (cols - column).min(lanes);
                for i in 0..inputs {
                    let row = &source.data[(input + i) * source.stride + column..][..here];
                    s.store(s.load_some(row), &mut turned[i * lanes..]);
                }
            }
            for pair in 0..inputs.div_ceil(2) {
                let low = bf16_bits(s, s.load(&turned[2 * pair * lanes..]));
                let high = bf16_bits(s, s.load(&turned[(2 * pair + 1) * lanes..]));
                let both = s.ior(s.shr::<16>(low), s.iand(high, s.isplat(0xffff_0000)));
                s.store(s.float(both), &mut out[(input / 2 + pair) * width + column..]);
            }
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
