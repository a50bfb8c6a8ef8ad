//! Pointwise activations, by their names in `config.json`.

use candle_core::Tensor;
use tunesmith_ops::activation::{Activation, backward, forward};

use super::ctx::{Ctx, Kernels};
use super::view::F32View;
use crate::error::{MlError, Result};

/// An activation layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Act(pub Activation);

impl Act {
    /// The activation that `transformers` calls `name`.
    ///
    /// # Errors
    /// If the name is not known.
    pub fn by_name(name: &str) -> Result<Self> {
        Ok(Self(match name {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            "silu" | "swish" => Activation::Silu,
            other => {
                return Err(MlError::Format(format!(
                    "config.json: activation {other:?} is not known; known: gelu, gelu_new, relu, tanh, silu"
                )));
            }
        }))
    }

    /// y of the same shape as x; saves x.
    pub fn forward(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        ctx.push(x);
        match ctx.kernels {
            Kernels::Native => {
                let mut y = vec![0f32; x.elem_count()];
                forward(self.0, &F32View::new(x)?, &mut y);
                Ok(Tensor::from_vec(y, x.shape(), x.device())?)
            }
            Kernels::Composed => Ok(match self.0 {
                Activation::Gelu => x.gelu_erf()?,
                Activation::GeluTanh => x.gelu()?,
                Activation::Relu => x.relu()?,
                Activation::Tanh => x.tanh()?,
                Activation::Silu => x.silu()?,
            }),
        }
    }

    /// What the last forward pass on the tape gave, computed again from what it saved.
    pub fn again(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let x = ctx.pop()?;
        ctx.push(&x);
        ctx.paused(|ctx| self.forward(&x, ctx))
    }

    /// dx from dy.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let x = ctx.pop()?;
        if ctx.kernels == Kernels::Native {
            let mut dx = vec![0f32; x.elem_count()];
            backward(self.0, &F32View::new(&x)?, &F32View::new(dy)?, &mut dx);
            return Ok(Tensor::from_vec(dx, x.shape(), x.device())?);
        }
        let slope = match self.0 {
            Activation::Gelu => {
                let density = ((x.sqr()? * -0.5)?.exp()? * (1.0 / (2.0 * std::f64::consts::PI).sqrt()))?;
                let cumulative = (((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
                (cumulative + (&x * density)?)?
            }
            Activation::GeluTanh => {
                let c = (2.0 / std::f64::consts::PI).sqrt();
                let t = ((&x + (x.powf(3.0)? * 0.044715)?)? * c)?.tanh()?;
                let inner = ((x.sqr()? * (3.0 * 0.044715))? + 1.0)?;
                let sech2 = (1.0 - t.sqr()?)?;
                (((t + 1.0)? * 0.5)? + ((&x * 0.5)? * sech2)?.mul(&(inner * c)?)?)?
            }
            Activation::Relu => x.gt(0.0)?.to_dtype(x.dtype())?,
            Activation::Tanh => (1.0 - x.tanh()?.sqr()?)?,
            Activation::Silu => {
                let s = (1.0 / (x.neg()?.exp()? + 1.0)?)?;
                (&s * (((1.0 - &s)? * &x)? + 1.0)?)?
            }
        };
        Ok((dy * slope)?)
    }
}
