//! Embedding tables: rows gathered by id, and their gradients added back.
//!
//! In serving a table may stay as its file has it, in the blocks of a GGUF file or in bf16; a tied output layer then holds the same memory.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tunesmith_ops::embedding::{gather, scatter_add};
use tunesmith_ops::matmul::Packed;
use tunesmith_ops::quant::QuantPacked;

use super::ctx::{Ctx, Kernels};
use super::params::Param;
use super::view::F32View;
use crate::error::{MlError, Result};

/// A table `[entries, hidden]`.
#[derive(Clone)]
pub struct Embedding {
    /// The table; empty where it is kept in another form.
    pub weight: Param,
    kept: Option<Kept>,
}

/// A table for serving in the form that its file has.
#[derive(Clone)]
enum Kept {
    Blocks(Arc<QuantPacked>),
    Halves(Arc<Packed>),
}

impl Embedding {
    /// A table in f32.
    pub fn new(weight: Param) -> Self {
        Self { weight, kept: None }
    }

    /// A table that keeps the blocks of its file, for serving.
    ///
    /// # Errors
    /// If candle cannot make an empty tensor.
    pub fn quantised(name: &str, table: Arc<QuantPacked>) -> Result<Self> {
        Self::kept(name, Kept::Blocks(table))
    }

    /// A table that stays in bf16, for serving; `table` is in halves.
    ///
    /// # Errors
    /// If candle cannot make an empty tensor.
    pub fn halves(name: &str, table: Arc<Packed>) -> Result<Self> {
        Self::kept(name, Kept::Halves(table))
    }

    fn kept(name: &str, table: Kept) -> Result<Self> {
        Ok(Self { weight: Param::new(name, Tensor::zeros(0, DType::F32, &Device::Cpu)?), kept: Some(table) })
    }

    /// Bytes of what it keeps in another form.
    pub fn packed_bytes(&self) -> usize {
        match &self.kept {
            None => 0,
            Some(Kept::Blocks(table)) => table.bytes(),
            Some(Kept::Halves(table)) => table.bytes(),
        }
    }

    /// The rows `ids` of the table, `[ids, hidden]`.
    ///
    /// # Errors
    /// If an id lies outside the table.
    pub fn forward(&self, ids: &[u32], ctx: &Ctx) -> Result<Tensor> {
        let (entries, dim) = match &self.kept {
            Some(Kept::Blocks(table)) => (table.n(), table.k()),
            Some(Kept::Halves(table)) => (table.n(), table.k()),
            None => self.weight.value.dims2()?,
        };
        if let Some(id) = ids.iter().find(|&&id| id as usize >= entries) {
            return Err(MlError::Format(format!(
                "{} has {entries} rows, but row {id} is asked for: the tokenizer does not fit the model",
                self.weight.name
            )));
        }
        if let Some(kept) = &self.kept {
            let mut y = vec![0f32; ids.len() * dim];
            y.chunks_exact_mut(dim).zip(ids).for_each(|(y, id)| match kept {
                Kept::Blocks(table) => table.row(*id as usize, y),
                Kept::Halves(table) => table.row(*id as usize, y),
            });
            return Ok(Tensor::from_vec(y, (ids.len(), dim), &Device::Cpu)?);
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
