//! Speed of an encoder in serving, on random tokens: JSON lines as the peers' scripts print them, without tokeniser and HTTP.
//!
//! `embed --model FOLDER [--batch 32] [--length 64] [--dtype f32|bf16|int8] [--threads 2] [--seconds 15]`
//!
//! `embed` makes vectors, `classify` the logits of a head that is drawn at random.

#[allow(dead_code)]
mod speed;

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use speed::{Failure, Flags};
use tunesmith_ml::infer::{Asked, ServeDtype, ServedBase, ServedClassifier, ServedEncoder, answer};
use tunesmith_ml::models::{Head, Stream, normal};
use tunesmith_ml::text::Encoded;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Texts per second of each pass, the fastest first; two passes warm up.
fn measure(f: &Flags, asked: Asked) -> Result<Vec<f64>, Failure> {
    let mut random = Stream::new(0, "bench");
    let rows: Vec<Encoded> = (0..f.batch)
        .map(|_| Encoded {
            ids: (0..f.length).map(|_| 1000 + random.below(28_000) as u32).collect(),
            type_ids: vec![0; f.length],
            truncated: 0,
        })
        .collect();
    let rows: Vec<_> = rows.iter().map(|row| (row, asked)).collect();
    let (mut rates, started) = (Vec::new(), Instant::now());
    while rates.len() < 5 || started.elapsed().as_secs_f64() < f.seconds {
        let from = Instant::now();
        answer(&rows)?;
        rates.push(f.batch as f64 / from.elapsed().as_secs_f64());
    }
    rates.drain(..2);
    rates.sort_by(|a, b| b.total_cmp(a));
    Ok(rates)
}

/// A head of four labels.
fn head(base: &ServedBase) -> Result<Head, Failure> {
    let (config, h) = (base.config(), base.config().hidden);
    let drawn = |name: &str, shape: &[usize]| normal(shape, 0.02, 0, name, &Device::Cpu);
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu);
    Ok(Head::from_tensors(config, drawn("dense", &[h, h])?, zeros(h)?, drawn("out", &[4, h])?, zeros(4)?, false)?)
}

fn run(f: &Flags) -> Result<(), Failure> {
    let dtype = match f.dtype.as_str() {
        "f32" => ServeDtype::F32,
        "bf16" => ServeDtype::Bf16,
        "int8" => ServeDtype::Int8,
        other => return Err(format!("--dtype {other} is none of f32, bf16, int8").into()),
    };
    let encoder = Arc::new(ServedEncoder::bare(Arc::new(ServedBase::load_as(&f.model, dtype)?)));
    f.report("embed", "texts/s", &f.dtype, &measure(f, Asked::Vector { encoder: &encoder, prompt_tokens: 0 })?)?;
    let classifier = ServedClassifier::of(encoder.clone(), head(&encoder.base)?, &f.model)?;
    f.report("classify", "texts/s", &f.dtype, &measure(f, Asked::Logits(&classifier))?)
}

fn main() -> Result<(), Failure> {
    let f = Flags::read("none", "f32", 32, 64)?;
    tunesmith_ops::threads::build_pool(f.threads)?.install(|| run(&f))
}
