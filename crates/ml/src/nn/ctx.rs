//! What a pass through the layers carries: the packed batch, mode, kernels, LoRA route, tape and gradients.

use std::ops::Range;

use candle_core::{Tensor, bail};
use tunesmith_ops::matmul::Precision;

use super::lora::Adapter;
use super::params::Slot;
use super::view::with_f32_mut;

/// The real tokens of several sequences, one after another.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Segment ids, `[tokens]`.
    pub type_ids: Vec<u32>,
    /// Position of each token in its sequence, plus the family's offset, `[tokens]`.
    pub positions: Vec<u32>,
    /// Where each sequence starts, and the end of the last, `[sequences + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// What dropout is keyed by: (number of the sequence in its epoch) << 20 | position, `[tokens]`.
    pub row_ids: Vec<u64>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { cu_seqlens: vec![0], ..Self::default() }
    }

    /// Appends a sequence. `number` names it for dropout; `position_offset` is 0, or 2 for RoBERTa with pad id 1, where
    /// a padding token that stands in the text itself has the pad id as its position and is not counted, as in `transformers`.
    pub fn push(&mut self, ids: &[u32], type_ids: &[u32], number: u64, position_offset: u32) {
        debug_assert_eq!(ids.len(), type_ids.len());
        self.ids.extend_from_slice(ids);
        self.type_ids.extend_from_slice(type_ids);
        let pad = position_offset.checked_sub(1);
        let mut next = position_offset;
        for (place, id) in ids.iter().enumerate() {
            match pad {
                Some(pad) if *id == pad => self.positions.push(pad),
                _ => {
                    self.positions.push(next);
                    next += 1;
                }
            }
            self.row_ids.push(number << 20 | place as u64);
        }
        self.cu_seqlens.push(self.ids.len() as u32);
    }

    /// Appends tokens of a sequence whose first `start` tokens were seen in earlier passes.
    pub fn push_at(&mut self, ids: &[u32], start: u32) {
        self.ids.extend_from_slice(ids);
        self.type_ids.resize(self.ids.len(), 0);
        self.row_ids.resize(self.ids.len(), 0);
        self.positions.extend((start..).take(ids.len()));
        self.cu_seqlens.push(self.ids.len() as u32);
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// What dropout is keyed by, for some of the rows.
    pub fn row_ids_for(&self, rows: &Range<usize>) -> &[u64] {
        &self.row_ids[rows.clone()]
    }

    /// The row of each sequence's first token.
    pub fn first_rows(&self) -> &[u32] {
        &self.cu_seqlens[..self.sequences()]
    }
}

/// Whether dropout is on, and what it is keyed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No dropout.
    Eval,
    /// Dropout from a counter-based generator.
    Train {
        /// The job's seed.
        seed: u64,
        /// The optimiser step.
        step: u64,
    },
}

/// Which code runs a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Our kernels, on the CPU.
    Native,
    /// candle's tensor operations, on any device.
    Composed,
}

/// Rows of the batch that an adapter applies to.
#[derive(Clone)]
pub struct LoraRange<'a> {
    /// Token rows.
    pub rows: Range<usize>,
    /// The adapter of those rows.
    pub adapter: &'a Adapter,
}

/// State of one pass.
pub struct Ctx<'a> {
    /// The rows.
    pub batch: &'a Batch,
    /// Dropout.
    pub mode: Mode,
    /// Native or composed.
    pub kernels: Kernels,
    /// Precision of attention's products and of the weight gradients' (others follow the packed weights).
    pub precision: Precision,
    /// Which rows take which adapter; rows in no range take none.
    pub route: &'a [LoraRange<'a>],
    /// Keys and values of earlier tokens, in serving of decoders.
    pub cache: Option<CachedPass<'a>>,
    grads: Option<&'a Tensor>,
    tape: Option<Vec<Tensor>>,
    /// What norms saved: a tape of their own, so that what a norm gave can be computed again while layers above it go backwards.
    norms: Vec<Tensor>,
}

/// Keys and values of one layer in pages of [`tunesmith_ops::paged::PAGE`] tokens.
pub struct LayerPages {
    /// `[pages, kv_heads, head_dim, PAGE]`.
    pub k: Vec<f32>,
    /// `[pages, kv_heads, PAGE, head_dim]`.
    pub v: Vec<f32>,
}

/// Where a pass over new tokens finds, and leaves, keys and values.
pub struct CachedPass<'a> {
    /// Every layer's pages.
    pub layers: &'a mut [LayerPages],
    /// Position of the first new token of each sequence, `[sequences]`.
    pub starts: &'a [u32],
    /// The pages of each sequence in the order of its tokens, `[sequences]`.
    pub tables: &'a [&'a [u32]],
}

impl<'a> Ctx<'a> {
    /// A pass that only answers: no tape, no dropout.
    pub fn infer(batch: &'a Batch, kernels: Kernels, route: &'a [LoraRange<'a>]) -> Self {
        Self { batch, mode: Mode::Eval, kernels, precision: Precision::F32, route, cache: None, grads: None, tape: None, norms: Vec::new() }
    }

    /// A pass over new tokens whose sequences' earlier ones lie in a cache.
    pub fn cached(batch: &'a Batch, route: &'a [LoraRange<'a>], cache: CachedPass<'a>) -> Self {
        Self { cache: Some(cache), ..Self::infer(batch, Kernels::Native, route) }
    }

    /// A pass whose backward adds to `grads`, the flat buffer of [`super::Params`].
    pub fn train(
        batch: &'a Batch,
        kernels: Kernels,
        route: &'a [LoraRange<'a>],
        mode: Mode,
        precision: Precision,
        grads: &'a Tensor,
    ) -> Self {
        Self { batch, mode, kernels, precision, route, cache: None, grads: Some(grads), tape: Some(Vec::new()), norms: Vec::new() }
    }

    /// Whether layers must save what their backward needs.
    pub fn recording(&self) -> bool {
        self.tape.is_some()
    }

    /// Saves a tensor for the backward pass; does nothing while the tape is off.
    pub fn push(&mut self, tensor: &Tensor) {
        if let Some(tape) = &mut self.tape {
            tape.push(tensor.clone());
        }
    }

    /// Takes the tensor that was saved last.
    ///
    /// # Errors
    /// If the tape is empty: a layer's backward does not mirror its forward.
    pub fn pop(&mut self) -> candle_core::Result<Tensor> {
        match self.tape.as_mut().and_then(Vec::pop) {
            Some(tensor) => Ok(tensor),
            None => bail!("the tape is empty: a backward pass does not mirror its forward pass"),
        }
    }

    /// As [`Self::push`], on the norms' tape.
    pub fn push_norm(&mut self, tensor: &Tensor) {
        if self.recording() {
            self.norms.push(tensor.clone());
        }
    }

    /// As [`Self::pop`], from the norms' tape.
    ///
    /// # Errors
    /// If it is empty.
    pub fn pop_norm(&mut self) -> candle_core::Result<Tensor> {
        match self.norms.pop() {
            Some(tensor) => Ok(tensor),
            None => bail!("the norms' tape is empty: a backward pass does not mirror its forward pass"),
        }
    }

    /// What a norm saved, `back` entries before the last, and leaves it there.
    ///
    /// # Errors
    /// If there is none.
    pub fn saved_by_norm(&self, back: usize) -> candle_core::Result<Tensor> {
        match self.norms.iter().rev().nth(back) {
            Some(tensor) => Ok(tensor.clone()),
            None => bail!("the norms' tape is too short: a backward pass does not mirror its forward pass"),
        }
    }

    /// Runs `f` with the tape off: for frozen layers, and for blocks that will be run again.
    pub fn paused<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        let tape = self.tape.take();
        let result = f(self);
        self.tape = tape;
        result
    }

    /// Lets `f` add to a parameter's gradient in place (CPU).
    pub fn add_grad<R>(&self, slot: Slot, f: impl FnOnce(&mut [f32]) -> R) -> candle_core::Result<R> {
        let Some(grads) = self.grads else { bail!("a backward pass needs a gradient buffer") };
        with_f32_mut(grads, |all| f(&mut all[slot.range()]))
    }

    /// Adds a tensor to a parameter's gradient (any device).
    pub fn add_grad_tensor(&self, slot: Slot, grad: &Tensor) -> candle_core::Result<()> {
        let Some(grads) = self.grads else { bail!("a backward pass needs a gradient buffer") };
        let sum = (grads.narrow(0, slot.offset, slot.len)? + grad.flatten_all()?)?;
        grads.slice_set(&sum, 0, slot.offset)
    }
}
