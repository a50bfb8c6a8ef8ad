//! Linear layers: `y = x·Wᵀ + b`, and `+ s·B(Ax)` on the rows of the LoRA route.
//!
//! In training the weight stays as it is, and products pack pieces of it on their way; a frozen one in bf16 is packed once for either
//! direction. In serving it is packed once, or has kept the blocks of its GGUF file.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tunesmith_ops::activation::Activation;
use tunesmith_ops::elementwise::column_sums;
use tunesmith_ops::matmul::{
    Each, Epilogue, Layout, Packed, Plain, Precision, Update, add_each, matmul, matmul_new, matmul_plain, matmul_plain_new, matmul_tn,
};
use tunesmith_ops::quant::{QuantKind, QuantPacked, quant_matmul_new};

use super::activation::Act;
use super::ctx::{Ctx, Kernels, LoraRange, Mode};
use super::lora::LoraLayer;
use super::params::Param;
use super::view::{F32View, with_f32_mut};
use crate::error::{MlError, Result};

/// A linear layer with weight `[out, in]` as Hugging Face stores it.
#[derive(Clone)]
pub struct Linear {
    /// Number of the layer in its model: LoRA adapters find their update by it.
    pub id: usize,
    /// `[out, in]`; empty once it is packed for serving or frozen, and where it is quantised.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    out_features: usize,
    in_features: usize,
    held: Held,
}

/// What products read.
#[derive(Clone)]
enum Held {
    /// Nothing yet.
    Unprepared,
    /// The weight itself, in this precision.
    Plain(Precision),
    /// The weight packed for serving.
    Packed(Arc<Packed>),
    /// The weight packed for training that does not change it: for y and for dx.
    Frozen(Arc<[Packed; 2]>),
    /// The blocks of a GGUF file.
    Quantised(Arc<QuantPacked>),
}

/// What becomes of the gradient of a layer's input.
pub enum InputGrad {
    /// Nobody wants it.
    Unwanted,
    /// It stands alone.
    New,
    /// It is added to another, in whose memory nothing else may be interested.
    AddedTo(Tensor),
}

/// Whether rows of this pass may have adapters of their own.
fn serves_several(ctx: &Ctx) -> bool {
    matches!((ctx.kernels, ctx.mode, ctx.route), (Kernels::Native, Mode::Eval, [_, _, ..])) && !ctx.recording()
}

impl Linear {
    /// A layer with number `id`.
    ///
    /// # Errors
    /// If the weight has not two dimensions.
    pub fn new(id: usize, weight: Param, bias: Option<Param>) -> Result<Self> {
        let (out_features, in_features) = weight.value.dims2()?;
        Ok(Self { id, weight, bias, out_features, in_features, held: Held::Unprepared })
    }

    /// A layer that keeps the blocks of its file: it answers on the CPU, and cannot be trained.
    ///
    /// # Errors
    /// If candle cannot make an empty tensor.
    pub fn quantised(id: usize, name: &str, weight: Arc<QuantPacked>, bias: Option<Param>) -> Result<Self> {
        let (out_features, in_features) = (weight.n(), weight.k());
        let empty = Param::new(name, Tensor::zeros(0, DType::F32, &Device::Cpu)?);
        Ok(Self { id, weight: empty, bias, out_features, in_features, held: Held::Quantised(weight) })
    }

    /// Hugging Face's name of the module: the weight's without `.weight`.
    pub fn name(&self) -> &str {
        self.weight.name.trim_end_matches(".weight")
    }

    /// `(out_features, in_features)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// Shows each parameter to `f`.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        f(&mut self.weight)?;
        self.bias.as_mut().map_or(Ok(()), f)
    }

    /// Prepares the weight for our kernels. To train, it stays as it is; to serve, it is packed once and its plain copy released.
    pub fn pack(&mut self, precision: Precision, backward: bool) -> Result<()> {
        match self.held {
            Held::Quantised(_) | Held::Packed(_) | Held::Frozen(_) => return Ok(()),
            _ if backward => {
                self.held = Held::Plain(precision);
                return Ok(());
            }
            Held::Plain(_) | Held::Unprepared => {}
        }
        let packed = Packed::new(&F32View::new(&self.weight.value)?, self.out_features, self.in_features, Layout::RowMajor, precision);
        self.hold(packed)
    }

    /// Packs a weight that training leaves as it is, in bf16 for y and for dx, and releases the plain copy: the same memory, and the same
    /// results bit for bit, without packing in every pass. Nothing happens to a weight that is trained.
    pub fn pack_frozen(&mut self) -> Result<()> {
        if self.weight.slot.is_some() || !matches!(self.held, Held::Unprepared) {
            return Ok(());
        }
        let packs = {
            let w = F32View::new(&self.weight.value)?;
            let (out, input) = self.shape();
            [
                Packed::new(&w, out, input, Layout::RowMajor, Precision::Bf16),
                Packed::new(&w, input, out, Layout::Transposed, Precision::Bf16),
            ]
        };
        self.held = Held::Frozen(Arc::new(packs));
        self.release()
    }

    /// Packs the weight for serving in half its memory, where its file has it in bf16, and releases the plain copy: the answers have
    /// the bits that f32 would give them.
    pub fn pack_halves(&mut self) -> Result<()> {
        let packed = Packed::halves(&F32View::new(&self.weight.value)?, self.out_features, self.in_features, Layout::RowMajor);
        self.hold(packed)
    }

    /// Rounds the weight for serving to int8 with a scale for each 32 inputs, in a quarter of its memory; inputs are rounded in the
    /// same way. A width that is not whole blocks is packed in f32.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn pack_int8(&mut self) -> Result<()> {
        if !self.in_features.is_multiple_of(QuantKind::Q8_0.block()) {
            return self.pack(Precision::F32, false);
        }
        let rounded = QuantPacked::rounded(&F32View::new(&self.weight.value)?, self.out_features, self.in_features);
        let rounded = rounded.map_err(|e| MlError::Format(format!("{}: {e}", self.weight.name)))?;
        self.held = Held::Quantised(Arc::new(rounded));
        self.release()
    }

    /// Takes the packed weight in place of the plain one.
    fn hold(&mut self, packed: Packed) -> Result<()> {
        self.held = Held::Packed(Arc::new(packed));
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        self.weight.value = Tensor::zeros(0, self.weight.value.dtype(), self.weight.value.device())?;
        Ok(())
    }

    /// The weight, where it is packed for serving.
    pub fn packed(&self) -> Option<&Arc<Packed>> {
        match &self.held {
            Held::Packed(weight) => Some(weight),
            Held::Unprepared | Held::Plain(_) | Held::Frozen(_) | Held::Quantised(_) => None,
        }
    }

    /// Bytes of the packed weight.
    pub fn packed_bytes(&self) -> usize {
        match &self.held {
            Held::Unprepared | Held::Plain(_) => 0,
            Held::Packed(weight) => weight.bytes(),
            Held::Frozen(packs) => packs.iter().map(Packed::bytes).sum(),
            Held::Quantised(weight) => weight.bytes(),
        }
    }

    /// Whether an adapter of this pass updates this layer.
    fn routed(&self, ctx: &Ctx) -> bool {
        ctx.route.iter().any(|r| r.adapter.layer(self.id).is_some())
    }

    /// x `[tokens, in]` → y `[tokens, out]`; saves x.
    pub fn forward(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        if self.weight.slot.is_some() || self.routed(ctx) {
            ctx.push(x);
        }
        self.forward_unsaved(x, ctx)
    }

    /// An activation of [`Self::forward`], to the same bits: one pass over y where nothing has to be kept for a backward pass.
    pub fn forward_activated(&self, x: &Tensor, act: Act, ctx: &mut Ctx) -> Result<Tensor> {
        if ctx.recording() || self.routed(ctx) || ctx.kernels == Kernels::Composed {
            return act.forward(&self.forward(x, ctx)?, ctx);
        }
        self.product(x, Some(act.0), ctx)
    }

    /// As [`Self::forward`], but x is not saved: the caller makes it again for [`Self::backward_from`].
    pub fn forward_unsaved(&self, x: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        self.product(x, None, ctx)
    }

    fn product(&self, x: &Tensor, activation: Option<Activation>, ctx: &mut Ctx) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        match ctx.kernels {
            Kernels::Native => {
                let xs = F32View::new(x)?;
                let whole = self.whole_update(ctx, tokens);
                let u = whole.map(|layer| layer.down(&xs, 0..tokens, ctx)).transpose()?;
                let update = whole.zip(u.as_deref()).map(|(layer, u)| layer.up(u)).transpose()?;
                let ep = Epilogue { update, activation, ..Epilogue::default() };
                let mut y = self.base(&xs, tokens, ep)?;
                match whole.zip(u) {
                    Some((layer, u)) => layer.save(u, ctx)?,
                    None if serves_several(ctx) => add_each(&mut self.updates(&xs, &mut y, ctx.route)?),
                    None => {
                        for range in ctx.route {
                            if let Some(layer) = range.adapter.layer(self.id) {
                                layer.forward_native(&xs, &mut y, range.rows.clone(), ctx)?;
                            }
                        }
                    }
                }
                Ok(Tensor::from_vec(y, (tokens, self.out_features), x.device())?)
            }
            Kernels::Composed => {
                let mut y = x.matmul(&self.weight.value.t()?)?;
                if let Some(bias) = &self.bias {
                    y = y.broadcast_add(&bias.value)?;
                }
                for range in ctx.route {
                    if let Some(layer) = range.adapter.layer(self.id) {
                        y = layer.forward_composed(x, &y, range.rows.clone(), ctx)?;
                    }
                }
                Ok(y)
            }
        }
    }

    /// The update of an adapter that all rows take, where products add it to what they write.
    fn whole_update<'a>(&self, ctx: &Ctx<'a>, tokens: usize) -> Option<&'a LoraLayer> {
        match (ctx.kernels, ctx.route, &self.held) {
            (Kernels::Composed, _, _) | (_, _, Held::Quantised(_)) => None,
            (Kernels::Native, [range], _) if range.rows == (0..tokens) => range.adapter.layer(self.id),
            _ => None,
        }
    }

    /// The product with the layer's own weight, and its bias.
    fn base(&self, xs: &[f32], tokens: usize, ep: Epilogue) -> Result<Vec<f32>> {
        let bias = self.bias.as_ref().map(|b| F32View::new(&b.value)).transpose()?;
        let ep = Epilogue { bias: bias.as_deref(), ..ep };
        Ok(match &self.held {
            Held::Quantised(weight) => quant_matmul_new(xs, tokens, weight, ep),
            Held::Packed(weight) => matmul_new(xs, tokens, weight, ep),
            Held::Frozen(packs) => matmul_new(xs, tokens, &packs[0], ep),
            Held::Plain(precision) => {
                let w = F32View::new(&self.weight.value)?;
                let w = Plain::new(&w, self.out_features, self.in_features, Layout::RowMajor, *precision);
                matmul_plain_new(xs, tokens, &w, ep)
            }
            Held::Unprepared => return Err(self.unprepared()),
        })
    }

    /// What the adapters of a pass add to this layer's y.
    fn updates<'a>(&self, xs: &'a [f32], y: &'a mut [f32], route: &'a [LoraRange]) -> Result<Vec<Each<'a>>> {
        let (mut rest, mut from, mut work) = (y, 0, Vec::with_capacity(route.len()));
        // Of a pass over some rows only, as the output layer's, the ranges tell nothing; but no adapter has such a layer.
        for (range, layer) in route.iter().filter_map(|range| Some((range, range.adapter.layer(self.id)?))) {
            let (_, here) = rest.split_at_mut((range.rows.start - from) * self.out_features);
            let (here, next) = here.split_at_mut(range.rows.len() * self.out_features);
            (rest, from) = (next, range.rows.end);
            work.push(layer.of_rows(&xs[range.rows.start * self.in_features..range.rows.end * self.in_features], here)?);
        }
        Ok(work)
    }

    /// As [`Self::forward_unsaved`] of layers that read the same x: what several adapters add to all of them is one task for the threads.
    pub fn forward_unsaved_each<const N: usize>(layers: [&Self; N], x: &Tensor, ctx: &mut Ctx) -> Result<[Tensor; N]> {
        let mut ys = Vec::with_capacity(N);
        if serves_several(ctx) {
            let (xs, tokens) = (F32View::new(x)?, x.dim(0)?);
            let mut values = Vec::with_capacity(N);
            for layer in layers {
                values.push(layer.base(&xs, tokens, Epilogue::default())?);
            }
            let mut work = Vec::new();
            for (layer, y) in layers.iter().zip(&mut values) {
                work.append(&mut layer.updates(&xs, y, ctx.route)?);
            }
            add_each(&mut work);
            for (layer, y) in layers.iter().zip(values) {
                ys.push(Tensor::from_vec(y, (tokens, layer.out_features), x.device())?);
            }
        } else {
            for layer in layers {
                ys.push(layer.forward_unsaved(x, ctx)?);
            }
        }
        ys.try_into().map_err(|_| MlError::Format("a layer gave no result".to_owned()))
    }

    /// dy `[tokens, out]` → dx `[tokens, in]`, or nothing where `need_dx` is false.
    pub fn backward(&self, dy: &Tensor, ctx: &mut Ctx, need_dx: bool) -> Result<Option<Tensor>> {
        self.backward_onto(dy, ctx, if need_dx { InputGrad::New } else { InputGrad::Unwanted })
    }

    /// As [`Self::backward`], where dx may be added to another gradient.
    pub fn backward_onto(&self, dy: &Tensor, ctx: &mut Ctx, dx: InputGrad) -> Result<Option<Tensor>> {
        self.backward_from(dy, ctx, dx, |ctx| Ok(ctx.pop()?))
    }

    /// The backward pass of [`Self::forward_unsaved`]: `x` gives what that was given, where it is needed.
    pub fn backward_from(
        &self,
        dy: &Tensor,
        ctx: &mut Ctx,
        dx: InputGrad,
        x: impl FnOnce(&mut Ctx) -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let tokens = dy.dim(0)?;
        // The updates saved their tensors after x, so they come off the tape before it.
        let routed: Vec<_> = ctx.route.iter().filter_map(|r| Some((r.rows.clone(), r.adapter.layer(self.id)?))).collect();
        let mut updates = Vec::with_capacity(routed.len());
        for _ in &routed {
            updates.push(ctx.pop()?);
        }
        let x = if self.weight.slot.is_some() || !routed.is_empty() { Some(x(ctx)?) } else { None };
        // Dropout stands between an update and dx.
        let wanted = !matches!(dx, InputGrad::Unwanted);
        let whole = self.whole_update(ctx, tokens).filter(|layer| wanted && !layer.drops(ctx.mode));
        let du = whole.map(|layer| layer.du(&F32View::new(dy)?)).transpose()?;
        let update = whole.zip(du.as_deref()).map(|(layer, du)| layer.up_backward(du)).transpose()?;
        let mut dx = self.input_grad(dy, dx, update, ctx.kernels)?;
        if let Some(x) = &x {
            if let Some((layer, du)) = whole.zip(du) {
                layer.add_grads(&F32View::new(dy)?, &F32View::new(x)?, &F32View::new(&updates[0])?, &du, 0..tokens, ctx)?;
            } else {
                for ((rows, layer), u) in routed.iter().rev().zip(updates) {
                    dx = layer.backward(dy, x, &u, dx, rows.clone(), ctx)?;
                }
            }
            if let Some(slot) = self.weight.slot {
                match ctx.kernels {
                    Kernels::Native => {
                        let (dys, xs) = (F32View::new(dy)?, F32View::new(x)?);
                        ctx.add_grad(slot, |g| {
                            matmul_tn(&dys, &xs, tokens, self.out_features, self.in_features, g, 1.0, true, ctx.precision)
                        })?;
                    }
                    Kernels::Composed => ctx.add_grad_tensor(slot, &dy.t()?.matmul(x)?)?,
                }
            }
        }
        if let Some(slot) = self.bias.as_ref().and_then(|b| b.slot) {
            match ctx.kernels {
                Kernels::Native => {
                    let dys = F32View::new(dy)?;
                    ctx.add_grad(slot, |g| column_sums(&dys, self.out_features, g))?;
                }
                Kernels::Composed => ctx.add_grad_tensor(slot, &dy.sum(0)?)?,
            }
        }
        Ok(dx)
    }

    /// dy · W, with an update where there is one.
    fn input_grad(&self, dy: &Tensor, dx: InputGrad, update: Option<Update>, kernels: Kernels) -> Result<Option<Tensor>> {
        let tokens = dy.dim(0)?;
        Ok(match (kernels, dx) {
            (_, InputGrad::Unwanted) => None,
            (Kernels::Native, InputGrad::New) => {
                let (dys, ep) = (F32View::new(dy)?, Epilogue { update, ..Epilogue::default() });
                let dx = match &self.held {
                    Held::Frozen(packs) => matmul_new(&dys, tokens, &packs[1], ep),
                    _ => self.with_transposed(|w| matmul_plain_new(&dys, tokens, w, ep))?,
                };
                Some(Tensor::from_vec(dx, (tokens, self.in_features), dy.device())?)
            }
            (Kernels::Native, InputGrad::AddedTo(dx)) => {
                let (dys, ep) = (F32View::new(dy)?, Epilogue { accumulate: true, update, ..Epilogue::default() });
                with_f32_mut(&dx, |dx| match &self.held {
                    Held::Frozen(packs) => {
                        matmul(&dys, tokens, &packs[1], dx, ep);
                        Ok(())
                    }
                    _ => self.with_transposed(|w| matmul_plain(&dys, tokens, w, dx, ep)),
                })??;
                Some(dx)
            }
            (Kernels::Composed, InputGrad::New) => Some(dy.matmul(&self.weight.value)?),
            (Kernels::Composed, InputGrad::AddedTo(dx)) => Some((dx + dy.matmul(&self.weight.value)?)?),
        })
    }

    /// The weight as products for dx read it.
    fn with_transposed<R>(&self, f: impl FnOnce(&Plain) -> R) -> Result<R> {
        let Held::Plain(precision) = self.held else { return Err(self.unprepared()) };
        let w = F32View::new(&self.weight.value)?;
        Ok(f(&Plain::new(&w, self.in_features, self.out_features, Layout::Transposed, precision)))
    }

    fn unprepared(&self) -> MlError {
        MlError::Format(format!("{} is used before it is packed for this use", self.weight.name))
    }
}
