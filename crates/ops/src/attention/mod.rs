//! Attention over packed sequences of any length, forwards and backwards, with memory linear in the length.
//!
//! Sequences stand one after another in `[tokens, heads · head_dim]`; `cu_seqlens` says where each begins. Keys are walked in
//! blocks at fixed borders of the sequence with an online softmax, so a row's result depends on its own sequence only.

mod backward;
mod forward;
mod head;

use crate::dropout::DropoutKey;
use crate::matmul::{Precision, written};
use head::Head;
use rayon::prelude::*;

/// Which tokens see which, and how scores are scaled.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpec<'a> {
    /// Where each sequence begins, and at the end the number of tokens: `[sequences + 1]`.
    pub cu_seqlens: &'a [u32],
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; query head h reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees only itself and what came before.
    pub causal: bool,
    /// With `causal`: how many tokens back a token sees, itself included.
    pub window: Option<usize>,
    /// Scores become `cap·tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Dropout on the probabilities.
    pub dropout: Option<AttentionDropout<'a>>,
    /// The arithmetic of the products. Scores, softmax and sums are f32 either way.
    pub precision: Precision,
}

/// Dropout on attention probabilities.
#[derive(Debug, Clone, Copy)]
pub struct AttentionDropout<'a> {
    /// The generator's key.
    pub key: DropoutKey,
    /// One id per token: the mask's row is (query's id, head), its column the key's index within the sequence.
    pub row_ids: &'a [u64],
}

impl AttentionSpec<'_> {
    /// Checks the spec and the lengths of the slices that go with it.
    fn check(&self, what: &str, rows: &[(&str, usize)], kv_rows: &[(&str, usize)]) {
        let cu = self.cu_seqlens;
        assert!(!cu.is_empty() && cu[0] == 0, "{what}: cu_seqlens must begin with 0");
        assert!(cu.windows(2).all(|w| w[0] <= w[1]), "{what}: cu_seqlens must not fall");
        assert!(self.heads > 0 && self.kv_heads > 0 && self.head_dim > 0, "{what}: heads and head_dim must not be 0");
        assert!(self.heads.is_multiple_of(self.kv_heads), "{what}: {} heads for {} key heads", self.heads, self.kv_heads);
        assert!(self.window.is_none_or(|w| w > 0 && self.causal), "{what}: a window is for causal attention, and not empty");
        let tokens = self.tokens();
        let both = [(rows, self.heads * self.head_dim), (kv_rows, self.kv_heads * self.head_dim)];
        for (rows, width) in both {
            for (name, len) in rows {
                assert_eq!(*len, tokens * width, "{what}: {name} has {len} elements, [{tokens}, {width}] needs {}", tokens * width);
            }
        }
        if let Some(dropout) = &self.dropout {
            assert_eq!(dropout.row_ids.len(), tokens, "{what}: dropout needs one row id per token");
        }
    }

    fn tokens(&self) -> usize {
        self.cu_seqlens.last().map_or(0, |&t| t as usize)
    }

    /// Calls `work` for every head, or with `step` every step-th one, of every sequence that is not empty, on the thread pool.
    fn for_each_head(&self, step: usize, work: impl Fn(Head) + Sync + Send) {
        let sequences = self.cu_seqlens.len() - 1;
        let heads = self.heads / step;
        (0..sequences * heads).into_par_iter().for_each(|task| {
            let (sequence, head) = (task / heads, task % heads * step);
            let (start, end) = (self.cu_seqlens[sequence] as usize, self.cu_seqlens[sequence + 1] as usize);
            if start < end {
                work(Head { spec: self, head, start, len: end - start });
            }
        });
    }
}

/// `softmax(scale · q · kᵀ) · v` per sequence and head, `[tokens, heads · head_dim]` as q; k, v `[tokens, kv_heads · head_dim]`. And `[heads,
/// tokens]`, the logarithm of each row's softmax denominator, which [`attention_backward`] needs.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], spec: &AttentionSpec) -> [Vec<f32>; 2] {
    spec.check("attention", &[("q", q.len())], &[("k", k.len()), ("v", v.len())]);
    // SAFETY: every token is in a sequence, and each head of it is written.
    unsafe {
        written([q.len(), spec.heads * spec.tokens()], |[out, lse]| {
            spec.for_each_head(1, |head| forward::run(&head, &forward::Tensors { q, k, v, out, lse }));
        })
    }
}

/// The gradients of [`attention`], dq, dk and dv, from what it read and gave. Probabilities are recomputed.
pub fn attention_backward(q: &[f32], k: &[f32], v: &[f32], [out, lse]: [&[f32]; 2], dout: &[f32], spec: &AttentionSpec) -> [Vec<f32>; 3] {
    spec.check("attention_backward", &[("q", q.len()), ("out", out.len()), ("dout", dout.len())], &[("k", k.len()), ("v", v.len())]);
    assert_eq!(lse.len(), spec.heads * spec.tokens(), "attention_backward: lse has {} elements", lse.len());
    // The query heads that share a key head add to the same gradients, so they stay together, in order.
    let step = spec.heads / spec.kv_heads;
    // SAFETY: as above, and so is each head of keys and values.
    unsafe {
        written([q.len(), k.len(), v.len()], |[dq, dk, dv]| {
            spec.for_each_head(step, |head| backward::run(&head, &backward::Tensors { q, k, v, out, lse, dout, dq, dk, dv }));
        })
    }
}
