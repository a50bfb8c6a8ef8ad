//! A decoder in training: blocks, adapter and output layer over one set of flat parameters, and its loss.
//!
//! The loss is computed only at rows that have a target, some rows at a time, so that the logits of the whole vocabulary never
//! stand in memory at once.

use std::path::Path;

use candle_core::{D, Device, Tensor};
use tunesmith_ops::allocator::return_freed_pages;
use tunesmith_ops::cross_entropy::cross_entropy;
use tunesmith_ops::elementwise::{softcap, softcap_backward};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

use crate::error::{MlError, Result};
use crate::models::BackwardPlan;
use crate::models::decoder::{Decoder, DecoderBase, DecoderFamily, save_decoder, save_language_tokenizer};
use crate::nn::{Adapter, Batch, Ctx, F32View, Kernels, LoraRange, Mode, Param, Params, with_f32_mut};
use crate::peft::{AdapterConfigFile, new_adapter, write_adapter};
use crate::spec::{JobSpec, LoraSpec, Tuning};
use crate::text::LanguageTokenizer;

/// Elements of the logits that stand in memory at once.
const LOGITS: usize = 12 << 20;
/// Rows of them at least: the output layer's weight is packed anew for each part, which few rows would not repay.
const LOGIT_ROWS: usize = 96;

/// A row as the model learns it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Line of the row in its file.
    pub line: u64,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Weight of each token as a target, 0 where it is only read; the first is never one.
    pub weights: Vec<f32>,
    /// Tokens that did not fit.
    pub truncated: usize,
}

impl Sequence {
    /// Sum of the targets' weights.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|w| f64::from(*w)).sum()
    }
}

/// What some rows cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LanguageLoss {
    /// Sum of the targets' losses times their weights.
    pub loss: f64,
    /// Sum of the targets' weights.
    pub weight: f64,
    /// Targets.
    pub targets: u64,
    /// Targets that were the likeliest token.
    pub hits: u64,
}

impl std::ops::AddAssign for LanguageLoss {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.weight += other.weight;
        self.targets += other.targets;
        self.hits += other.hits;
    }
}

/// Decoder and adapter with their trained parameters.
pub struct LanguageModel {
    pub(super) base: DecoderBase,
    pub(super) adapter: Adapter,
    /// The trained parameters.
    pub params: Params,
    plan: BackwardPlan,
    kernels: Kernels,
    precision: Precision,
    target_modules: Vec<String>,
    total_parameters: usize,
}

/// The targets of a batch: rows of the hidden states, and what should follow each.
struct Targets {
    rows: Vec<u32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl Targets {
    fn of(sequences: &[&Sequence]) -> Self {
        let mut targets = Self { rows: Vec::new(), ids: Vec::new(), weights: Vec::new() };
        let mut first = 0;
        for s in sequences {
            for i in 1..s.ids.len() {
                if s.weights[i] != 0.0 {
                    targets.rows.push((first + i - 1) as u32);
                    targets.ids.push(s.ids[i]);
                    targets.weights.push(s.weights[i]);
                }
            }
            first += s.ids.len();
        }
        targets
    }
}

impl LanguageModel {
    /// The model that a job starts from.
    ///
    /// # Errors
    /// If the tuning names modules that the model does not have.
    pub fn new(mut base: DecoderBase, spec: &JobSpec, precision: Precision, kernels: Kernels) -> Result<Self> {
        let device = base.device().clone();
        let (mut adapter, target_modules) = match &spec.tuning {
            Tuning::Lora(lora) => new_adapter(&base.decoder.linears().collect::<Vec<_>>(), lora, spec.seed, &device)?,
            Tuning::Full => (Adapter::default(), Vec::new()),
            Tuning::Head => {
                return Err(MlError::setting("tuning.type", "a language model has no head of its own; use \"lora\" or \"full\""));
            }
        };
        let total_parameters = base.decoder.params().map(|p| p.value.elem_count()).sum::<usize>()
            + adapter.layers().map(|l| l.a.value.elem_count() + l.b.value.elem_count()).sum::<usize>();
        let full = matches!(spec.tuning, Tuning::Full);
        let select = |p: &Param| full || p.name.contains(".lora_");
        let decoder = &mut base.decoder;
        let params = Params::adopt(&device, &select, &mut |f| {
            decoder.visit(f)?;
            adapter.visit(f)
        })?;
        let plan = decoder.backward_plan(&adapter, spec.training.gradient_checkpointing)?;
        let mut this = Self { base, adapter, params, plan, kernels, precision, target_modules, total_parameters };
        // An adapter is saved without its base. In f32 two packed forms would take twice the memory.
        if (kernels, precision) == (Kernels::Native, Precision::Bf16) && matches!(spec.tuning, Tuning::Lora(_)) {
            this.base.decoder.pack_frozen()?;
        }
        this.pack()?;
        return_freed_pages();
        Ok(this)
    }

    /// Puts changed masters to use: packs what is trained, and on the first call what is frozen.
    pub fn pack(&mut self) -> Result<()> {
        if self.kernels == Kernels::Native {
            self.base.decoder.pack(self.precision, true)?;
            self.adapter.pack(true)?;
        }
        Ok(())
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

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        self.base.device()
    }

    /// Forward and backward over one micro-batch: adds to the gradients of the loss divided by `denominator`.
    pub fn train_batch(&self, sequences: &[&Sequence], first_number: u64, denominator: f64, mode: Mode) -> Result<LanguageLoss> {
        let targets = Targets::of(sequences);
        if targets.ids.is_empty() {
            return Ok(LanguageLoss::default());
        }
        let batch = packed(sequences, first_number);
        let route = route(&self.adapter, batch.tokens());
        let mut ctx = Ctx::train(&batch, self.kernels, &route, mode, self.precision, &self.params.grads);
        let hidden = self.base.decoder.forward(&mut ctx, self.plan)?;
        let rows = Tensor::from_slice(&targets.rows, targets.rows.len(), hidden.device())?;
        let normed = self.base.decoder.last_norm(&hidden.index_select(&rows, 0)?, &mut ctx)?;
        let (loss, dnormed) = output_loss(&self.base.decoder, &normed, &targets, Some(denominator), &mut ctx)?;
        if !loss.loss.is_finite() {
            return Ok(loss);
        }
        let dnormed = dnormed.ok_or_else(|| MlError::Format("the output layer gave no gradient of its input".to_owned()))?;
        let drows = self.base.decoder.last_norm_backward(&dnormed, &mut ctx)?;
        let dhidden = hidden.zeros_like()?.index_add(&rows, &drows, 0)?;
        self.base.decoder.backward(&dhidden, &mut ctx, self.plan)?;
        Ok(loss)
    }

    /// The loss without gradients and without dropout.
    pub fn evaluate(&self, sequences: &[&Sequence]) -> Result<LanguageLoss> {
        language_loss(&self.base.decoder, &self.adapter, self.kernels, sequences)
    }

    /// The tokens that the present weights continue `prompt` with, greedily; ends at any of `ends`.
    pub fn continue_greedily(&self, prompt: &[u32], most: usize, ends: &dyn Fn(u32) -> bool) -> Result<Vec<u32>> {
        let mut ids = prompt.to_vec();
        while ids.len() < prompt.len() + most {
            let mut batch = Batch::new();
            batch.push(&ids, &vec![0; ids.len()], 0, 0);
            let route = route(&self.adapter, ids.len());
            let mut ctx = Ctx::infer(&batch, self.kernels, &route);
            let hidden = self.base.decoder.forward(&mut ctx, self.plan)?;
            let logits = self.base.decoder.logits(&hidden, &[ids.len() as u32 - 1], &mut ctx)?;
            let next = crate::infer::likeliest(&logits.flatten_all()?.to_vec1::<f32>()?);
            if ends(next) {
                break;
            }
            ids.push(next);
        }
        Ok(ids.split_off(prompt.len()))
    }

    /// Writes a PEFT folder with the tokenizer beside it.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_adapter(&self, folder: &Path, lora: &LoraSpec, base_name: &str, tokenizer: &LanguageTokenizer) -> Result<()> {
        let config = &self.base.decoder.config;
        let tensors = self.adapter.layers().flat_map(|l| [&l.a, &l.b]).map(|p| (p.name.clone(), p.value.clone())).collect();
        let about = AdapterConfigFile {
            base_name,
            lora,
            target_modules: &self.target_modules,
            modules_to_save: &[],
            task_type: "CAUSAL_LM",
            fan_in_fan_out: config.family == DecoderFamily::Gpt2,
        };
        write_adapter(folder, tensors, &about)?;
        save_language_tokenizer(folder, config, tokenizer)
    }

    /// Writes a Hugging Face folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_whole(&self, folder: &Path, tokenizer: &LanguageTokenizer) -> Result<()> {
        let tensors = self.base.decoder.params().map(|p| {
            let value = if p.transposed { p.value.t()?.contiguous()? } else { p.value.clone() };
            Ok((p.name.clone(), value))
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        save_decoder(folder, &self.base.decoder.config, &tensors, tokenizer)
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
}

fn route(adapter: &Adapter, tokens: usize) -> Vec<LoraRange<'_>> {
    match adapter.layers().next() {
        Some(_) => vec![LoraRange { rows: 0..tokens, adapter }],
        None => Vec::new(),
    }
}

fn packed(sequences: &[&Sequence], first_number: u64) -> Batch {
    let mut batch = Batch::new();
    for (i, s) in sequences.iter().enumerate() {
        batch.push(&s.ids, &vec![0; s.ids.len()], first_number + i as u64, 0);
    }
    batch
}

/// The loss of some rows by a decoder with an adapter, without gradients and without dropout.
pub(super) fn language_loss(decoder: &Decoder, adapter: &Adapter, kernels: Kernels, sequences: &[&Sequence]) -> Result<LanguageLoss> {
    let targets = Targets::of(sequences);
    if targets.ids.is_empty() {
        return Ok(LanguageLoss::default());
    }
    let batch = packed(sequences, 0);
    let route = route(adapter, batch.tokens());
    let mut ctx = Ctx::infer(&batch, kernels, &route);
    let hidden = decoder.forward(&mut ctx, BackwardPlan { first: usize::MAX, checkpointing: false })?;
    let rows = Tensor::from_slice(&targets.rows, targets.rows.len(), hidden.device())?;
    let normed = decoder.last_norm(&hidden.index_select(&rows, 0)?, &mut ctx)?;
    Ok(output_loss(decoder, &normed, &targets, None, &mut ctx)?.0)
}

/// The loss of normed rows `[rows, hidden]`, and with a denominator its gradient of them.
fn output_loss(
    decoder: &Decoder,
    normed: &Tensor,
    targets: &Targets,
    denominator: Option<f64>,
    ctx: &mut Ctx,
) -> Result<(LanguageLoss, Option<Tensor>)> {
    let vocab = decoder.config.vocab_size;
    let at_once = (LOGITS / vocab).max(LOGIT_ROWS);
    let mut total = LanguageLoss::default();
    let mut parts = Vec::new();
    for first in (0..targets.ids.len()).step_by(at_once) {
        let n = at_once.min(targets.ids.len() - first);
        let range = first..first + n;
        let x = normed.narrow(0, first, n)?.contiguous()?;
        let output = decoder.output();
        let logits = match denominator {
            Some(_) => output.forward(&x, ctx)?,
            None => ctx.paused(|ctx| output.forward(&x, ctx))?,
        };
        let (ids, weights) = (&targets.ids[range.clone()], &targets.weights[range]);
        let (loss, dlogits) = token_losses(decoder, logits, ids, weights, denominator, ctx.kernels)?;
        total += loss;
        if let Some(dlogits) = dlogits {
            parts.extend(output.backward(&dlogits, ctx, true)?);
        }
    }
    let gradient = if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) };
    Ok((total, gradient))
}

fn token_losses(
    decoder: &Decoder,
    logits: Tensor,
    ids: &[u32],
    weights: &[f32],
    denominator: Option<f64>,
    kernels: Kernels,
) -> Result<(LanguageLoss, Option<Tensor>)> {
    let cap = decoder.config.final_softcap;
    let scaled: Vec<f32> = weights.iter().map(|w| (f64::from(*w) / denominator.unwrap_or(1.0)) as f32).collect();
    let (losses, best, gradient) = match kernels {
        Kernels::Native => {
            let vocab = logits.dim(1)?;
            let (mut losses, mut best) = (vec![0f32; ids.len()], vec![0u32; ids.len()]);
            let capped = match cap {
                Some(cap) => {
                    with_f32_mut(&logits, |x| softcap(x, cap))?;
                    denominator.is_some().then(|| logits.copy()).transpose()?
                }
                None => None,
            };
            with_f32_mut(&logits, |x| cross_entropy(x, vocab, ids, &scaled, &mut losses, &mut best, denominator.is_some()))?;
            if let (Some(cap), Some(capped)) = (cap, &capped) {
                let capped = F32View::new(capped)?;
                with_f32_mut(&logits, |d| softcap_backward(&capped, d, cap))?;
            }
            (losses, best, denominator.is_some().then_some(logits))
        }
        Kernels::Composed => composed(&logits, cap, ids, &scaled, denominator.is_some())?,
    };
    let loss = losses.iter().zip(weights).map(|(l, w)| f64::from(*l) * f64::from(*w)).sum();
    let hits = best.iter().zip(ids).filter(|(b, id)| b == id).count() as u64;
    let weight = weights.iter().map(|w| f64::from(*w)).sum();
    Ok((LanguageLoss { loss, weight, targets: ids.len() as u64, hits }, gradient))
}

/// Losses, likeliest tokens and the gradient, by candle's operations.
#[allow(clippy::type_complexity)]
fn composed(
    logits: &Tensor,
    cap: Option<f32>,
    ids: &[u32],
    weights: &[f32],
    gradient: bool,
) -> Result<(Vec<f32>, Vec<u32>, Option<Tensor>)> {
    let device = logits.device();
    let capped = match cap.map(f64::from) {
        Some(cap) => ((logits / cap)?.tanh()? * cap)?,
        None => logits.clone(),
    };
    let shifted = capped.broadcast_sub(&capped.max_keepdim(D::Minus1)?)?;
    let log = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
    let index = Tensor::from_slice(ids, (ids.len(), 1), device)?;
    let losses = log.gather(&index, 1)?.neg()?.flatten_all()?.to_vec1()?;
    let best = capped.argmax(D::Minus1)?.to_vec1()?;
    if !gradient {
        return Ok((losses, best, None));
    }
    let weights = Tensor::from_slice(weights, (ids.len(), 1), device)?;
    let one_hot = log.zeros_like()?.scatter_add(&index, &Tensor::ones((ids.len(), 1), log.dtype(), device)?, 1)?;
    let mut d = (log.exp()? - one_hot)?.broadcast_mul(&weights)?;
    if let Some(cap) = cap.map(f64::from) {
        d = (d * (1.0 - (&capped / cap)?.sqr()?)?)?;
    }
    Ok((losses, best, Some(d)))
}
