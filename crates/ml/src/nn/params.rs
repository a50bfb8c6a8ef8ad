//! Parameters and the flat f32 buffers of those that are trained.
//!
//! Masters, gradients and AdamW's two moments are four tensors of one dimension; a trainable [`Param`] is a view into the
//! masters, so one pass updates all of them, and a checkpoint copies four buffers.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::ctx::Kernels;
use super::view::{F32View, with_f32_mut};
use crate::error::{MlError, Result};
use tunesmith_ops::elementwise::sum_squares;
use tunesmith_ops::optim::{AdamW, adamw};

/// Where a trainable parameter lies in the flat buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Slot {
    /// The elements.
    pub fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// A named weight of a layer.
#[derive(Debug, Clone)]
pub struct Param {
    /// Hugging Face's name of the tensor.
    pub name: String,
    /// The values, f32; a view into the masters where the parameter is trained.
    pub value: Tensor,
    /// Present where the parameter is trained.
    pub slot: Option<Slot>,
    /// Whether the file holds it the other way round, as GPT-2 does its linear weights.
    pub transposed: bool,
}

impl Param {
    /// A frozen parameter.
    pub fn new(name: impl Into<String>, value: Tensor) -> Self {
        Self { name: name.into(), value, slot: None, transposed: false }
    }

    /// Whether weight decay applies: not to biases and not to norms, as in `transformers`.
    pub fn decays(&self) -> bool {
        let module = self.name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        !(self.name.ends_with(".bias") || module.ends_with("norm") || module.starts_with("ln_"))
    }
}

/// A trainable parameter's place.
#[derive(Debug, Clone)]
pub struct ParamInfo {
    /// Hugging Face's name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its place in the flat buffers.
    pub slot: Slot,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// What a model shows its parameters to, one by one.
pub type VisitParam<'a> = &'a mut dyn FnMut(&mut Param) -> Result<()>;

/// The flat buffers.
pub struct Params {
    /// Every trainable parameter, in the order of the buffers.
    pub infos: Vec<ParamInfo>,
    /// Current values, `[elements]`.
    pub masters: Tensor,
    /// Gradients of the current step, `[elements]`.
    pub grads: Tensor,
    /// AdamW's first moment, `[elements]`.
    pub exp_avg: Tensor,
    /// AdamW's second moment, `[elements]`.
    pub exp_avg_sq: Tensor,
}

impl Params {
    /// Moves every parameter that `select` names into the flat buffers. `visit` must show each parameter of the model once,
    /// in the same order at every call.
    ///
    /// # Errors
    /// If nothing is selected.
    pub fn adopt(device: &Device, select: &dyn Fn(&Param) -> bool, visit: &mut dyn FnMut(VisitParam<'_>) -> Result<()>) -> Result<Self> {
        let mut infos: Vec<ParamInfo> = Vec::new();
        let mut total = 0;
        visit(&mut |p| {
            if select(p) {
                let slot = Slot { offset: total, len: p.value.elem_count() };
                total += slot.len;
                infos.push(ParamInfo { name: p.name.clone(), shape: p.value.dims().to_vec(), slot, decays: p.decays() });
            }
            Ok(())
        })?;
        if total == 0 {
            return Err(MlError::setting("tuning", "nothing is trained: no parameter of the model is selected"));
        }
        let zeros = || Tensor::zeros(total, DType::F32, device);
        let params = Self { masters: zeros()?, grads: zeros()?, exp_avg: zeros()?, exp_avg_sq: zeros()?, infos };
        let mut next = params.infos.iter();
        visit(&mut |p| {
            if select(p)
                && let Some(info) = next.next()
            {
                params.masters.slice_set(&p.value.flatten_all()?.contiguous()?, 0, info.slot.offset)?;
                p.value = params.masters.narrow(0, info.slot.offset, info.slot.len)?.reshape(info.shape.as_slice())?;
                p.slot = Some(info.slot);
            }
            Ok(())
        })?;
        Ok(params)
    }

    /// Number of trained elements.
    pub fn len(&self) -> usize {
        self.masters.elem_count()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A trainable parameter's current values.
    pub fn value(&self, info: &ParamInfo) -> Result<Tensor> {
        Ok(self.masters.narrow(0, info.slot.offset, info.slot.len)?.reshape(info.shape.as_slice())?)
    }

    /// Sets all gradients to zero, as [`Params::adamw_step`] leaves them.
    pub fn zero_grads(&self, kernels: Kernels) -> Result<()> {
        match kernels {
            Kernels::Native => with_f32_mut(&self.grads, |g| g.fill(0.0))?,
            Kernels::Composed => self.grads.slice_set(&self.grads.zeros_like()?, 0, 0)?,
        }
        Ok(())
    }

    /// L2 norm of all gradients.
    pub fn grad_norm(&self, kernels: Kernels) -> Result<f64> {
        let squares = match kernels {
            Kernels::Native => sum_squares(&F32View::new(&self.grads)?),
            Kernels::Composed => f64::from(self.grads.sqr()?.sum_all()?.to_scalar::<f32>()?),
        };
        Ok(squares.sqrt())
    }

    /// Whether every trained value is a finite number.
    pub fn are_finite(&self, kernels: Kernels) -> Result<bool> {
        Ok(match kernels {
            Kernels::Native => F32View::new(&self.masters)?.iter().all(|w| w.is_finite()),
            // Zero times infinity is not a number either.
            Kernels::Composed => self.masters.affine(0.0, 0.0)?.sum_all()?.to_scalar::<f32>()? == 0.0,
        })
    }

    /// One AdamW step (Loshchilov & Hutter 2019, as `torch.optim.AdamW`) on gradients times `grad_scale`, which are zero after it.
    pub fn adamw_step(&self, settings: &AdamW, grad_scale: f32, kernels: Kernels) -> Result<()> {
        match kernels {
            Kernels::Native => {
                let update = |w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]| {
                    for info in &self.infos {
                        let r = info.slot.range();
                        let weight_decay = if info.decays { settings.weight_decay } else { 0.0 };
                        let settings = AdamW { weight_decay, ..*settings };
                        adamw(&settings, &mut w[r.clone()], &mut g[r.clone()], grad_scale, &mut m[r.clone()], &mut v[r]);
                    }
                };
                with_f32_mut(&self.masters, |w| {
                    with_f32_mut(&self.grads, |g| with_f32_mut(&self.exp_avg, |m| with_f32_mut(&self.exp_avg_sq, |v| update(w, g, m, v))))
                })????;
            }
            Kernels::Composed => {
                self.adamw_composed(settings, grad_scale)?;
                self.zero_grads(kernels)?;
            }
        }
        Ok(())
    }

    fn adamw_composed(&self, s: &AdamW, grad_scale: f32) -> Result<()> {
        let (b1, b2) = (f64::from(s.beta1), f64::from(s.beta2));
        let (c1, c2) = (1.0 - b1.powf(s.step as f64), 1.0 - b2.powf(s.step as f64));
        for info in &self.infos {
            let (o, n) = (info.slot.offset, info.slot.len);
            let g = (self.grads.narrow(0, o, n)? * f64::from(grad_scale))?;
            let m = ((self.exp_avg.narrow(0, o, n)? * b1)? + (&g * (1.0 - b1))?)?;
            let v = ((self.exp_avg_sq.narrow(0, o, n)? * b2)? + (g.sqr()? * (1.0 - b2))?)?;
            let decay = if info.decays { f64::from(s.lr) * f64::from(s.weight_decay) } else { 0.0 };
            let denominator = ((&v / c2)?.sqrt()? + f64::from(s.eps))?;
            let update = ((&m * (f64::from(s.lr) / c1))? / denominator)?;
            let w = ((self.masters.narrow(0, o, n)? * (1.0 - decay))? - update)?;
            self.masters.slice_set(&w, 0, o)?;
            self.exp_avg.slice_set(&m, 0, o)?;
            self.exp_avg_sq.slice_set(&v, 0, o)?;
        }
        Ok(())
    }
}
