//! The encoder: embeddings and post-norm blocks, for all three families.

use candle_core::Tensor;
use tunesmith_ops::matmul::Precision;

use super::config::EncoderConfig;
use crate::error::Result;
use crate::nn::{Act, Adapter, Attention, Ctx, Dropout, Embedding, InputGrad, LayerNorm, Linear, Param, add};

/// Linear layers in a block; layer `j` of block `i` has number `LINEARS_PER_BLOCK * i + j`.
pub(super) const LINEARS_PER_BLOCK: usize = 6;

/// Embeddings and blocks.
pub struct Encoder {
    /// The configuration.
    pub config: EncoderConfig,
    pub(super) word: Embedding,
    pub(super) position: Embedding,
    pub(super) token_type: Option<Embedding>,
    pub(super) norm: LayerNorm,
    pub(super) dropout: Dropout,
    pub(super) blocks: Vec<Block>,
}

/// One post-norm transformer block.
pub(super) struct Block {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub attention: Attention,
    pub attention_out: Linear,
    pub attention_dropout: Dropout,
    pub attention_norm: LayerNorm,
    pub up: Linear,
    pub act: Act,
    pub down: Linear,
    pub down_dropout: Dropout,
    pub out_norm: LayerNorm,
}

/// Which part of the encoder takes part in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardPlan {
    /// The lowest stage with something to train: 0 the embeddings, `1 + i` block `i`, `1 + layers` none.
    pub first: usize,
    /// Keep only each block's input, and run the block again in the backward pass (Chen et al. 2016).
    pub checkpointing: bool,
}

impl Encoder {
    /// The plan of a pass that trains what has a slot, in the encoder or in `adapter`.
    pub fn backward_plan(&mut self, adapter: &Adapter, checkpointing: bool) -> Result<BackwardPlan> {
        let mut trained = vec![false; self.blocks.len() + 1];
        self.visit_embeddings(&mut |p| {
            trained[0] |= p.slot.is_some();
            Ok(())
        })?;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.visit(&mut |p| {
                trained[i + 1] |= p.slot.is_some();
                Ok(())
            })?;
            trained[i + 1] |= (0..LINEARS_PER_BLOCK).any(|j| adapter.layer(LINEARS_PER_BLOCK * i + j).is_some());
        }
        Ok(BackwardPlan { first: trained.iter().position(|t| *t).unwrap_or(trained.len()), checkpointing })
    }

    /// Hidden states `[tokens, hidden]` of the context's batch.
    pub fn forward(&self, ctx: &mut Ctx, plan: BackwardPlan) -> Result<Tensor> {
        let mut x = if plan.first == 0 { self.embed(ctx)? } else { ctx.paused(|ctx| self.embed(ctx))? };
        for (i, block) in self.blocks.iter().enumerate() {
            x = if i + 1 < plan.first {
                ctx.paused(|ctx| block.forward(&x, ctx))?
            } else if plan.checkpointing {
                ctx.push(&x);
                ctx.paused(|ctx| block.forward(&x, ctx))?
            } else {
                block.forward(&x, ctx)?
            };
        }
        Ok(x)
    }

    /// Adds to the gradients of everything at or above the plan's first stage. dy is `[tokens, hidden]`.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx, plan: BackwardPlan) -> Result<()> {
        let mut dy = dy.clone();
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let stage = i + 1;
            if stage < plan.first {
                return Ok(());
            }
            if plan.checkpointing {
                let x = ctx.pop()?;
                block.forward(&x, ctx)?;
            }
            match block.backward(&dy, ctx, stage > plan.first)? {
                Some(dx) => dy = dx,
                None => return Ok(()),
            }
        }
        if plan.first == 0 { self.embed_backward(dy, ctx) } else { Ok(()) }
    }

    fn embed(&self, ctx: &mut Ctx) -> Result<Tensor> {
        let batch = ctx.batch;
        let mut x = self.word.forward(&batch.ids, ctx)?;
        if let Some(token_type) = &self.token_type {
            x = add(x, &token_type.forward(&batch.type_ids, ctx)?, ctx.kernels)?;
        }
        x = add(x, &self.position.forward(&batch.positions, ctx)?, ctx.kernels)?;
        let x = self.norm.forward(&x, ctx)?;
        self.dropout.apply(x, &batch.row_ids, ctx)
    }

    fn embed_backward(&self, dy: Tensor, ctx: &mut Ctx) -> Result<()> {
        let batch = ctx.batch;
        let dy = self.dropout.backward(&dy, &batch.row_ids, ctx)?;
        let dx = self.norm.backward(&dy, ctx)?;
        self.position.backward(&dx, &batch.positions, ctx)?;
        if let Some(token_type) = &self.token_type {
            token_type.backward(&dx, &batch.type_ids, ctx)?;
        }
        self.word.backward(&dx, &batch.ids, ctx)
    }

    fn visit_embeddings(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        f(&mut self.word.weight)?;
        f(&mut self.position.weight)?;
        if let Some(t) = &mut self.token_type {
            f(&mut t.weight)?;
        }
        self.norm.visit(f)
    }

    /// Shows each parameter to `f`, always in the same order.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        self.visit_embeddings(f)?;
        self.blocks.iter_mut().try_for_each(|b| b.visit(f))
    }

    /// Every parameter, frozen or trained.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let embeddings = [Some(&self.word), Some(&self.position), self.token_type.as_ref()];
        let norm = [&self.norm.weight, &self.norm.bias];
        embeddings.into_iter().flatten().map(|e| &e.weight).chain(norm).chain(self.blocks.iter().flat_map(Block::params))
    }

    /// Every linear layer, in the order of their numbers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears)
    }

    /// Packs every linear layer for our kernels.
    pub fn pack(&mut self, precision: Precision, backward: bool) -> Result<()> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).try_for_each(|l| l.pack(precision, backward))
    }

    /// Packs every linear layer whose weight training leaves as it is, see [`Linear::pack_frozen`].
    pub fn pack_frozen(&mut self) -> Result<()> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).try_for_each(Linear::pack_frozen)
    }

    /// Rounds every linear layer to int8, to serve.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn pack_int8(&mut self) -> Result<()> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).try_for_each(Linear::pack_int8)
    }

    /// Bytes of all weights, packed and plain.
    pub fn bytes(&self) -> usize {
        self.params().map(|p| p.value.elem_count() * 4).sum::<usize>() + self.linears().map(Linear::packed_bytes).sum::<usize>()
    }
}

impl Block {
    fn forward(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let (kernels, row_ids) = (ctx.kernels, &ctx.batch.row_ids);
        let q = self.query.forward(x, ctx)?;
        let k = self.key.forward(x, ctx)?;
        let v = self.value.forward(x, ctx)?;
        let mixed = self.attention.forward(&q, &k, &v, ctx)?;
        let y = self.attention_dropout.apply(self.attention_out.forward(&mixed, ctx)?, row_ids, ctx)?;
        let h = self.attention_norm.forward(&add(y, x, kernels)?, ctx)?;
        let activated = self.up.forward_activated(&h, self.act, ctx)?;
        let y = self.down_dropout.apply(self.down.forward(&activated, ctx)?, row_ids, ctx)?;
        self.out_norm.forward(&add(y, &h, kernels)?, ctx)
    }

    fn backward(&self, dy: &Tensor, ctx: &mut Ctx, need_dx: bool) -> Result<Option<Tensor>> {
        let row_ids = &ctx.batch.row_ids;
        let d_sum = self.out_norm.backward(dy, ctx)?;
        let d_down = self.down_dropout.backward(&d_sum, row_ids, ctx)?;
        let d_act = input_grad(self.down.backward(&d_down, ctx, true)?)?;
        let d_up = self.act.backward(&d_act, ctx)?;
        let dh = input_grad(self.up.backward_onto(&d_up, ctx, InputGrad::AddedTo(d_sum))?)?;
        let d_sum = self.attention_norm.backward(&dh, ctx)?;
        let d_out = self.attention_dropout.backward(&d_sum, row_ids, ctx)?;
        let d_mixed = input_grad(self.attention_out.backward(&d_out, ctx, true)?)?;
        let [dq, dk, dv] = self.attention.backward(&d_mixed, ctx)?;
        let mut dx = need_dx.then_some(d_sum);
        for (layer, d) in [(&self.value, &dv), (&self.key, &dk), (&self.query, &dq)] {
            let below = dx.map_or(InputGrad::Unwanted, InputGrad::AddedTo);
            dx = layer.backward_onto(d, ctx, below)?;
        }
        Ok(dx)
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        for linear in [&mut self.query, &mut self.key, &mut self.value, &mut self.attention_out] {
            linear.visit(f)?;
        }
        self.attention_norm.visit(f)?;
        self.up.visit(f)?;
        self.down.visit(f)?;
        self.out_norm.visit(f)
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = [&self.attention_norm, &self.out_norm].into_iter().flat_map(|n| [&n.weight, &n.bias]);
        self.linears().into_iter().flat_map(|l| [Some(&l.weight), l.bias.as_ref()]).flatten().chain(norms)
    }

    fn linears(&self) -> [&Linear; LINEARS_PER_BLOCK] {
        [&self.query, &self.key, &self.value, &self.attention_out, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; LINEARS_PER_BLOCK] {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.attention_out, &mut self.up, &mut self.down]
    }
}

fn input_grad(dx: Option<Tensor>) -> Result<Tensor> {
    dx.ok_or_else(|| crate::error::MlError::Format("a layer gave no gradient of its input".to_owned()))
}
