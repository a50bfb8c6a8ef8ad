//! Low-rank updates of linear layers (Hu et al. 2021, LoRA; scale of Kalajdzievski 2023, rsLoRA), as `peft` computes them.
//!
//! An [`Adapter`] holds the updates of one fine-tune for the layers of one base model; the same code trains and serves it.

use std::ops::Range;

use candle_core::Tensor;
use tunesmith_ops::dropout::{DropoutKey, dropout};
use tunesmith_ops::elementwise::add_assign;
use tunesmith_ops::matmul::{Each, Epilogue, Layout, Packed, Precision, Update, matmul, matmul_new, matmul_tn};

use super::ctx::{Ctx, Kernels, Mode};
use super::dropout::Dropout;
use super::params::Param;
use super::view::{F32View, with_f32_mut};
use crate::error::{MlError, Result};

/// Dropout sites of updates start here, above those of the model's own layers.
const LORA_SITES: u32 = 1 << 16;

/// The updates of one adapter, by the number of the linear layer.
#[derive(Default)]
pub struct Adapter {
    layers: Vec<Option<LoraLayer>>,
}

impl Adapter {
    /// The update of the linear layer with number `id`.
    pub fn layer(&self, id: usize) -> Option<&LoraLayer> {
        self.layers.get(id).and_then(Option::as_ref)
    }

    /// Adds the update of the linear layer with number `id`.
    pub fn insert(&mut self, id: usize, layer: LoraLayer) {
        if self.layers.len() <= id {
            self.layers.resize_with(id + 1, || None);
        }
        self.layers[id] = Some(layer);
    }

    /// Every update, in the order of the layers.
    pub fn layers(&self) -> impl Iterator<Item = &LoraLayer> {
        self.layers.iter().flatten()
    }

    /// Shows each parameter to `f`.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        for layer in self.layers.iter_mut().flatten() {
            f(&mut layer.a)?;
            f(&mut layer.b)?;
        }
        Ok(())
    }

    /// Packs the updates for our kernels; after every optimiser step again.
    pub fn pack(&mut self, backward: bool) -> Result<()> {
        self.layers.iter_mut().flatten().try_for_each(|l| l.pack(backward))
    }

    /// Bytes of all updates.
    pub fn bytes(&self) -> usize {
        self.layers().map(|l| (l.a.value.elem_count() + l.b.value.elem_count()) * 8).sum()
    }
}

/// The update of one linear layer: `y += scale · B(A·dropout(x))`.
pub struct LoraLayer {
    /// `[r, in]`.
    pub a: Param,
    /// `[out, r]`.
    pub b: Param,
    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)`.
    pub scale: f32,
    dropout: f32,
    site: u32,
    packs: Option<Packs>,
}

struct Packs {
    a: Packed,
    b: Packed,
    backward: Option<(Packed, Packed)>,
}

impl LoraLayer {
    /// The update of the linear layer with number `id`.
    ///
    /// # Errors
    /// If A and B do not share their rank.
    pub fn new(id: usize, a: Param, b: Param, scale: f32, dropout: f32) -> Result<Self> {
        let ((ra, _), (_, rb)) = (a.value.dims2()?, b.value.dims2()?);
        if ra != rb {
            return Err(MlError::AdapterMismatch(format!("{} has rank {ra}, but {} has rank {rb}", a.name, b.name)));
        }
        Ok(Self { a, b, scale, dropout, site: LORA_SITES + id as u32, packs: None })
    }

    fn dims(&self) -> Result<(usize, usize, usize)> {
        let ((r, input), (out, _)) = (self.a.value.dims2()?, self.b.value.dims2()?);
        Ok((r, input, out))
    }

    fn pack(&mut self, backward: bool) -> Result<()> {
        let (r, input, out) = self.dims()?;
        let (a, b) = (F32View::new(&self.a.value)?, F32View::new(&self.b.value)?);
        match &mut self.packs {
            Some(packs) => {
                packs.a.repack(&a);
                packs.b.repack(&b);
                if let Some((ta, tb)) = &mut packs.backward {
                    ta.repack(&a);
                    tb.repack(&b);
                }
            }
            None => {
                let pack = |w: &[f32], n, k, layout| Packed::new(w, n, k, layout, Precision::F32);
                let transposed = backward.then(|| (pack(&a, input, r, Layout::Transposed), pack(&b, r, out, Layout::Transposed)));
                self.packs =
                    Some(Packs { a: pack(&a, r, input, Layout::RowMajor), b: pack(&b, out, r, Layout::RowMajor), backward: transposed });
            }
        }
        Ok(())
    }

    fn packs(&self) -> Result<&Packs> {
        self.packs.as_ref().ok_or_else(|| MlError::Format(format!("{} is used before it is packed", self.a.name)))
    }

    fn dropout_key(&self, mode: Mode) -> Option<DropoutKey> {
        match mode {
            Mode::Train { seed, step } if self.dropout > 0.0 => Some(DropoutKey { seed, step, site: self.site, p: self.dropout }),
            _ => None,
        }
    }

    /// The input rows as the update sees them in this pass, or nothing where dropout leaves them as they are.
    fn dropped(&self, xs: &[f32], width: usize, rows: &Range<usize>, ctx: &Ctx) -> Option<Vec<f32>> {
        let key = self.dropout_key(ctx.mode)?;
        let mut x = xs[rows.start * width..rows.end * width].to_vec();
        dropout(&mut x, width, ctx.batch.row_ids_for(rows), key);
        Some(x)
    }

    /// Whether dropout changes an update's input in this pass.
    pub(super) fn drops(&self, mode: Mode) -> bool {
        self.dropout_key(mode).is_some()
    }

    /// `A·dropout(x)` `[rows, r]` of these rows.
    pub(super) fn down(&self, xs: &[f32], rows: Range<usize>, ctx: &Ctx) -> Result<Vec<f32>> {
        let packs = self.packs()?;
        let input = packs.a.k();
        let dropped = self.dropped(xs, input, &rows, ctx);
        let x = dropped.as_deref().unwrap_or(&xs[rows.start * input..rows.end * input]);
        Ok(matmul_new(x, rows.len(), &packs.a, Epilogue::default()))
    }

    /// What a product adds to y for `u`, which [`Self::down`] gave.
    pub(super) fn up<'a>(&'a self, u: &'a [f32]) -> Result<Update<'a>> {
        Ok(Update { u, b: &self.packs()?.b, scale: self.scale })
    }

    /// Saves what [`Self::down`] gave.
    pub(super) fn save(&self, u: Vec<f32>, ctx: &mut Ctx) -> Result<()> {
        if ctx.recording() {
            let r = self.packs()?.a.n();
            let shape = (u.len() / r, r);
            ctx.push(&Tensor::from_vec(u, shape, self.a.value.device())?);
        }
        Ok(())
    }

    /// Adds the update to `y` `[tokens, out]` at `rows`; saves `A·x`.
    pub(super) fn forward_native(&self, xs: &[f32], y: &mut [f32], rows: Range<usize>, ctx: &mut Ctx) -> Result<()> {
        let packs = self.packs()?;
        let out = packs.b.n();
        let u = self.down(xs, rows.clone(), ctx)?;
        let y = &mut y[rows.start * out..rows.end * out];
        matmul(&u, rows.len(), &packs.b, y, Epilogue { scale: self.scale, accumulate: true, ..Epilogue::default() });
        self.save(u, ctx)
    }

    /// The update of x `[rows, in]`, without dropout, that is to be added to y `[rows, out]`.
    pub(super) fn of_rows<'a>(&'a self, x: &'a [f32], y: &'a mut [f32]) -> Result<Each<'a>> {
        let packs = self.packs()?;
        Ok(Each { x, a: &packs.a, b: &packs.b, scale: self.scale, y })
    }

    /// Returns `y` with the update added at `rows`; saves `A·x`.
    pub(super) fn forward_composed(&self, x: &Tensor, y: &Tensor, rows: Range<usize>, ctx: &mut Ctx) -> Result<Tensor> {
        let x = self.input_composed(x, &rows, ctx)?;
        let u = x.matmul(&self.a.value.t()?)?;
        ctx.push(&u);
        let update = (u.matmul(&self.b.value.t()?)? * f64::from(self.scale))?;
        add_rows(y, &update, &rows)
    }

    fn input_composed(&self, x: &Tensor, rows: &Range<usize>, ctx: &Ctx) -> Result<Tensor> {
        let x = x.narrow(0, rows.start, rows.len())?.contiguous()?;
        match self.dropout_key(ctx.mode) {
            Some(key) => Dropout::masked(&x, ctx.batch.row_ids_for(rows), key),
            None => Ok(x),
        }
    }

    /// Adds to the gradients of A and B and to `dx` (where that is wanted). `u` is the saved `A·x`.
    pub(super) fn backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        u: &Tensor,
        dx: Option<Tensor>,
        rows: Range<usize>,
        ctx: &Ctx,
    ) -> Result<Option<Tensor>> {
        match ctx.kernels {
            Kernels::Native => self.backward_native(dy, x, u, dx, rows, ctx),
            Kernels::Composed => self.backward_composed(dy, x, u, dx, rows, ctx),
        }
    }

    fn backward_native(
        &self,
        dy: &Tensor,
        x: &Tensor,
        u: &Tensor,
        dx: Option<Tensor>,
        rows: Range<usize>,
        ctx: &Ctx,
    ) -> Result<Option<Tensor>> {
        let (_, input, out) = self.dims()?;
        let (dys, xs, us) = (F32View::new(dy)?, F32View::new(x)?, F32View::new(u)?);
        let dys = &dys[rows.start * out..rows.end * out];
        let du = self.du(dys)?;
        self.add_grads(dys, &xs, &us, &du, rows.clone(), ctx)?;
        if let Some(dx) = &dx {
            let (ta, here, n) = (&self.transposed()?.0, rows.start * input..rows.end * input, rows.len());
            match self.dropout_key(ctx.mode) {
                Some(key) => {
                    let mut update = matmul_new(&du, n, ta, Epilogue::default());
                    dropout(&mut update, input, ctx.batch.row_ids_for(&rows), key);
                    with_f32_mut(dx, |dx| add_assign(&mut dx[here], &update))?;
                }
                None => {
                    let ep = Epilogue { accumulate: true, ..Epilogue::default() };
                    with_f32_mut(dx, |dx| matmul(&du, n, ta, &mut dx[here], ep))?;
                }
            }
        }
        Ok(dx)
    }

    /// A and B as the backward pass reads them.
    fn transposed(&self) -> Result<&(Packed, Packed)> {
        let packed = self.packs()?.backward.as_ref();
        packed.ok_or_else(|| MlError::Format(format!("{} is not packed for training", self.a.name)))
    }

    /// The gradient of `A·x` `[rows, r]` from dy `[rows, out]`.
    pub(super) fn du(&self, dys: &[f32]) -> Result<Vec<f32>> {
        let tb = &self.transposed()?.1;
        Ok(matmul_new(dys, dys.len() / tb.k(), tb, Epilogue { scale: self.scale, ..Epilogue::default() }))
    }

    /// What a product adds to dx for `du`, where nothing is dropped.
    pub(super) fn up_backward<'a>(&'a self, du: &'a [f32]) -> Result<Update<'a>> {
        Ok(Update { u: du, b: &self.transposed()?.0, scale: 1.0 })
    }

    /// Adds to the gradients of A and B. dys, us and du are of these rows, xs of all.
    pub(super) fn add_grads(&self, dys: &[f32], xs: &[f32], us: &[f32], du: &[f32], rows: Range<usize>, ctx: &Ctx) -> Result<()> {
        let (r, input, out) = self.dims()?;
        let n = rows.len();
        if let Some(slot) = self.b.slot {
            ctx.add_grad(slot, |g| matmul_tn(dys, us, n, out, r, g, self.scale, true, Precision::F32))?;
        }
        if let Some(slot) = self.a.slot {
            let dropped = self.dropped(xs, input, &rows, ctx);
            let x = dropped.as_deref().unwrap_or(&xs[rows.start * input..rows.end * input]);
            ctx.add_grad(slot, |g| matmul_tn(du, x, n, r, input, g, 1.0, true, Precision::F32))?;
        }
        Ok(())
    }

    fn backward_composed(
        &self,
        dy: &Tensor,
        x: &Tensor,
        u: &Tensor,
        dx: Option<Tensor>,
        rows: Range<usize>,
        ctx: &Ctx,
    ) -> Result<Option<Tensor>> {
        let dy = (dy.narrow(0, rows.start, rows.len())? * f64::from(self.scale))?;
        if let Some(slot) = self.b.slot {
            ctx.add_grad_tensor(slot, &dy.t()?.matmul(u)?)?;
        }
        let du = dy.matmul(&self.b.value)?;
        if let Some(slot) = self.a.slot {
            ctx.add_grad_tensor(slot, &du.t()?.matmul(&self.input_composed(x, &rows, ctx)?)?)?;
        }
        let Some(dx) = dx else { return Ok(None) };
        let mut update = du.matmul(&self.a.value)?;
        if let Some(key) = self.dropout_key(ctx.mode) {
            update = Dropout::masked(&update, ctx.batch.row_ids_for(&rows), key)?;
        }
        Ok(Some(add_rows(&dx, &update, &rows)?))
    }
}

/// `y` with `update` added at `rows`.
fn add_rows(y: &Tensor, update: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    let tokens = y.dim(0)?;
    let middle = (y.narrow(0, rows.start, rows.len())? + update)?;
    let parts = [y.narrow(0, 0, rows.start)?, middle, y.narrow(0, rows.end, tokens - rows.end)?];
    let parts: Vec<_> = parts.into_iter().filter(|p| p.dims()[0] > 0).collect();
    Ok(Tensor::cat(&parts, 0)?)
}
