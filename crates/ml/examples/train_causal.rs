//! Training speed of a language model on random tokens: one JSON line, as the peers' scripts print it.
//!
//! `train_causal --model FOLDER_OR_GGUF [--tuning lora|full] [--dtype auto|f32|bf16] [--batch 4] [--length 256] [--threads 2] [--seconds 15]`

mod speed;

use std::time::Instant;

use candle_core::Device;
use serde_json::json;
use speed::{Failure, Flags};
use tunesmith_ml::models::Stream;
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::train::{LanguageModel, Sequence, precision};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tokens per second of each step, the fastest first, and the precision; two warm-up steps are left out.
fn measure(f: &Flags) -> Result<(Vec<f64>, &'static str), Failure> {
    // Every token is a target.
    let spec = f.spec("causal_lm", &[], json!("all-linear"), None, 1e-4)?;
    let base = DecoderBase::load(&f.model, &Device::Cpu)?;
    let precision = precision(spec.training.dtype, &Device::Cpu);
    let mut model = LanguageModel::new(base, &spec, precision, Kernels::Native)?;
    let mut random = Stream::new(0, "bench");
    let row = |line: usize, random: &mut Stream| {
        let mut weights = vec![1.0; f.length];
        weights[0] = 0.0;
        let ids = (0..f.length).map(|_| 100 + random.below(48_900) as u32).collect();
        Sequence { line: line as u64 + 1, ids, weights, truncated: 0 }
    };
    let rows: Vec<Sequence> = (0..f.batch).map(|i| row(i, &mut random)).collect();
    let rows: Vec<&Sequence> = rows.iter().collect();
    let targets: f64 = rows.iter().map(|r| r.weight()).sum();
    let (mut rates, started) = (Vec::new(), Instant::now());
    let mut step = 0;
    while step < 5 || started.elapsed().as_secs_f64() < f.seconds {
        step += 1;
        let from = Instant::now();
        model.train_batch(&rows, 0, targets, Mode::Train { seed: 0, step })?;
        model.update(&AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step }, 1.0)?;
        if step > 2 {
            rates.push((f.batch * f.length) as f64 / from.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(|a, b| b.total_cmp(a));
    Ok((rates, if precision == Precision::Bf16 { "bf16" } else { "f32" }))
}

fn main() -> Result<(), Failure> {
    let f = Flags::read("lora", "auto", 4, 256)?;
    let pool = tunesmith_ops::threads::build_pool(f.threads)?;
    let (rates, dtype) = pool.install(|| measure(&f))?;
    f.report("train_causal", "tokens/s", dtype, &rates)
}
