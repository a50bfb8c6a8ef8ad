//! Attention out of pages: right against f64, and a row's bits the same in chunks of any size, any batch and any pages.

use crate::values::{assert_close, bits, cases, on_any_threads, random};
use proptest::prelude::*;
use tunesmith_ops::paged::{PAGE, PagedSpec, paged_attention, write_pages};

#[derive(Debug, Clone, Copy)]
struct Shape {
    kv_heads: usize,
    group: usize,
    dim: usize,
    window: Option<usize>,
    cap: Option<f32>,
}

impl Shape {
    fn spec<'a>(&self, cu_rows: &'a [u32], starts: &'a [u32], tables: &'a [&'a [u32]]) -> PagedSpec<'a> {
        let (heads, head_dim) = (self.kv_heads * self.group, self.dim);
        PagedSpec { heads, kv_heads: self.kv_heads, head_dim, scale: 0.6, window: self.window, softcap: self.cap, cu_rows, starts, tables }
    }

    fn q_width(&self) -> usize {
        self.kv_heads * self.group * self.dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.dim
    }

    fn twin(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let tokens = q.len() / self.q_width();
        let mut out = vec![0.0; q.len()];
        for head in 0..self.kv_heads * self.group {
            for i in 0..tokens {
                let first = self.window.map_or(0, |w| (i + 1).saturating_sub(w));
                let kv = |j: usize, d: usize| j * self.kv_width() + head / self.group * self.dim + d;
                let at = i * self.q_width() + head * self.dim;
                let score = |j: usize| {
                    let s = 0.6f32 as f64 * (0..self.dim).map(|d| f64::from(q[at + d]) * f64::from(k[kv(j, d)])).sum::<f64>();
                    self.cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
                };
                let weights: Vec<f64> = (first..=i).map(|j| score(j).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (j, w) in (first..=i).zip(&weights) {
                    for d in 0..self.dim {
                        out[at + d] += w / total * f64::from(v[kv(j, d)]);
                    }
                }
            }
        }
        out
    }
}

/// A cache whose unwritten entries are NaN.
struct Cache {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    fn new(shape: Shape, pages: usize) -> Self {
        let n = pages * shape.kv_width() * PAGE;
        Self { k: vec![f32::NAN; n], v: vec![f32::NAN; n] }
    }

    /// One pass over rows of several sequences.
    fn pass(&mut self, q: &[f32], k: &[f32], v: &[f32], spec: &PagedSpec) -> Vec<f32> {
        write_pages(k, v, spec, &mut self.k, &mut self.v);
        let mut out = vec![f32::NAN; q.len()];
        paged_attention(q, &self.k, &self.v, spec, &mut out);
        out
    }
}

/// The rows of one sequence in chunks of the given sizes.
fn in_chunks(shape: Shape, q: &[f32], k: &[f32], v: &[f32], chunks: &[usize], pages: &[u32]) -> Vec<f32> {
    let mut cache = Cache::new(shape, 64);
    let (mut done, mut out) = (0, Vec::new());
    for &n in chunks {
        let (cu, starts, tables) = ([0, n as u32], [done as u32], [pages]);
        let rows = |x: &'_ [f32], width: usize| x[done * width..(done + n) * width].to_vec();
        let (q, k, v) = (rows(q, shape.q_width()), rows(k, shape.kv_width()), rows(v, shape.kv_width()));
        out.extend(cache.pass(&q, &k, &v, &shape.spec(&cu, &starts, &tables)));
        done += n;
    }
    out
}

fn inputs(shape: Shape, tokens: usize, seed: u64) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let kv = tokens * shape.kv_width();
    (random(tokens * shape.q_width(), seed), random(kv, seed + 1), random(kv, seed + 2))
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn a_pass_equals_its_scalar_twin(
        tokens in prop_oneof![1usize..40, 120usize..140, 250usize..260], kv_heads in 1usize..3, group in 1usize..5,
        dim in prop_oneof![1usize..20, Just(64)], window in prop::option::of(1usize..200), cap in prop::option::of(0.5f32..4.0), seed in 0u64..1000,
    ) {
        let shape = Shape { kv_heads, group, dim, window, cap };
        let (q, k, v) = inputs(shape, tokens, seed);
        let pages: Vec<u32> = (0..17).rev().collect();
        assert_close("out", &in_chunks(shape, &q, &k, &v, &[tokens], &pages), &shape.twin(&q, &k, &v), 3e-5);
    }
}

#[test]
fn chunks_of_any_size_in_any_pages_give_the_same_bits() {
    let shapes = [(1, 1, 64, None), (3, 3, 64, None), (2, 4, 20, None), (1, 9, 16, Some(50)), (2, 1, 32, Some(7))];
    for (kv_heads, group, dim, window) in shapes {
        let shape = Shape { kv_heads, group, dim, window, cap: None };
        let (q, k, v) = inputs(shape, 300, 5);
        let pages: Vec<u32> = (0..20).collect();
        let whole = in_chunks(shape, &q, &k, &v, &[300], &pages);
        let other: Vec<u32> = (0..20).map(|i| (i * 7 + 3) % 61).collect();
        for chunks in [vec![1; 300], vec![2; 150], vec![3; 100], [vec![17; 17], vec![11]].concat(), vec![64, 200, 36], vec![299, 1]] {
            let parts = in_chunks(shape, &q, &k, &v, &chunks, &other);
            assert_eq!(bits(&parts), bits(&whole), "{shape:?}, {} chunks", chunks.len());
        }
    }
}

#[test]
fn rows_beside_others_have_the_same_bits_as_alone() {
    let shape = Shape { kv_heads: 2, group: 3, dim: 24, window: None, cap: None };
    let lengths = [1, 40, 3, 150];
    let all: Vec<_> = lengths.iter().enumerate().map(|(i, n)| inputs(shape, *n, 10 * i as u64)).collect();
    let tables: Vec<Vec<u32>> = (0..4).map(|i| (0..10).map(|p| p * 4 + i).collect()).collect();
    let mut cu = vec![0];
    lengths.iter().for_each(|n| cu.push(cu[cu.len() - 1] + *n as u32));
    let q: Vec<f32> = all.iter().flat_map(|a| &a.0).copied().collect();
    let k: Vec<f32> = all.iter().flat_map(|a| &a.1).copied().collect();
    let v: Vec<f32> = all.iter().flat_map(|a| &a.2).copied().collect();
    let borrowed: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let starts = [0; 4];
    let out = Cache::new(shape, 64).pass(&q, &k, &v, &shape.spec(&cu, &starts, &borrowed));
    for (i, (q, k, v)) in all.iter().enumerate() {
        let alone = in_chunks(shape, q, k, v, &[lengths[i]], &[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
        let range = cu[i] as usize * shape.q_width()..cu[i + 1] as usize * shape.q_width();
        assert_eq!(bits(&out[range]), bits(&alone), "sequence {i}");
    }
}

#[test]
fn pages_behind_the_window_may_be_given_away() {
    let shape = Shape { kv_heads: 2, group: 3, dim: 24, window: Some(20), cap: None };
    let (q, k, v) = inputs(shape, 200, 3);
    let pages: Vec<u32> = (0..13).collect();
    let clean = in_chunks(shape, &q, &k, &v, &[200], &pages);
    let (wide, narrow) = (shape.q_width(), shape.kv_width());
    for last in [1, 2, 9] {
        let mut cache = Cache::new(shape, 64);
        let first = 200 - last;
        let (cu, tables) = ([0, first as u32], [&pages[..]]);
        cache.pass(&q[..first * wide], &k[..first * narrow], &v[..first * narrow], &shape.spec(&cu, &[0], &tables));
        // The earliest key that the first of these rows sees is first − 19; what is before its page may belong to anybody.
        let gone = (first - 19) / PAGE * PAGE * narrow;
        cache.k[..gone].fill(f32::NAN);
        cache.v[..gone].fill(f32::NAN);
        let (cu, starts) = ([0, last as u32], [first as u32]);
        let out = cache.pass(&q[first * wide..], &k[first * narrow..], &v[first * narrow..], &shape.spec(&cu, &starts, &tables));
        assert_eq!(bits(&out), bits(&clean[first * wide..]), "the last {last} rows");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // With one head of keys threads share its keys, with three they do not.
    for (kv_heads, window) in [(1, None), (1, Some(200)), (2, None), (3, None)] {
        let shape = Shape { kv_heads, group: 3, dim: 64, window, cap: None };
        let (q, k, v) = inputs(shape, 700, 5);
        let pages: Vec<u32> = (0..44).collect();
        on_any_threads(|| in_chunks(shape, &q, &k, &v, &[600, 1, 1, 98], &pages));
    }
}

#[test]
#[should_panic(expected = "page 64 is beyond the 64 pages")]
fn a_page_that_is_not_there_is_refused() {
    let shape = Shape { kv_heads: 1, group: 1, dim: 4, window: None, cap: None };
    let (q, k, v) = inputs(shape, 1, 1);
    in_chunks(shape, &q, &k, &v, &[1], &[64]);
}
