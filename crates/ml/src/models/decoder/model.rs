//! The decoder: embedding, blocks, last norm and output layer, for training and for serving with a cache.

use candle_core::Tensor;
use tunesmith_ops::elementwise::scale;
use tunesmith_ops::matmul::Precision;

use super::block::{Block, LINEARS_PER_BLOCK, Norm};
use super::config::DecoderConfig;
use crate::error::Result;
use crate::models::BackwardPlan;
use crate::nn::{Adapter, Ctx, Dropout, Embedding, Kernels, Linear, Param, RopeTable, add, with_f32_mut};

/// A causal language model.
pub struct Decoder {
    /// The configuration.
    pub config: DecoderConfig,
    pub(super) embedding: Embedding,
    /// GPT-2's table of positions.
    pub(super) positions: Option<Embedding>,
    pub(super) embed_dropout: Dropout,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// The output layer; where it is the embedding, it holds the same weight.
    pub(super) output: Linear,
}

impl Decoder {
    /// The plan of a pass that trains what has a slot, in the decoder or in `adapter`.
    pub fn backward_plan(&mut self, adapter: &Adapter, checkpointing: bool) -> Result<BackwardPlan> {
        let mut trained = vec![false; self.blocks.len() + 1];
        trained[0] = [Some(&self.embedding), self.positions.as_ref()].into_iter().flatten().any(|e| e.weight.slot.is_some());
        for (i, block) in self.blocks.iter().enumerate() {
            trained[i + 1] = block.params().any(|p| p.slot.is_some())
                || (0..LINEARS_PER_BLOCK).any(|j| adapter.layer(LINEARS_PER_BLOCK * i + j).is_some());
        }
        Ok(BackwardPlan { first: trained.iter().position(|t| *t).unwrap_or(trained.len()), checkpointing })
    }

    fn ropes(&self, ctx: &Ctx) -> Vec<RopeTable> {
        self.config.ropes.iter().map(|r| r.table(&ctx.batch.positions)).collect()
    }

    /// Hidden states `[tokens, hidden]` of the context's batch, before the last norm.
    pub fn forward(&self, ctx: &mut Ctx, plan: BackwardPlan) -> Result<Tensor> {
        let ropes = self.ropes(ctx);
        let mut x = if plan.first == 0 { self.embed(ctx)? } else { ctx.paused(|ctx| self.embed(ctx))? };
        for (i, block) in self.blocks.iter().enumerate() {
            x = if i + 1 < plan.first {
                ctx.paused(|ctx| block.forward(&x, &ropes, ctx))?
            } else if plan.checkpointing {
                ctx.push(&x);
                ctx.paused(|ctx| block.forward(&x, &ropes, ctx))?
            } else {
                block.forward(&x, &ropes, ctx)?
            };
        }
        Ok(x)
    }

    /// Adds to the gradients of everything at or above the plan's first stage. dy is `[tokens, hidden]`.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx, plan: BackwardPlan) -> Result<()> {
        let ropes = self.ropes(ctx);
        let mut dy = dy.clone();
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let stage = i + 1;
            if stage < plan.first {
                return Ok(());
            }
            if plan.checkpointing {
                let x = ctx.pop()?;
                block.forward(&x, &ropes, ctx)?;
            }
            match block.backward(&dy, &ropes, ctx, stage > plan.first)? {
                Some(dx) => dy = dx,
                None => return Ok(()),
            }
        }
        if plan.first == 0 { self.embed_backward(&dy, ctx) } else { Ok(()) }
    }

    fn embed(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let batch = ctx.batch;
        let mut x = self.embedding.forward(&batch.ids, ctx)?;
        x = self.scaled(x, ctx.kernels)?;
        if let Some(positions) = &self.positions {
            x = add(x, &positions.forward(&batch.positions, ctx)?, ctx.kernels)?;
        }
        self.embed_dropout.apply(x, &batch.row_ids, ctx)
    }

    fn scaled(&self, x: Tensor, kernels: Kernels) -> Result<Tensor> {
        let factor = self.config.embed_scale;
        match kernels {
            _ if factor == 1.0 => Ok(x),
            Kernels::Native => {
                with_f32_mut(&x, |x| scale(x, factor))?;
                Ok(x)
            }
            Kernels::Composed => Ok((x * f64::from(factor))?),
        }
    }

    fn embed_backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<()> {
        let batch = ctx.batch;
        let mut dx = self.embed_dropout.backward(dy, &batch.row_ids, ctx)?;
        if let Some(positions) = &self.positions {
            positions.backward(&dx, &batch.positions, ctx)?;
        }
        if self.config.embed_scale != 1.0 {
            dx = self.scaled(dx.copy()?, ctx.kernels)?;
        }
        self.embedding.backward(&dx, &batch.ids, ctx)
    }

    /// The last norm of some rows of the hidden states: `[rows, hidden]` → the same shape.
    pub fn last_norm(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        self.norm.forward(x, ctx)
    }

    /// The gradient of [`Self::last_norm`].
    pub fn last_norm_backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        self.norm.backward(dy, ctx)
    }

    /// The output layer: normed rows `[rows, hidden]` → logits `[rows, vocab]`, not capped yet.
    pub fn output(&self) -> &Linear {
        &self.output
    }

    /// Logits `[rows, vocab]` of some rows of the hidden states, without a tape.
    pub fn logits(&self, hidden: &Tensor, rows: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let rows = Tensor::from_slice(rows, rows.len(), hidden.device())?;
        let x = hidden.index_select(&rows, 0)?;
        ctx.paused(|ctx| {
            let logits = self.output.forward(&self.norm.forward(&x, ctx)?, ctx)?;
            match (self.config.final_softcap, ctx.kernels) {
                (None, _) => Ok(logits),
                (Some(cap), Kernels::Native) => {
                    with_f32_mut(&logits, |x| tunesmith_ops::elementwise::softcap(x, cap))?;
                    Ok(logits)
                }
                (Some(cap), Kernels::Composed) => Ok(((logits / f64::from(cap))?.tanh()? * f64::from(cap))?),
            }
        })
    }

    /// Shows each parameter to `f`, always in the same order; a tied output layer not again.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        f(&mut self.embedding.weight)?;
        if let Some(positions) = &mut self.positions {
            f(&mut positions.weight)?;
        }
        self.blocks.iter_mut().try_for_each(|b| b.visit(f))?;
        self.norm.visit(f)?;
        if self.config.tied {
            // Whatever happened to the embedding has happened to the output layer.
            self.output.weight.value = self.embedding.weight.value.clone();
            self.output.weight.slot = self.embedding.weight.slot;
            Ok(())
        } else {
            self.output.visit(f)
        }
    }

    /// Every parameter, frozen or trained; a tied output layer not again.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let embeddings = [Some(&self.embedding), self.positions.as_ref()];
        let output = (!self.config.tied).then_some(&self.output.weight);
        embeddings
            .into_iter()
            .flatten()
            .map(|e| &e.weight)
            .chain(self.blocks.iter().flat_map(Block::params))
            .chain(self.norm.params())
            .chain(output)
    }

    /// Every linear layer of the blocks, in the order of their numbers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// Packs every linear layer for our kernels.
    pub fn pack(&mut self, precision: Precision, backward: bool) -> Result<()> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).try_for_each(|l| l.pack(precision, backward))?;
        self.output.pack(precision, backward)
    }

    /// Packs every linear layer whose weight training leaves as it is, see [`Linear::pack_frozen`]; a tied output layer is the embedding,
    /// which stays plain.
    pub fn pack_frozen(&mut self) -> Result<()> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).try_for_each(Linear::pack_frozen)?;
        if self.config.tied { Ok(()) } else { self.output.pack_frozen() }
    }

    /// Bytes of all weights, packed and plain.
    pub fn bytes(&self) -> usize {
        let output = self.output.packed_bytes();
        // A tied output layer in the file's form is the embedding itself.
        let embedding = if self.config.tied { 0 } else { self.embedding.packed_bytes() };
        let packed = self.linears().map(Linear::packed_bytes).sum::<usize>() + output + embedding;
        self.params().map(|p| p.value.elem_count() * 4).sum::<usize>() + packed
    }
}
