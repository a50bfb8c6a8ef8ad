//! Training speed of an encoder on random tokens: one JSON line, as the peers' scripts print it.
//!
//! `train_encoder --model FOLDER [--tuning full|lora] [--dtype f32|bf16|auto] [--batch 16] [--length 128] [--threads 2] [--seconds 15]`

mod speed;

use std::time::Instant;

use serde_json::json;
use speed::{Failure, Flags};
use tunesmith_data::Target;
use tunesmith_ml::models::{Stream, load_base};
use tunesmith_ml::nn::{Batch, Mode};
use tunesmith_ml::spec::Dtype;
use tunesmith_ml::train::{Classifier, LossSettings, precision};
use tunesmith_ops::optim::AdamW;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Samples per second of each step, the fastest first; two warm-up steps are left out.
fn measure(f: &Flags) -> Result<Vec<f64>, Failure> {
    let spec = f.spec("classification", &["a", "b", "c", "d"], json!(["query", "value"]), Some(&["classifier"]), 5e-5)?;
    let (device, kernels) = tunesmith_ml::device::cpu();
    let base = load_base(&f.model, &device)?;
    let dtype: Dtype = spec.training.dtype;
    let mut classifier = Classifier::new(base, &spec, precision(dtype, &device), kernels)?;
    let mut random = Stream::new(0, "bench");
    let mut batch = Batch::new();
    for row in 0..f.batch {
        let ids: Vec<u32> = (0..f.length).map(|_| 1000 + random.below(28_000) as u32).collect();
        batch.push(&ids, &vec![0; f.length], row as u64, 0);
    }
    let targets: Vec<Target> = (0..f.batch).map(|_| Target::Class(random.below(4) as u32)).collect();
    let targets: Vec<&Target> = targets.iter().collect();
    let loss = LossSettings { problem_type: spec.data.problem_type, label_smoothing: 0.0, class_weights: Vec::new() };
    let (mut rates, started) = (Vec::new(), Instant::now());
    let mut step = 0;
    while step < 5 || started.elapsed().as_secs_f64() < f.seconds {
        step += 1;
        let from = Instant::now();
        classifier.train_batch(&batch, &targets, &loss, f.batch as f64, Mode::Train { seed: 0, step })?;
        classifier.update(&AdamW { lr: 5e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step }, 1.0)?;
        if step > 2 {
            rates.push(f.batch as f64 / from.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(|a, b| b.total_cmp(a));
    Ok(rates)
}

fn main() -> Result<(), Failure> {
    let f = Flags::read("full", "f32", 16, 128)?;
    let pool = tunesmith_ops::threads::build_pool(f.threads)?;
    let rates = pool.install(|| measure(&f))?;
    f.report("train_encoder", "samples/s", &f.dtype, &rates)
}
