//! The gate of a feed-forward layer: `act(gate) · up` (Shazeer 2020: SwiGLU, GeGLU).

use candle_core::Tensor;
use tunesmith_ops::glu::{gated, gated_backward};

use super::activation::Act;
use super::ctx::{Ctx, Kernels};
use super::view::{F32View, with_f32_mut};
use crate::error::Result;

/// A gate with its activation.
#[derive(Debug, Clone, Copy)]
pub struct Gated(pub Act);

impl Gated {
    /// gate, up `[tokens, intermediate]` → y of the same shape; saves both.
    pub fn forward(&self, gate: &Tensor, up: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        if ctx.kernels == Kernels::Composed {
            ctx.push(up);
            return Ok((self.0.forward(gate, ctx)? * up)?);
        }
        ctx.push(gate);
        ctx.push(up);
        let y = gated(self.0.0, &F32View::new(gate)?, &F32View::new(up)?);
        Ok(Tensor::from_vec(y, gate.shape(), gate.device())?)
    }

    /// What the last forward pass on the tape gave, computed again from what it saved.
    pub fn again(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let (last, first) = (ctx.pop()?, ctx.pop()?);
        ctx.push(&first);
        ctx.push(&last);
        let (gate, up) = if ctx.kernels == Kernels::Composed { (last, first) } else { (first, last) };
        ctx.paused(|ctx| self.forward(&gate, &up, ctx))
    }

    /// dgate and dup from dy.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<(Tensor, Tensor)> {
        if ctx.kernels == Kernels::Composed {
            // The activation saved the gate last, and takes it off first.
            let gate = ctx.pop()?;
            let up = ctx.pop()?;
            let activated = ctx.paused(|ctx| self.0.forward(&gate, ctx))?;
            ctx.push(&gate);
            return Ok((self.0.backward(&(dy * up)?, ctx)?, (dy * activated)?));
        }
        let (up, gate) = (ctx.pop()?, ctx.pop()?);
        // Off the tape, nobody else has them.
        let dys = F32View::new(dy)?;
        with_f32_mut(&gate, |gate| with_f32_mut(&up, |up| gated_backward(self.0.0, gate, up, &dys)))??;
        Ok((gate, up))
    }
}
