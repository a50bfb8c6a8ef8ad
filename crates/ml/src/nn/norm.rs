//! Layer normalisation (Ba et al. 2016) over the last dimension.

use candle_core::{D, Tensor};
use tunesmith_ops::norm::{layer_norm, layer_norm_backward};

use super::ctx::{Ctx, Kernels};
use super::params::Param;
use super::view::F32View;
use crate::error::Result;

/// A layer norm with gain and bias `[hidden]`.
#[derive(Clone)]
pub struct LayerNorm {
    /// Gain.
    pub weight: Param,
    /// Bias.
    pub bias: Param,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Shows each parameter to `f`.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        f(&mut self.weight)?;
        f(&mut self.bias)
    }

    /// x `[tokens, hidden]` → y of the same shape; saves x and the rows' statistics.
    pub fn forward(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let (rows, dim) = x.dims2()?;
        ctx.push_norm(x);
        if ctx.kernels == Kernels::Composed {
            let (normed, _) = self.normed(x)?;
            return Ok(normed.broadcast_mul(&self.weight.value)?.broadcast_add(&self.bias.value)?);
        }
        let (gain, bias) = (F32View::new(&self.weight.value)?, F32View::new(&self.bias.value)?);
        let [y, stats] = layer_norm(&F32View::new(x)?, &gain, &bias, self.eps as f32, dim);
        if ctx.recording() {
            ctx.push_norm(&Tensor::from_vec(stats, (rows, 2), x.device())?);
        }
        Ok(Tensor::from_vec(y, (rows, dim), x.device())?)
    }

    /// What the last forward pass on the tape gave, computed again from what it saved.
    pub fn again(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let behind = if ctx.kernels == Kernels::Native { 1 } else { 0 };
        let x = ctx.saved_by_norm(behind)?;
        ctx.paused(|ctx| self.forward(&x, ctx))
    }

    /// dx from dy; adds to the gradients of gain and bias.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        match ctx.kernels {
            Kernels::Native => self.backward_native(dy, ctx),
            Kernels::Composed => self.backward_composed(dy, ctx),
        }
    }

    fn backward_native(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let stats = ctx.pop_norm()?;
        let x = ctx.pop_norm()?;
        let (rows, dim) = x.dims2()?;
        let (dys, xs, gain, stats) = (F32View::new(dy)?, F32View::new(&x)?, F32View::new(&self.weight.value)?, F32View::new(&stats)?);
        let dx = if self.weight.slot.is_some() || self.bias.slot.is_some() {
            let mut grads = vec![0f32; 2 * dim];
            let (dgamma, dbeta) = grads.split_at_mut(dim);
            let dx = layer_norm_backward(&dys, &xs, &gain, &stats, dim, Some(&mut *dgamma), Some(&mut *dbeta));
            for (param, grad) in [(&self.weight, dgamma), (&self.bias, dbeta)] {
                if let Some(slot) = param.slot {
                    ctx.add_grad(slot, |g| tunesmith_ops::elementwise::add_assign(g, grad))?;
                }
            }
            dx
        } else {
            layer_norm_backward(&dys, &xs, &gain, &stats, dim, None, None)
        };
        Ok(Tensor::from_vec(dx, (rows, dim), dy.device())?)
    }

    fn backward_composed(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let x = ctx.pop_norm()?;
        let (normed, rstd) = self.normed(&x)?;
        if let Some(slot) = self.weight.slot {
            ctx.add_grad_tensor(slot, &(dy * &normed)?.sum(0)?)?;
        }
        if let Some(slot) = self.bias.slot {
            ctx.add_grad_tensor(slot, &dy.sum(0)?)?;
        }
        let g = dy.broadcast_mul(&self.weight.value)?;
        let mean = g.mean_keepdim(D::Minus1)?;
        let along = normed.broadcast_mul(&(&g * &normed)?.mean_keepdim(D::Minus1)?)?;
        Ok((g.broadcast_sub(&mean)? - along)?.broadcast_mul(&rstd)?)
    }

    /// `(x - mean) / std` and `1 / std`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let rstd = (centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.powf(-0.5)?;
        Ok((centred.broadcast_mul(&rstd)?, rstd))
    }
}
