//! Rows of a table by id, and their gradients back into the table. The embedding layers call it.
//!
//! Ids are checked before anything is written: an id beyond the table is a caller's mistake and panics with the id.

use crate::matmul::Shared;
use rayon::prelude::*;

/// Rows per task of [`gather`].
const ROWS: usize = 32;
/// Columns per task of [`scatter_add`].
const COLUMNS: usize = 64;

fn check(what: &str, table: usize, dim: usize, ids: &[u32], elements: usize) {
    assert!(dim > 0, "{what}: dim is 0");
    assert_eq!(elements, ids.len() * dim, "{what}: {elements} elements, {} rows of {dim} need {}", ids.len(), ids.len() * dim);
    let rows = table / dim;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("{what}: id {id} is beyond the table's {rows} rows");
    }
}

/// `y[i] = table[ids[i]]`, or `+=` with `accumulate`. table `[rows, dim]`, y `[ids, dim]`.
pub fn gather(table: &[f32], dim: usize, ids: &[u32], y: &mut [f32], accumulate: bool) {
    check("gather", table.len(), dim, ids, y.len());
    y.par_chunks_mut(ROWS * dim).zip(ids.par_chunks(ROWS)).for_each(|(y, ids)| {
        for (y, &id) in y.chunks_exact_mut(dim).zip(ids) {
            let row = &table[id as usize * dim..][..dim];
            if accumulate {
                y.iter_mut().zip(row).for_each(|(y, w)| *y += w);
            } else {
                y.copy_from_slice(row);
            }
        }
    });
}

/// `dtable[ids[i]] += dy[i]`, in the order of i for every element, whatever the number of threads.
pub fn scatter_add(dy: &[f32], dim: usize, ids: &[u32], dtable: &mut [f32]) {
    check("scatter_add", dtable.len(), dim, ids, dy.len());
    // The table is split by columns, so that ids may repeat freely within and between tasks.
    let table = Shared::new(dtable);
    (0..dim.div_ceil(COLUMNS)).into_par_iter().for_each(|block| {
        let first = block * COLUMNS;
        let width = COLUMNS.min(dim - first);
        for (dy, &id) in dy.chunks_exact(dim).zip(ids) {
            // SAFETY: `check` found every id within the table, first + width is at most dim, and no other task has these columns.
            let row = unsafe { std::slice::from_raw_parts_mut(table.ptr().add(id as usize * dim + first), width) };
            row.iter_mut().zip(&dy[first..]).for_each(|(w, d)| *w += d);
        }
    });
}
