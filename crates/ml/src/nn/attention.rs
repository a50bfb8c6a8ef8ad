//! Softmax attention within each packed sequence (Vaswani et al. 2017; recomputed in backward as in Dao et al. 2022), with
//! grouped heads (Ainslie et al. 2023), causal and window masks, and soft-capped scores (Gemma 2). In serving with a cache the
//! keys and values of a sequence's earlier tokens come from its pages.

use candle_core::{D, Tensor};
use tunesmith_ops::attention::{AttentionDropout, AttentionSpec, attention, attention_backward};
use tunesmith_ops::cpu;
use tunesmith_ops::dropout::DropoutKey;
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::paged::{PagedSpec, paged_attention, write_pages};

use super::ctx::{CachedPass, Ctx, Kernels};
use super::dropout::Dropout;
use super::view::F32View;
use crate::error::Result;

/// Multi-head self-attention without its projections.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether a token sees only itself and what stands before it.
    pub causal: bool,
    /// How many tokens back a token sees, itself included.
    pub window: Option<usize>,
    /// Scores become `cap·tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Dropout of the probabilities.
    pub dropout: Dropout,
    /// Number of the layer, by which it finds its part of a cache.
    pub layer: usize,
}

impl Attention {
    /// Attention of an encoder: every token of a sequence sees every other.
    pub fn bidirectional(layer: usize, heads: usize, head_dim: usize, dropout: Dropout) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { heads, kv_heads: heads, head_dim, scale, causal: false, window: None, softcap: None, dropout, layer }
    }

    fn spec<'a>(&self, ctx: &Ctx<'a>) -> AttentionSpec<'a> {
        let dropout = self.dropout.key(ctx.mode).map(|key| AttentionDropout { key, row_ids: &ctx.batch.row_ids });
        AttentionSpec {
            cu_seqlens: &ctx.batch.cu_seqlens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            causal: self.causal,
            window: self.window,
            softcap: self.softcap,
            dropout,
            precision: if cpu::bf16_attention() { ctx.precision } else { Precision::F32 },
        }
    }

    /// q `[tokens, heads·head_dim]`, k and v `[tokens, kv_heads·head_dim]` → out of q's shape; saves all four and the rows'
    /// log-sums.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let tokens = q.dim(0)?;
        let batch = ctx.batch;
        if let Some(pass) = ctx.cache.as_mut() {
            return self.cached(q, k, v, &batch.cu_seqlens, pass);
        }
        [q, k, v].into_iter().for_each(|t| ctx.push(t));
        if ctx.kernels == Kernels::Composed {
            let parts = self.sequences(ctx).map(|s| Ok(self.sequence(q, k, v, &s, ctx)?.out)).collect::<Result<Vec<_>>>()?;
            return Ok(Tensor::cat(&parts, 0)?);
        }
        let [out, lse] = attention(&F32View::new(q)?, &F32View::new(k)?, &F32View::new(v)?, &self.spec(ctx));
        let out = Tensor::from_vec(out, q.shape(), q.device())?;
        if ctx.recording() {
            ctx.push(&out);
            ctx.push(&Tensor::from_vec(lse, (self.heads, tokens), q.device())?);
        }
        Ok(out)
    }

    /// Writes the new tokens' keys and values into their pages, and attends to everything in them.
    fn cached(&self, q: &Tensor, k: &Tensor, v: &Tensor, cu_rows: &[u32], pass: &mut CachedPass) -> Result<Tensor> {
        let spec = PagedSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            window: self.window,
            softcap: self.softcap,
            cu_rows,
            starts: pass.starts,
            tables: pass.tables,
        };
        let layer = &mut pass.layers[self.layer];
        write_pages(&F32View::new(k)?, &F32View::new(v)?, &spec, &mut layer.k, &mut layer.v);
        let mut out = vec![0f32; q.elem_count()];
        paged_attention(&F32View::new(q)?, &layer.k, &layer.v, &spec, &mut out);
        Ok(Tensor::from_vec(out, q.shape(), q.device())?)
    }

    /// dq, dk, dv from dout.
    pub fn backward(&self, dout: &Tensor, ctx: &mut Ctx) -> Result<[Tensor; 3]> {
        if ctx.kernels == Kernels::Composed {
            return self.backward_composed(dout, ctx);
        }
        let (lse, out) = (ctx.pop()?, ctx.pop()?);
        let (v, k, q) = (ctx.pop()?, ctx.pop()?, ctx.pop()?);
        let (out, lse, dout) = (F32View::new(&out)?, F32View::new(&lse)?, F32View::new(dout)?);
        let (qs, ks, vs) = (F32View::new(&q)?, F32View::new(&k)?, F32View::new(&v)?);
        let [dq, dk, dv] = attention_backward(&qs, &ks, &vs, [&out, &lse], &dout, &self.spec(ctx));
        let tensor = |d, like: &Tensor| Tensor::from_vec(d, like.shape(), like.device());
        Ok([tensor(dq, &q)?, tensor(dk, &k)?, tensor(dv, &v)?])
    }

    fn sequences<'a>(&self, ctx: &Ctx<'a>) -> impl Iterator<Item = std::ops::Range<usize>> + use<'a> {
        ctx.batch.cu_seqlens.windows(2).map(|w| w[0] as usize..w[1] as usize)
    }

    /// `[tokens, n·head_dim]` → `[heads, length, head_dim]` of one sequence; heads of keys and values stand once for each query
    /// head that they serve.
    fn heads_of(&self, x: &Tensor, s: &std::ops::Range<usize>) -> Result<Tensor> {
        let here = x.dim(1)? / self.head_dim;
        let x = x.narrow(0, s.start, s.len())?.reshape((s.len(), here, self.head_dim))?.transpose(0, 1)?.contiguous()?;
        if here == self.heads {
            return Ok(x);
        }
        let group = self.heads / here;
        Ok(x.unsqueeze(1)?.broadcast_as((here, group, s.len(), self.head_dim))?.contiguous()?.reshape((
            self.heads,
            s.len(),
            self.head_dim,
        ))?)
    }

    /// `[heads, length, head_dim]` → `[length, heads·head_dim]`.
    fn merge(&self, x: &Tensor) -> Result<Tensor> {
        let (heads, length, _) = x.dims3()?;
        Ok(x.transpose(0, 1)?.contiguous()?.reshape((length, heads * self.head_dim))?)
    }

    /// As [`Self::merge`], of a gradient of keys or values: the sum over the query heads that each served.
    fn merge_grouped(&self, x: &Tensor) -> Result<Tensor> {
        let (_, length, dim) = x.dims3()?;
        self.merge(&x.reshape((self.kv_heads, self.heads / self.kv_heads, length, dim))?.sum(1)?)
    }

    /// 0 where a token is seen, −∞ where not, `[length, length]`; nothing where every token sees every other.
    fn hidden(&self, length: usize, like: &Tensor) -> Result<Option<Tensor>> {
        if !self.causal {
            return Ok(None);
        }
        let seen = |i: usize, j: usize| j <= i && self.window.is_none_or(|w| i - j < w);
        let mask: Vec<f32> = (0..length * length).map(|at| if seen(at / length, at % length) { 0.0 } else { f32::NEG_INFINITY }).collect();
        Ok(Some(Tensor::from_vec(mask, (length, length), like.device())?))
    }

    fn sequence(&self, q: &Tensor, k: &Tensor, v: &Tensor, s: &std::ops::Range<usize>, ctx: &Ctx) -> Result<Composed> {
        let (q, k, v) = (self.heads_of(q, s)?, self.heads_of(k, s)?, self.heads_of(v, s)?);
        let mut scores = (q.matmul(&k.t()?)? * f64::from(self.scale))?;
        if let Some(cap) = self.softcap.map(f64::from) {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        // The slope of the cap, from the capped score.
        let slope = match self.softcap.map(f64::from) {
            Some(cap) => Some((1.0 - (&scores / cap)?.sqr()?)?),
            None => None,
        };
        if let Some(hidden) = self.hidden(s.len(), &scores)? {
            scores = scores.broadcast_add(&hidden)?;
        }
        let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        let mask = self.dropout.key(ctx.mode).map(|key| self.mask(&ctx.batch.row_ids[s.clone()], key, &probs)).transpose()?;
        let dropped = mask.as_ref().map_or_else(|| Ok(probs.clone()), |m| &probs * m)?;
        let out = self.merge(&dropped.matmul(&v)?)?;
        Ok(Composed { q, k, v, probs, slope, mask, dropped, out })
    }

    /// The mask of the probabilities `[heads, length, length]`, as the native kernel draws it.
    fn mask(&self, row_ids: &[u64], key: DropoutKey, probs: &Tensor) -> Result<Tensor> {
        let length = row_ids.len();
        let mut mask = vec![1f32; self.heads * length * length];
        for (i, row) in mask.chunks_mut(length).enumerate() {
            let bits = key.row(row_ids[i % length], (i / length) as u32);
            for (column, keep) in row.iter_mut().enumerate() {
                *keep = if bits.column(column as u32) < key.threshold() { 0.0 } else { key.keep_scale() };
            }
        }
        Ok(Tensor::from_vec(mask, probs.shape(), probs.device())?)
    }

    fn backward_composed(&self, dout: &Tensor, ctx: &mut Ctx) -> Result<[Tensor; 3]> {
        let (v, k, q) = (ctx.pop()?, ctx.pop()?, ctx.pop()?);
        let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
        for s in self.sequences(ctx) {
            let f = self.sequence(&q, &k, &v, &s, ctx)?;
            let d = self.heads_of(dout, &s)?;
            dvs.push(self.merge_grouped(&f.dropped.t()?.matmul(&d)?)?);
            let mut dp = d.matmul(&f.v.t()?)?;
            if let Some(mask) = &f.mask {
                dp = (dp * mask)?;
            }
            let along = (&dp * &f.probs)?.sum_keepdim(D::Minus1)?;
            let mut ds = (dp.broadcast_sub(&along)?.mul(&f.probs)? * f64::from(self.scale))?;
            if let Some(slope) = &f.slope {
                ds = (ds * slope)?;
            }
            dqs.push(self.merge(&ds.matmul(&f.k)?)?);
            dks.push(self.merge_grouped(&ds.t()?.matmul(&f.q)?)?);
        }
        Ok([Tensor::cat(&dqs, 0)?, Tensor::cat(&dks, 0)?, Tensor::cat(&dvs, 0)?])
    }
}

/// One sequence's tensors in the composed form.
struct Composed {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probs: Tensor,
    slope: Option<Tensor>,
    mask: Option<Tensor>,
    dropped: Tensor,
    out: Tensor,
}
