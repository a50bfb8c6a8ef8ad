//! Dropout from a counter-based generator: the same rows drop the same columns in a second run of a block and in a
//! resumed job, whatever else is in the batch.

use candle_core::Tensor;
use tunesmith_ops::dropout::{DropoutKey, dropout};

use super::ctx::{Ctx, Kernels, Mode};
use crate::error::Result;

/// A dropout layer. It keeps nothing for its backward pass, which draws the same mask again.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Probability of dropping a value.
    pub p: f32,
    /// Number of the layer in its model.
    pub site: u32,
}

impl Dropout {
    /// What the mask of this pass is drawn by, or nothing where nothing is dropped.
    pub fn key(&self, mode: Mode) -> Option<DropoutKey> {
        match mode {
            Mode::Train { seed, step } if self.p > 0.0 => Some(DropoutKey { seed, step, site: self.site, p: self.p }),
            _ => None,
        }
    }

    /// x `[rows, width]` with dropped values set to zero and the others divided by `1 - p`; forward and backward alike.
    /// Row `i` is keyed by `row_ids[i]`.
    pub fn apply(&self, x: Tensor, row_ids: &[u64], ctx: &Ctx) -> Result<Tensor> {
        let Some(key) = self.key(ctx.mode) else { return Ok(x) };
        match ctx.kernels {
            Kernels::Native => {
                let (_, width) = x.dims2()?;
                super::view::with_f32_mut(&x, |x| dropout(x, width, row_ids, key))?;
                Ok(x)
            }
            Kernels::Composed => Self::masked(&x, row_ids, key),
        }
    }

    /// dx from dy, which stays as it is.
    pub fn backward(&self, dy: &Tensor, row_ids: &[u64], ctx: &Ctx) -> Result<Tensor> {
        match self.key(ctx.mode) {
            Some(_) => self.apply(dy.copy()?, row_ids, ctx),
            None => Ok(dy.clone()),
        }
    }

    /// The composed form: the mask is drawn on the CPU and multiplied on the tensor's device.
    pub(super) fn masked(x: &Tensor, row_ids: &[u64], key: DropoutKey) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let mut mask = vec![1f32; rows * width];
        dropout(&mut mask, width, row_ids, key);
        Ok((x * Tensor::from_vec(mask, (rows, width), x.device())?)?)
    }
}
