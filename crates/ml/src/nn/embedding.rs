//! Embedding tables: rows gathered by id, and their gradients added back.

use candle_core::Tensor;
use tunesmith_ops::embedding::{gather, scatter_add};

use super::ctx::{Ctx, Kernels};
use super::params::Param;
use super::view::F32View;
use crate::error::{MlError, Result};

/// A table `[entries, hidden]`.
#[derive(Clone)]
pub struct Embedding {
    /// The table.
    pub weight: Param,
}

impl Embedding {
    /// The rows `ids` of the table, `[ids, hidden]`.
    ///
    /// # Errors
    /// If an id lies outside the table.
    pub fn forward(&self, ids: &[u32], ctx: &Ctx) -> Result<Tensor> {
        let (entries, dim) = self.weight.value.dims2()?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= entries) {
            return Err(MlError::Format(format!(
                "{} has {entries} rows, but row {id} is asked for: the tokenizer does not fit the model",
                self.weight.name
            )));
        }
        match ctx.kernels {
            Kernels::Native => {
                let mut y = vec![0f32; ids.len() * dim];
                gather(&F32View::new(&self.weight.value)?, dim, ids, &mut y, false);
                Ok(Tensor::from_vec(y, (ids.len(), dim), self.weight.value.device())?)
            }
            Kernels::Composed => Ok(self.weight.value.index_select(&self.index(ids)?, 0)?),
        }
    }

    /// Adds dy `[ids, hidden]` to the gradient of the rows `ids`.
    pub fn backward(&self, dy: &Tensor, ids: &[u32], ctx: &Ctx) -> Result<()> {
        let Some(slot) = self.weight.slot else { return Ok(()) };
        let dim = dy.dim(1)?;
        match ctx.kernels {
            Kernels::Native => {
                let dys = F32View::new(dy)?;
                ctx.add_grad(slot, |g| scatter_add(&dys, dim, ids, g))?;
            }
            Kernels::Composed => ctx.add_grad_tensor(slot, &self.weight.value.zeros_like()?.index_add(&self.index(ids)?, dy, 0)?)?,
        }
        Ok(())
    }

    fn index(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(ids, ids.len(), self.weight.value.device())?)
    }
}
