//! A classifier in training: encoder, adapter and head over one set of flat parameters.

use std::path::Path;

use candle_core::{Device, Tensor};
use tunesmith_data::Target;
use tunesmith_ops::allocator::return_freed_pages;
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

use super::loss::{LossSettings, loss};
use crate::error::Result;
use crate::models::{BackwardPlan, BaseModel, FullModel, Head, save_full};
use crate::nn::{Adapter, Batch, Ctx, Kernels, LoraRange, Mode, Param, Params};
use crate::peft::{AdapterFolder, head_modules_to_save, new_adapter, save_adapter};
use crate::spec::{JobSpec, ProblemType, Tuning};

/// Encoder, adapter and head with their trained parameters.
pub struct Classifier {
    base: BaseModel,
    adapter: Adapter,
    head: Head,
    /// The trained parameters.
    pub params: Params,
    plan: BackwardPlan,
    kernels: Kernels,
    precision: Precision,
    target_modules: Vec<String>,
    modules_to_save: Vec<String>,
    total_parameters: usize,
}

impl Classifier {
    /// The classifier that a job starts from.
    ///
    /// # Errors
    /// If the tuning names modules that the model does not have.
    pub fn new(mut base: BaseModel, spec: &JobSpec, precision: Precision, kernels: Kernels) -> Result<Self> {
        let outputs = outputs(spec);
        let mut head = Head::for_training(&base, &spec.data.labels, outputs, spec.seed)?;
        let family = base.encoder.config.family;
        let (mut adapter, target_modules) = match &spec.tuning {
            Tuning::Lora(lora) => new_adapter(&base.encoder.linears().collect::<Vec<_>>(), lora, spec.seed, base.device())?,
            Tuning::Full | Tuning::Head => (Adapter::default(), Vec::new()),
        };
        let modules_to_save = match &spec.tuning {
            Tuning::Lora(lora) => head_modules_to_save(family, &head, lora.modules_to_save.as_deref())?,
            Tuning::Full | Tuning::Head => Vec::new(),
        };
        let prefix = format!("{}.", family.prefix());
        let in_saved = |name: &str| {
            let plain = name.strip_prefix(&prefix).unwrap_or(name);
            modules_to_save.iter().any(|m| plain.starts_with(&format!("{m}.")))
        };
        let head_names: Vec<String> = head.params().map(|p| p.name.clone()).collect();
        let total_parameters = base.encoder.params().chain(head.params()).map(|p| p.value.elem_count()).sum::<usize>()
            + adapter.layers().map(|l| l.a.value.elem_count() + l.b.value.elem_count()).sum::<usize>();
        let select = |p: &Param| match &spec.tuning {
            Tuning::Full => true,
            Tuning::Head => head_names.contains(&p.name),
            Tuning::Lora(_) => p.name.contains(".lora_") || (head_names.contains(&p.name) && in_saved(&p.name)),
        };
        let device = base.device().clone();
        let encoder = &mut base.encoder;
        let params = Params::adopt(&device, &select, &mut |f| {
            encoder.visit(f)?;
            adapter.visit(f)?;
            head.visit(f)
        })?;
        let plan = encoder.backward_plan(&adapter, spec.training.gradient_checkpointing)?;
        let mut this = Self { base, adapter, head, params, plan, kernels, precision, target_modules, modules_to_save, total_parameters };
        // An adapter is saved without its base. In f32 two packed forms would take twice the memory.
        if (kernels, precision) == (Kernels::Native, Precision::Bf16) && matches!(spec.tuning, Tuning::Lora(_)) {
            this.base.encoder.pack_frozen()?;
        }
        this.pack()?;
        return_freed_pages();
        Ok(this)
    }

    /// Puts changed masters to use: packs what is trained, and on the first call what is frozen.
    pub fn pack(&mut self) -> Result<()> {
        if self.kernels == Kernels::Native {
            self.base.encoder.pack(self.precision, true)?;
            self.adapter.pack(true)?;
        }
        self.head.pack(self.kernels, true)
    }

    /// Number of trained elements.
    pub fn trainable_parameters(&self) -> usize {
        self.params.len()
    }

    /// Number of all elements.
    pub fn total_parameters(&self) -> usize {
        self.total_parameters
    }

    /// Full names of the modules with low-rank updates.
    pub fn target_modules(&self) -> &[String] {
        &self.target_modules
    }

    /// Modules of the head that are saved with an adapter.
    pub fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    /// Position of the first token in the model's position embedding.
    pub fn position_offset(&self) -> u32 {
        self.base.encoder.config.position_offset
    }

    fn route(&self, tokens: usize) -> [LoraRange<'_>; 1] {
        [LoraRange { rows: 0..tokens, adapter: &self.adapter }]
    }

    /// Forward and backward over one micro-batch: adds to the gradients, returns its share of the loss.
    pub fn train_batch(&self, batch: &Batch, targets: &[&Target], settings: &LossSettings, denominator: f64, mode: Mode) -> Result<f64> {
        let route = self.route(batch.tokens());
        let mut ctx = Ctx::train(batch, self.kernels, &route, mode, self.precision, &self.params.grads);
        let hidden = self.base.encoder.forward(&mut ctx, self.plan)?;
        let logits = self.head.forward(&hidden, batch.first_rows(), &mut ctx)?;
        let outputs = self.head.outputs();
        let (value, grad) = loss(&logits.flatten_all()?.to_vec1::<f32>()?, targets, outputs, settings, denominator);
        if !value.is_finite() {
            return Ok(value);
        }
        let grad = Tensor::from_vec(grad, (targets.len(), outputs), logits.device())?;
        let inside = self.plan.first <= self.base.encoder.config.layers;
        if let Some(dhidden) = self.head.backward(&grad, batch.first_rows(), &mut ctx, inside)? {
            self.base.encoder.backward(&dhidden, &mut ctx, self.plan)?;
        }
        Ok(value)
    }

    /// Logits `[sequences, outputs]` without dropout.
    pub fn logits(&self, batch: &Batch) -> Result<Vec<f32>> {
        let route = self.route(batch.tokens());
        let mut ctx = Ctx::infer(batch, self.kernels, &route);
        let hidden = self.base.encoder.forward(&mut ctx, self.plan)?;
        Ok(self.head.forward(&hidden, batch.first_rows(), &mut ctx)?.flatten_all()?.to_vec1()?)
    }

    /// Number of logits.
    pub fn outputs(&self) -> usize {
        self.head.outputs()
    }

    /// Sets the gradients to zero.
    pub fn zero_grads(&self) -> Result<()> {
        self.params.zero_grads(self.kernels)
    }

    /// L2 norm of the gradients.
    pub fn grad_norm(&self) -> Result<f64> {
        self.params.grad_norm(self.kernels)
    }

    /// One optimiser step on gradients times `grad_scale`, which are zero after it.
    pub fn update(&mut self, settings: &AdamW, grad_scale: f32) -> Result<()> {
        self.params.adamw_step(settings, grad_scale, self.kernels)?;
        self.pack()
    }

    /// Writes the model: an adapter's folder for LoRA, a whole model otherwise.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, spec: &JobSpec, base_name: &str, max_length: usize) -> Result<()> {
        match &spec.tuning {
            Tuning::Lora(lora) => save_adapter(
                folder,
                &AdapterFolder {
                    base_name,
                    base_folder: &self.base.folder,
                    family: self.base.encoder.config.family,
                    adapter: &self.adapter,
                    head: &self.head,
                    lora,
                    target_modules: &self.target_modules,
                    modules_to_save: &self.modules_to_save,
                    labels: &spec.data.labels,
                    max_length,
                },
            ),
            Tuning::Full | Tuning::Head => {
                let trained = self.params.infos.iter().map(|i| Ok((i.name.clone(), self.params.value(i)?))).collect::<Result<Vec<_>>>()?;
                save_full(
                    folder,
                    FullModel {
                        base: &self.base,
                        tensors: trained,
                        labels: &spec.data.labels,
                        problem_type: spec.data.problem_type,
                        max_length,
                    },
                )
            }
        }
    }
}

/// Number of logits of a job's model.
pub fn outputs(spec: &JobSpec) -> usize {
    if spec.data.problem_type == ProblemType::Regression { 1 } else { spec.data.labels.len() }
}

/// The precision of a job's products on this machine: `auto` is bf16 where that is the faster one.
pub fn precision(dtype: crate::spec::Dtype, device: &Device) -> Precision {
    use crate::spec::Dtype;
    match dtype {
        Dtype::Float32 => Precision::F32,
        Dtype::Auto if device.is_cpu() && tunesmith_ops::cpu::bf16_is_faster() => Precision::Bf16,
        Dtype::Auto => Precision::F32,
        // Asked for by name: without the unit the scalar kernels round as it would, only slower.
        Dtype::Bfloat16 => Precision::Bf16,
    }
}
