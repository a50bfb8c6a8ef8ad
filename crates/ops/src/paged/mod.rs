//! Attention out of a cache of pages, for serving: new rows are written into their sequences' pages and attend to all of them.
//!
//! The rule: a row's bits depend on its query and on the keys and values before it, and on nothing else: not on how many rows are
//! computed beside it, nor on which pages they lie in. So keys are walked in blocks at fixed borders, every sum runs over the
//! head's dimensions or over the keys in order, blocks are joined in order, and a row never adds what it does not see.

mod block;
mod task;

use crate::matmul::Shared;
use rayon::prelude::*;
use task::{Inputs, Task};

/// Keys in a page.
pub const PAGE: usize = 16;

/// Multiply-adds that are not worth a second thread.
const SMALL: usize = 1 << 17;

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
/// pages as in [`write_pages`]. What lies in a page beyond its sequence's last token, or in one that is too far back for every row,
/// does not matter.
pub fn paged_attention(q: &[f32], k_pages: &[f32], v_pages: &[f32], spec: &PagedSpec, out: &mut [f32]) {
    spec.check("paged_attention", k_pages.len(), v_pages.len());
    let width = spec.heads * spec.head_dim;
    assert!(q.len() == spec.rows() * width && out.len() == q.len(), "paged_attention: q or out");
    let tasks: Vec<Task> = (0..spec.sequences()).flat_map(|s| Task::of_sequence(spec, s)).collect();
    let inputs = Inputs { q, k_pages, v_pages, spec, out: Shared::new(out) };
    let work: usize = tasks.iter().map(|task| task.work(spec)).sum();
    let threads = if work < SMALL { 1 } else { rayon::current_num_threads() };
    if threads == 1 {
        tasks.iter().for_each(|task| task.run(&inputs));
    } else if tasks.len() >= threads {
        tasks.par_iter().for_each(|task| task.run(&inputs));
    } else {
        // Few heads of few sequences: each is shared out along its keys.
        tasks.par_iter().for_each(|task| task.run_in_parts(&inputs, (2 * threads).div_ceil(tasks.len())));
    }
}
