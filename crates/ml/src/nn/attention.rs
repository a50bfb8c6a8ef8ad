//! Softmax attention within each packed sequence (Vaswani et al. 2017; recomputed in backward as in Dao et al. 2022).

use candle_core::{D, Tensor};
use tunesmith_ops::attention::{AttentionDropout, AttentionSpec, attention, attention_backward};
use tunesmith_ops::dropout::DropoutKey;

use super::ctx::{Ctx, Kernels};
use super::dropout::Dropout;
use super::view::F32View;
use crate::error::Result;

/// Multi-head self-attention without its projections.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Dropout of the probabilities.
    pub dropout: Dropout,
}

impl Attention {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn spec<'a>(&self, ctx: &Ctx<'a>) -> AttentionSpec<'a> {
        let dropout = self.dropout.key(ctx.mode).map(|key| AttentionDropout { key, row_ids: &ctx.batch.row_ids });
        AttentionSpec {
            cu_seqlens: &ctx.batch.cu_seqlens,
            heads: self.heads,
            head_dim: self.head_dim,
            scale: self.scale(),
            causal: false,
            dropout,
        }
    }

    /// q, k, v `[tokens, heads·head_dim]` → out of the same shape; saves all four and the rows' log-sums.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let tokens = q.dim(0)?;
        [q, k, v].into_iter().for_each(|t| ctx.push(t));
        if ctx.kernels == Kernels::Composed {
            let parts = self.sequences(ctx).map(|s| Ok(self.sequence(q, k, v, &s, ctx)?.out)).collect::<Result<Vec<_>>>()?;
            return Ok(Tensor::cat(&parts, 0)?);
        }
        let (mut out, mut lse) = (vec![0f32; q.elem_count()], vec![0f32; self.heads * tokens]);
        attention(&F32View::new(q)?, &F32View::new(k)?, &F32View::new(v)?, &self.spec(ctx), &mut out, &mut lse);
        let out = Tensor::from_vec(out, q.shape(), q.device())?;
        if ctx.recording() {
            ctx.push(&out);
            ctx.push(&Tensor::from_vec(lse, (self.heads, tokens), q.device())?);
        }
        Ok(out)
    }

    /// dq, dk, dv from dout.
    pub fn backward(&self, dout: &Tensor, ctx: &mut Ctx) -> Result<[Tensor; 3]> {
        if ctx.kernels == Kernels::Composed {
            return self.backward_composed(dout, ctx);
        }
        let (lse, out) = (ctx.pop()?, ctx.pop()?);
        let (v, k, q) = (ctx.pop()?, ctx.pop()?, ctx.pop()?);
        let n = q.elem_count();
        let (mut dq, mut dk, mut dv) = (vec![0f32; n], vec![0f32; n], vec![0f32; n]);
        attention_backward(
            &F32View::new(&q)?,
            &F32View::new(&k)?,
            &F32View::new(&v)?,
            &F32View::new(&out)?,
            &F32View::new(&lse)?,
            &F32View::new(dout)?,
            &self.spec(ctx),
            &mut dq,
            &mut dk,
            &mut dv,
        );
        let tensor = |d| Tensor::from_vec(d, q.shape(), q.device());
        Ok([tensor(dq)?, tensor(dk)?, tensor(dv)?])
    }

    fn sequences<'a>(&self, ctx: &Ctx<'a>) -> impl Iterator<Item = std::ops::Range<usize>> + use<'a> {
        ctx.batch.cu_seqlens.windows(2).map(|w| w[0] as usize..w[1] as usize)
    }

    /// `[tokens, heads·head_dim]` → `[heads, length, head_dim]` of one sequence.
    fn heads_of(&self, x: &Tensor, s: &std::ops::Range<usize>) -> Result<Tensor> {
        Ok(x.narrow(0, s.start, s.len())?.reshape((s.len(), self.heads, self.head_dim))?.transpose(0, 1)?.contiguous()?)
    }

    /// `[heads, length, head_dim]` → `[length, heads·head_dim]`.
    fn merge(&self, x: &Tensor) -> Result<Tensor> {
        let (_, length, _) = x.dims3()?;
        Ok(x.transpose(0, 1)?.contiguous()?.reshape((length, self.heads * self.head_dim))?)
    }

    fn sequence(&self, q: &Tensor, k: &Tensor, v: &Tensor, s: &std::ops::Range<usize>, ctx: &Ctx) -> Result<Composed> {
        let (q, k, v) = (self.heads_of(q, s)?, self.heads_of(k, s)?, self.heads_of(v, s)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(self.scale()))?;
        let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        let mask = self.dropout.key(ctx.mode).map(|key| self.mask(&ctx.batch.row_ids[s.clone()], key, &probs)).transpose()?;
        let dropped = mask.as_ref().map_or_else(|| Ok(probs.clone()), |m| &probs * m)?;
        let out = self.merge(&dropped.matmul(&v)?)?;
        Ok(Composed { q, k, v, probs, mask, dropped, out })
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
            dvs.push(self.merge(&f.dropped.t()?.matmul(&d)?)?);
            let mut dp = d.matmul(&f.v.t()?)?;
            if let Some(mask) = &f.mask {
                dp = (dp * mask)?;
            }
            let along = (&dp * &f.probs)?.sum_keepdim(D::Minus1)?;
            let ds = (dp.broadcast_sub(&along)?.mul(&f.probs)? * f64::from(self.scale()))?;
            dqs.push(self.merge(&ds.matmul(&f.k)?)?);
            dks.push(self.merge(&ds.t()?.matmul(&f.q)?)?);
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
    mask: Option<Tensor>,
    dropped: Tensor,
    out: Tensor,
}
