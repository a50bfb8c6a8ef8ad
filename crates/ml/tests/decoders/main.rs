//! Decoders against `transformers` and `peft`.
#![allow(clippy::unwrap_used)]

mod adapters;
mod curve;
mod files;
mod parity;
#[path = "../reference/mod.rs"]
mod reference;
mod roundtrip;

use std::path::PathBuf;

use candle_core::Device;
use reference::*;
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::models::{BackwardPlan, WeightFile};
use tunesmith_ml::nn::{Batch, Ctx, Kernels, LoraRange};
use tunesmith_ml::train::Sequence;
use tunesmith_ops::matmul::Precision;

const FAMILIES: [&str; 8] =
    ["llama-tiny", "llama3-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "gemma2-tiny", "gemma3-tiny", "gpt2-tiny"];

const NO_TAPE: BackwardPlan = BackwardPlan { first: usize::MAX, checkpointing: false };

fn folder(family: &str) -> PathBuf {
    fixtures().join("decoders").join(family)
}

fn expected(family: &str) -> WeightFile {
    WeightFile::open(&[folder(family).join("expected.safetensors")]).unwrap()
}

fn base(family: &str) -> DecoderBase {
    DecoderBase::load(&folder(family), &Device::Cpu).unwrap()
}

fn integers(file: &WeightFile, name: &str) -> Vec<u32> {
    values(file, name).into_iter().map(|v| v as u32).collect()
}

/// The fixture's three sequences with their weights as targets.
fn sequences(file: &WeightFile) -> Vec<Sequence> {
    let one = |i: usize| {
        let mut weights = values(file, &format!("weights.{i}"));
        weights[0] = 0.0;
        Sequence { line: i as u64 + 1, ids: integers(file, &format!("ids.{i}")), weights, truncated: 0 }
    };
    (0..3).map(one).collect()
}

/// Logits of every token of the sequences, computed in one batch; the references were computed one by one.
fn logits(base: &mut DecoderBase, all: &[Sequence], kernels: Kernels, adapter: Option<&tunesmith_ml::nn::Adapter>) -> Vec<f32> {
    if kernels == Kernels::Native {
        base.decoder.pack(Precision::F32, false).unwrap();
    }
    let mut batch = Batch::new();
    all.iter().for_each(|s| batch.push(&s.ids, &vec![0; s.ids.len()], 0, 0));
    let route: Vec<LoraRange> = adapter.map(|adapter| LoraRange { rows: 0..batch.tokens(), adapter }).into_iter().collect();
    let mut ctx = Ctx::infer(&batch, kernels, &route);
    let hidden = base.decoder.forward(&mut ctx, NO_TAPE).unwrap();
    let rows: Vec<u32> = (0..batch.tokens() as u32).collect();
    flat(&base.decoder.logits(&hidden, &rows, &mut ctx).unwrap())
}

/// What the fixture holds as the three sequences' logits, each under this prefix.
fn reference_logits(file: &WeightFile, prefix: &str) -> Vec<f32> {
    (0..3).flat_map(|i| values(file, &format!("{prefix}logits.{i}"))).collect()
}
