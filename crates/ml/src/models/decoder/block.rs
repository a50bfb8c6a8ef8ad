//! One pre-norm transformer block: attention and feed-forward layer, each with a residual sum around it.
//!
//! What norms and gates give is not kept for the backward pass but computed again there: a third of the activations, for a hundredth of
//! the time.

use candle_core::Tensor;

use crate::error::{MlError, Result};
use crate::nn::{Act, Attention, Ctx, Dropout, Gated, InputGrad, LayerNorm, Linear, Param, RmsNorm, RopeTable, add};

/// Linear layers in a block; layer `j` of block `i` has number `LINEARS_PER_BLOCK * i + j`.
pub(super) const LINEARS_PER_BLOCK: usize = 7;

/// A norm of either kind.
#[derive(Clone)]
pub(super) enum Norm {
    /// GPT-2's.
    Layer(LayerNorm),
    /// Everybody else's.
    Rms(RmsNorm),
}

impl Norm {
    pub fn forward(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x, ctx),
            Self::Rms(norm) => norm.forward(x, ctx),
        }
    }

    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.backward(dy, ctx),
            Self::Rms(norm) => norm.backward(dy, ctx),
        }
    }

    /// What the last forward pass on the tape gave.
    pub fn again(&self, ctx: &mut Ctx) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.again(ctx),
            Self::Rms(norm) => norm.again(ctx),
        }
    }

    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        match self {
            Self::Layer(norm) => norm.visit(f),
            Self::Rms(norm) => f(&mut norm.weight),
        }
    }

    pub fn params(&self) -> impl Iterator<Item = &Param> {
        match self {
            Self::Layer(norm) => [Some(&norm.weight), Some(&norm.bias)],
            Self::Rms(norm) => [Some(&norm.weight), None],
        }
        .into_iter()
        .flatten()
    }
}

/// The projections of queries, keys and values.
pub(super) enum Qkv {
    /// GPT-2's one layer for all three.
    Fused(Linear),
    /// One layer each.
    Split(Box<[Linear; 3]>),
}

/// The feed-forward layer.
pub(super) enum FeedForward {
    /// Up, activation, down.
    Plain { up: Linear, act: Act, down: Linear },
    /// Gate and up, their product, down.
    Gated { gate: Linear, up: Linear, act: Gated, down: Linear },
}

/// One block.
pub(super) struct Block {
    pub norm: Norm,
    pub qkv: Qkv,
    /// Norms of each query and key head.
    pub qk_norm: Option<[RmsNorm; 2]>,
    /// Which of the model's ropes turns queries and keys.
    pub rope: usize,
    pub attention: Attention,
    pub out: Linear,
    pub out_dropout: Dropout,
    /// Gemma's norm behind the attention.
    pub out_norm: Option<Norm>,
    pub feed_forward_norm: Norm,
    pub feed_forward: FeedForward,
    pub down_dropout: Dropout,
    /// Gemma's norm behind the feed-forward layer.
    pub down_norm: Option<Norm>,
}

fn no_dx() -> MlError {
    MlError::Format("a layer gave no gradient of its input".to_owned())
}

impl Block {
    /// x `[tokens, hidden]` → y of the same shape.
    pub fn forward(&self, x: &Tensor, ropes: &[RopeTable], ctx: &mut Ctx) -> Result<Tensor> {
        let kernels = ctx.kernels;
        let h = self.norm.forward(x, ctx)?;
        let mixed = self.attend(&h, ropes, ctx)?;
        let mut y = self.out.forward(&mixed, ctx)?;
        y = self.out_dropout.apply(y, &ctx.batch.row_ids, ctx)?;
        if let Some(norm) = &self.out_norm {
            y = norm.forward(&y, ctx)?;
        }
        let x = add(y, x, kernels)?;
        let h = self.feed_forward_norm.forward(&x, ctx)?;
        let mut y = match &self.feed_forward {
            FeedForward::Plain { up, act, down } => {
                let up = up.forward_unsaved(&h, ctx)?;
                let activated = act.forward(&up, ctx)?;
                down.forward_unsaved(&activated, ctx)?
            }
            FeedForward::Gated { gate, up, act, down } => {
                let [gate, up] = Linear::forward_unsaved_each([gate, up], &h, ctx)?;
                let product = act.forward(&gate, &up, ctx)?;
                down.forward_unsaved(&product, ctx)?
            }
        };
        y = self.down_dropout.apply(y, &ctx.batch.row_ids, ctx)?;
        if let Some(norm) = &self.down_norm {
            y = norm.forward(&y, ctx)?;
        }
        add(y, &x, kernels)
    }

    fn attend(&self, h: &Tensor, ropes: &[RopeTable], ctx: &mut Ctx) -> Result<Tensor> {
        let (kernels, dim) = (ctx.kernels, self.attention.head_dim);
        let (mut q, mut k, v) = match &self.qkv {
            Qkv::Split(layers) => {
                let [q, k, v] = &**layers;
                Linear::forward_unsaved_each([q, k, v], h, ctx)?.into()
            }
            Qkv::Fused(all) => {
                let all = all.forward_unsaved(h, ctx)?;
                let width = self.attention.heads * dim;
                let part = |i: usize| Ok::<_, MlError>(all.narrow(1, i * width, width)?.contiguous()?);
                (part(0)?, part(1)?, part(2)?)
            }
        };
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            q = q_norm.forward(&q, ctx)?;
            k = k_norm.forward(&k, ctx)?;
        }
        if let Some(table) = ropes.get(self.rope) {
            q = table.apply(q, dim, false, kernels)?;
            k = table.apply(k, dim, false, kernels)?;
        }
        self.attention.forward(&q, &k, &v, ctx)
    }

    /// dx from dy, or nothing where `need_dx` is false; adds to the gradients of what is trained.
    pub fn backward(&self, dy: &Tensor, ropes: &[RopeTable], ctx: &mut Ctx, need_dx: bool) -> Result<Option<Tensor>> {
        let (kernels, row_ids) = (ctx.kernels, &ctx.batch.row_ids);
        let mut d = match &self.down_norm {
            Some(norm) => norm.backward(dy, ctx)?,
            None => dy.clone(),
        };
        d = self.down_dropout.backward(&d, row_ids, ctx)?;
        let h = self.feed_forward_norm.again(ctx)?;
        let dh = match &self.feed_forward {
            FeedForward::Plain { up, act, down } => {
                let d = down.backward_from(&d, ctx, InputGrad::New, |ctx| act.again(ctx))?.ok_or_else(no_dx)?;
                let d = act.backward(&d, ctx)?;
                up.backward_from(&d, ctx, InputGrad::New, |_| Ok(h))?.ok_or_else(no_dx)?
            }
            FeedForward::Gated { gate, up, act, down } => {
                let d = down.backward_from(&d, ctx, InputGrad::New, |ctx| act.again(ctx))?.ok_or_else(no_dx)?;
                let (dgate, dup) = act.backward(&d, ctx)?;
                let dh = up.backward_from(&dup, ctx, InputGrad::New, |_| Ok(h.clone()))?.ok_or_else(no_dx)?;
                gate.backward_from(&dgate, ctx, InputGrad::AddedTo(dh), |_| Ok(h))?.ok_or_else(no_dx)?
            }
        };
        let dx = add(self.feed_forward_norm.backward(&dh, ctx)?, dy, kernels)?;
        let mut d = match &self.out_norm {
            Some(norm) => norm.backward(&dx, ctx)?,
            None => dx.clone(),
        };
        d = self.out_dropout.backward(&d, row_ids, ctx)?;
        let dmixed = self.out.backward(&d, ctx, true)?.ok_or_else(no_dx)?;
        // Even where nothing below is trained, this block's own norm may be.
        let dh = self.attend_backward(&dmixed, ropes, ctx)?;
        let below = self.norm.backward(&dh, ctx)?;
        if need_dx { Ok(Some(add(below, &dx, kernels)?)) } else { Ok(None) }
    }

    fn attend_backward(&self, dmixed: &Tensor, ropes: &[RopeTable], ctx: &mut Ctx) -> Result<Tensor> {
        let (kernels, dim) = (ctx.kernels, self.attention.head_dim);
        let [mut dq, mut dk, dv] = self.attention.backward(dmixed, ctx)?;
        if let Some(table) = ropes.get(self.rope) {
            dk = table.apply(dk, dim, true, kernels)?;
            dq = table.apply(dq, dim, true, kernels)?;
        }
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            dk = k_norm.backward(&dk, ctx)?;
            dq = q_norm.backward(&dq, ctx)?;
        }
        let h = self.norm.again(ctx)?;
        match &self.qkv {
            Qkv::Split(layers) => {
                let [q, k, v] = &**layers;
                let d = v.backward_from(&dv, ctx, InputGrad::New, |_| Ok(h.clone()))?.ok_or_else(no_dx)?;
                let d = k.backward_from(&dk, ctx, InputGrad::AddedTo(d), |_| Ok(h.clone()))?.ok_or_else(no_dx)?;
                q.backward_from(&dq, ctx, InputGrad::AddedTo(d), |_| Ok(h))?.ok_or_else(no_dx)
            }
            Qkv::Fused(all) => {
                let d = Tensor::cat(&[dq, dk, dv], 1)?.contiguous()?;
                all.backward_from(&d, ctx, InputGrad::New, |_| Ok(h))?.ok_or_else(no_dx)
            }
        }
    }

    /// Shows each parameter to `f`, always in the same order.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        self.norm.visit(f)?;
        self.linears_mut().into_iter().try_for_each(|l| l.visit(f))?;
        for norm in self.qk_norm.iter_mut().flatten() {
            f(&mut norm.weight)?;
        }
        for norm in [self.out_norm.as_mut(), Some(&mut self.feed_forward_norm), self.down_norm.as_mut()].into_iter().flatten() {
            norm.visit(f)?;
        }
        Ok(())
    }

    /// Every parameter, frozen or trained.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let norms = [Some(&self.norm), self.out_norm.as_ref(), Some(&self.feed_forward_norm), self.down_norm.as_ref()];
        let linears = self.linears().into_iter().flat_map(|l| [Some(&l.weight), l.bias.as_ref()]).flatten();
        let heads = self.qk_norm.iter().flatten().map(|n| &n.weight);
        linears.chain(heads).chain(norms.into_iter().flatten().flat_map(Norm::params))
    }

    /// The linear layers in the order of their numbers.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut all: Vec<&Linear> = match &self.qkv {
            Qkv::Fused(layer) => vec![layer],
            Qkv::Split(layers) => layers.iter().collect(),
        };
        all.push(&self.out);
        match &self.feed_forward {
            FeedForward::Plain { up, down, .. } => all.extend([up, down]),
            FeedForward::Gated { gate, up, down, .. } => all.extend([gate, up, down]),
        }
        all
    }

    /// The linear layers in the order of their numbers.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all: Vec<&mut Linear> = match &mut self.qkv {
            Qkv::Fused(layer) => vec![layer],
            Qkv::Split(layers) => layers.iter_mut().collect(),
        };
        all.push(&mut self.out);
        match &mut self.feed_forward {
            FeedForward::Plain { up, down, .. } => all.extend([up, down]),
            FeedForward::Gated { gate, up, down, .. } => all.extend([gate, up, down]),
        }
        all
    }
}
