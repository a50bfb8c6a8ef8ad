//! The driver of quantised products: rounds the rows once, then shares panels and blocks of rows out to the thread pool.
//!
//! One row walks along the weights as they lie in memory, each thread along a run of its own; many rows use a panel while it is in the
//! first-level cache. How the work is split depends on the machine, an output element's arithmetic does not.

use super::dots::{Dots, dispatch_dots};
use super::form::{GROUP, QuantKind, WIDTH};
use super::kernel::tile;
use super::packed::QuantPacked;
use super::rows::{Inputs, round};
use crate::activation::activate;
use crate::matmul::{Epilogue, Shared};
use crate::simd::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Rows that go through a panel together; their rounded inputs stay in the second-level cache.
const BLOCK_ROWS: usize = 128;
/// Multiply-adds below which a product is not worth a second thread.
const SMALL: usize = 1 << 18;

/// What all tasks of one product share.
struct Product<'a> {
    w: &'a QuantPacked,
    /// Tile after tile of rows, each `[k / 32, rows of the tile]`.
    inputs: &'a [Inputs],
    y: Shared,
    ep: Epilogue<'a>,
}

/// Splits a product into tasks and runs them. Lengths were checked by the caller. All of `y` is written, and read only if the product is
/// added to it.
pub(super) fn multiply(x: &[f32], rows: usize, w: &QuantPacked, y: Shared, ep: Epilogue) {
    if rows == 0 || w.n() == 0 {
        return;
    }
    let work = rows * w.n() * w.k().max(1);
    let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
    let inputs = rounded(x, rows, w, threads);
    let product = Product { w, inputs: &inputs, y, ep };
    let (panels, blocks) = (w.n().div_ceil(WIDTH), rows.div_ceil(BLOCK_ROWS));
    let chunks = if threads == 1 { 1 } else { (4 * threads).div_ceil(blocks).min(panels).min(work / SMALL + 1) };
    let run = |task: usize| {
        let (block, chunk) = (task / chunks, task % chunks);
        let rows = block * BLOCK_ROWS..rows.min((block + 1) * BLOCK_ROWS);
        run_block(&product, rows, panels * chunk / chunks..panels * (chunk + 1) / chunks);
    };
    if threads == 1 || blocks * chunks == 1 {
        (0..blocks * chunks).for_each(run);
    } else {
        (0..blocks * chunks).into_par_iter().for_each(run);
    }
}

dispatch_dots! { fn most_rows() -> usize = most_rows_with; }

#[inline(always)]
fn most_rows_with<D: Dots>(_: D) -> usize {
    D::ROWS
}

dispatch_dots! { fn byte_centre() -> i32 = byte_centre_with; }

#[inline(always)]
fn byte_centre_with<D: Dots>(_: D) -> i32 {
    D::BYTE_CENTRE
}

/// The rows of the tile that begins at `first`: as many as the tile can have, else 4, 2 or 1, so that few shapes need code.
#[inline(always)]
fn tile_rows(first: usize, end: usize, most: usize) -> usize {
    match end - first {
        left if left >= most => most,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// All rows in int8, tile after tile.
fn rounded(x: &[f32], rows: usize, w: &QuantPacked, threads: usize) -> Vec<Inputs> {
    let (k, kind) = (w.k(), w.kind());
    let mut inputs = vec![Inputs::default(); rows * k / GROUP];
    if k == 0 {
        return inputs;
    }
    let centre = if kind == QuantKind::Q8_0 { byte_centre() } else { kind.form().centre };
    let most = most_rows();
    let block = |(x, out): (&[f32], &mut [Inputs])| {
        let rows = x.len() / k;
        let mut first = 0;
        while first < rows {
            let here = tile_rows(first, rows, most);
            let (x, out) = (&x[first * k..][..here * k], &mut out[first * k / GROUP..][..here * k / GROUP]);
            round(x, here, k, kind, centre, out);
            first += here;
        }
    };
    if threads == 1 || rows <= most {
        block((x, &mut inputs));
    } else {
        // Tiles do not cross these borders, for they are multiples of the largest tile and of the blocks of rows.
        const _: () = assert!(BLOCK_ROWS.is_multiple_of(16));
        x.par_chunks(16 * k).zip(inputs.par_chunks_mut(16 * k / GROUP)).for_each(block);
    }
    inputs
}

dispatch_dots! { fn run_block(product: &Product, rows: Range<usize>, panels: Range<usize>) = run_block_with; }

#[inline(always)]
fn run_block_with<D: Dots>(d: D, product: &Product, rows: Range<usize>, panels: Range<usize>) {
    macro_rules! kinds {
        ($($index:literal)*) => {
            match product.w.kind() {
                $(kind if kind == const { QuantKind::ALL[$index] } => run_kind::<D, $index>(d, product, rows, panels),)*
                _ => unreachable!("a format beside those of QuantKind::ALL"),
            }
        };
    }
    let (all_rows, all_panels) = (rows.clone(), panels.clone());
    kinds!(0 1 2 3 4 5 6 7);
    if let Some(kind) = product.ep.activation {
        let n = product.w.n();
        let cols = all_panels.start * WIDTH..n.min(all_panels.end * WIDTH);
        // SAFETY: this task, and no other, has just stored these columns of these rows.
        unsafe { activate(kind, product.y, n, all_rows, cols) };
    }
}

#[inline(always)]
fn run_kind<D: Dots, const K: usize>(d: D, product: &Product, rows: Range<usize>, panels: Range<usize>) {
    for index in panels {
        let panel = product.w.panel(index);
        let mut first = rows.start;
        while first < rows.end {
            let here = tile_rows(first, rows.end, D::ROWS);
            match here {
                8 => run_tile::<D, K, 8>(d, product, panel, index, first),
                4 => run_tile::<D, K, 4>(d, product, panel, index, first),
                2 => run_tile::<D, K, 2>(d, product, panel, index, first),
                _ => run_tile::<D, K, 1>(d, product, panel, index, first),
            }
            first += here;
        }
    }
}

#[inline(always)]
fn run_tile<D: Dots, const K: usize, const M: usize>(d: D, product: &Product, panel: &[u8], index: usize, row: usize) {
    if const { M > D::ROWS } {
        return;
    }
    let (s, n) = (d.simd(), product.w.n());
    let groups = product.w.k() / GROUP;
    let inputs = &product.inputs[row * groups..][..M * groups];
    for lane in (0..WIDTH).step_by(D::S::LANES) {
        let first = index * WIDTH + lane;
        if first >= n {
            return;
        }
        let cols = D::S::LANES.min(n - first);
        let sums = tile::<D, K, M>(d, panel, lane, inputs);
        for (r, sum) in sums.iter().enumerate() {
            let mut value = s.mul(*sum, s.splat(product.ep.scale));
            if let Some(bias) = product.ep.bias {
                value = s.add(value, s.load_some(&bias[first..][..cols]));
            }
            // SAFETY: row + r and first + cols are within the checked [rows, n], and no other task has both this row and this panel.
            let y = unsafe { std::slice::from_raw_parts_mut(product.y.ptr().add((row + r) * n + first), cols) };
            if product.ep.accumulate {
                value = s.add(value, s.load_some(y));
            }
            s.store_some(value, y);
        }
    }
}
