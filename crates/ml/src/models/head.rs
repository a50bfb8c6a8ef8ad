//! The sequence classification head: first token → (dropout) → dense → activation → dropout → logits.
//!
//! BERT's dense layer is its pooler, DistilBERT's is `pre_classifier`, RoBERTa's is `classifier.dense`.

use candle_core::{DType, Tensor};
use tunesmith_ops::activation::Activation;
use tunesmith_ops::matmul::Precision;

use super::config::{EncoderConfig, Family};
use super::encoder::LINEARS_PER_BLOCK;
use super::init::normal;
use super::load::BaseModel;
use crate::error::{MlError, Result};
use crate::nn::{Act, Ctx, Dropout, Kernels, Linear, Param};

/// Dropout sites of heads, above those of blocks and below those of LoRA.
const HEAD_SITES: u32 = 1 << 15;

/// A head for `labels` outputs.
#[derive(Clone)]
pub struct Head {
    input_dropout: Dropout,
    /// The pooler, `pre_classifier` or `classifier.dense`.
    pub dense: Linear,
    act: Act,
    dropout: Dropout,
    /// The layer whose outputs are the logits.
    pub out: Linear,
    /// Whether the dense layer's weights were drawn here and so must be saved with an adapter.
    pub dense_is_new: bool,
}

/// Tensor names of a family's head: dense module, output module.
pub fn head_modules(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::Bert => ("bert.pooler.dense", "classifier"),
        Family::DistilBert => ("pre_classifier", "classifier"),
        Family::Roberta => ("classifier.dense", "classifier.out_proj"),
    }
}

impl Head {
    /// The head for a job: the base's dense layer where it has one, its output layer where it was trained for the same
    /// labels, and otherwise weights drawn by `seed` as `transformers` draws them.
    pub fn for_training(base: &BaseModel, labels: &[String], outputs: usize, seed: u64) -> Result<Self> {
        let config = &base.encoder.config;
        let (dense, out) = head_modules(config.family);
        let device = base.device();
        let fresh = |name: &str, shape: &[usize]| normal(shape, config.initializer_range, seed, name, device);
        let zeros = |n: usize| Tensor::zeros(n, DType::F32, device);
        let square = [config.hidden, config.hidden];
        let kept = base.head_tensor(dense, "weight", &square)?.zip(base.head_tensor(dense, "bias", &square[..1])?);
        let dense_is_new = kept.is_none();
        let (dw, db) = match kept {
            Some(pair) => pair,
            None => (fresh(dense, &square)?, zeros(config.hidden)?),
        };
        let shape = [outputs, config.hidden];
        let same = !labels.is_empty() && base.labels() == labels;
        let kept = if same { base.head_tensor(out, "weight", &shape)?.zip(base.head_tensor(out, "bias", &shape[..1])?) } else { None };
        let (ow, ob) = match kept {
            Some(pair) => pair,
            None => (fresh(out, &shape)?, zeros(outputs)?),
        };
        Self::from_tensors(config, dw, db, ow, ob, dense_is_new)
    }

    /// A head of given weights: dense `[hidden, hidden]`, output `[labels, hidden]`.
    pub fn from_tensors(config: &EncoderConfig, dw: Tensor, db: Tensor, ow: Tensor, ob: Tensor, dense_is_new: bool) -> Result<Self> {
        let (dense, out) = head_modules(config.family);
        let id = LINEARS_PER_BLOCK * config.layers;
        let linear = |id, module: &str, w, b| {
            Linear::new(id, Param::new(format!("{module}.weight"), w), Some(Param::new(format!("{module}.bias"), b)))
        };
        let p = config.classifier_dropout;
        Ok(Self {
            input_dropout: Dropout { p: if config.family == Family::Roberta { p } else { 0.0 }, site: HEAD_SITES },
            dense: linear(id, dense, dw, db)?,
            act: Act(if config.family == Family::DistilBert { Activation::Relu } else { Activation::Tanh }),
            dropout: Dropout { p, site: HEAD_SITES + 1 },
            out: linear(id + 1, out, ow, ob)?,
            dense_is_new,
        })
    }

    /// Number of logits.
    pub fn outputs(&self) -> usize {
        self.out.shape().0
    }

    /// Hidden states `[tokens, hidden]` → logits `[sequences, outputs]` of the sequences that start at `first_rows`.
    pub fn forward(&self, hidden: &Tensor, first_rows: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let rows = Tensor::from_slice(first_rows, first_rows.len(), hidden.device())?;
        let x = hidden.index_select(&rows, 0)?;
        let row_ids = row_ids(first_rows, ctx);
        let x = self.input_dropout.apply(x, &row_ids, ctx)?;
        let y = self.dense.forward_activated(&x, self.act, ctx)?;
        let y = self.dropout.apply(y, &row_ids, ctx)?;
        self.out.forward(&y, ctx)
    }

    /// dlogits `[sequences, outputs]` → dhidden `[tokens, hidden]`, zero but at the sequences' first rows; nothing where
    /// `need_dx` is false.
    pub fn backward(&self, dlogits: &Tensor, first_rows: &[u32], ctx: &mut Ctx, need_dx: bool) -> Result<Option<Tensor>> {
        let missing = || MlError::Format("the head gave no gradient of its input".to_owned());
        let row_ids = row_ids(first_rows, ctx);
        let dy = self.out.backward(dlogits, ctx, true)?.ok_or_else(missing)?;
        let dy = self.dropout.backward(&dy, &row_ids, ctx)?;
        let dy = self.act.backward(&dy, ctx)?;
        let Some(dx) = self.dense.backward(&dy, ctx, need_dx)? else { return Ok(None) };
        let dx = self.input_dropout.backward(&dx, &row_ids, ctx)?;
        let zeros = Tensor::zeros((ctx.batch.tokens(), dx.dim(1)?), DType::F32, dx.device())?;
        let rows = Tensor::from_slice(first_rows, first_rows.len(), dx.device())?;
        Ok(Some(zeros.index_add(&rows, &dx, 0)?))
    }

    /// Shows each parameter to `f`, always in the same order.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut Param) -> Result<()>) -> Result<()> {
        self.dense.visit(f)?;
        self.out.visit(f)
    }

    /// Packs both layers; always in f32, whose cost is nothing here.
    pub fn pack(&mut self, kernels: Kernels, backward: bool) -> Result<()> {
        if kernels == Kernels::Composed {
            return Ok(());
        }
        self.dense.pack(Precision::F32, backward)?;
        self.out.pack(Precision::F32, backward)
    }

    /// The four tensors: weight and bias of both layers.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        [&self.dense, &self.out].into_iter().flat_map(|l| [Some(&l.weight), l.bias.as_ref()]).flatten()
    }

    /// Bytes of the weights, packed and plain.
    pub fn bytes(&self) -> usize {
        self.params().map(|p| p.value.elem_count() * 4).sum::<usize>() + self.dense.packed_bytes() + self.out.packed_bytes()
    }
}

fn row_ids(first_rows: &[u32], ctx: &Ctx) -> Vec<u64> {
    first_rows.iter().map(|&r| ctx.batch.row_ids[r as usize]).collect()
}
