//! Root-mean-square normalisation (Zhang & Sennrich 2019) over the last dimension, or over each head.

use candle_core::{D, Tensor};
use tunesmith_ops::norm::{rms_norm, rms_norm_backward};

use super::ctx::{Ctx, Kernels};
use super::params::Param;
use super::view::F32View;
use crate::error::Result;

/// An RMS norm with gain `[dim]`; rows of `dim` elements, so that a gain of a head's width norms each head.
#[derive(Clone)]
pub struct RmsNorm {
    /// Gain.
    pub weight: Param,
    /// Added to the gain: 1 in the Gemma family, whose weights are stored around 0.
    pub offset: f32,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// x `[tokens, n·dim]` → y of the same shape; saves x and the rows' factors.
    pub fn forward(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let dim = self.weight.value.elem_count();
        ctx.push_norm(x);
        if ctx.kernels == Kernels::Composed {
            let (normed, _) = self.normed(x)?;
            return Ok(normed.broadcast_mul(&self.gain()?)?.reshape(x.shape())?);
        }
        let rows = x.elem_count() / dim;
        let [y, rstd] = rms_norm(&F32View::new(x)?, &F32View::new(&self.weight.value)?, self.offset, self.eps as f32, dim);
        if ctx.recording() {
            ctx.push_norm(&Tensor::from_vec(rstd, rows, x.device())?);
        }
        Ok(Tensor::from_vec(y, x.shape(), x.device())?)
    }

    /// What the last forward pass on the tape gave, computed again from what it saved.
    pub fn again(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let behind = if ctx.kernels == Kernels::Native { 1 } else { 0 };
        let x = ctx.saved_by_norm(behind)?;
        ctx.paused(|ctx| self.forward(&x, ctx))
    }

    /// dx from dy; adds to the gradient of the gain.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        if ctx.kernels == Kernels::Composed {
            return self.backward_composed(dy, ctx);
        }
        let (rstd, x) = (ctx.pop_norm()?, ctx.pop_norm()?);
        let dim = self.weight.value.elem_count();
        let (dys, xs, gain, rstd) = (F32View::new(dy)?, F32View::new(&x)?, F32View::new(&self.weight.value)?, F32View::new(&rstd)?);
        let backward = |gradient: Option<&mut [f32]>| rms_norm_backward(&dys, &xs, &gain, self.offset, &rstd, dim, gradient);
        let dx = match self.weight.slot {
            Some(slot) => ctx.add_grad(slot, |g| backward(Some(g)))?,
            None => backward(None),
        };
        Ok(Tensor::from_vec(dx, x.shape(), x.device())?)
    }

    fn gain(&self) -> Result<Tensor> {
        Ok((&self.weight.value + f64::from(self.offset))?)
    }

    /// `x / rms` as `[rows, dim]`, and `1 / rms`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = x.reshape(((), self.weight.value.elem_count()))?;
        let rstd = (x.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.powf(-0.5)?;
        Ok((x.broadcast_mul(&rstd)?, rstd))
    }

    fn backward_composed(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let x = ctx.pop_norm()?;
        let (normed, rstd) = self.normed(&x)?;
        let dy = dy.reshape(normed.shape())?;
        if let Some(slot) = self.weight.slot {
            ctx.add_grad_tensor(slot, &(&dy * &normed)?.sum(0)?)?;
        }
        let g = dy.broadcast_mul(&self.gain()?)?;
        let along = normed.broadcast_mul(&(&g * &normed)?.mean_keepdim(D::Minus1)?)?;
        Ok((g - along)?.broadcast_mul(&rstd)?.reshape(x.shape())?)
    }
}
