//! Training speed of a language model on random tokens: one JSON line, as the peers' scripts print it.
//!
//! `train_causal --model FOLDER_OR_GGUF [--tuning lora|full] [--dtype auto|f32|bf16] [--batch 4] [--length 256] [--threads 2] [--seconds 15]`

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use serde_json::json;
use tunesmith_ml::models::Stream;
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::spec::JobSpec;
use tunesmith_ml::train::{LanguageModel, Sequence, precision};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Flags {
    model: PathBuf,
    tuning: String,
    dtype: String,
    batch: usize,
    length: usize,
    threads: usize,
    seconds: f64,
}

fn flags() -> Result<Flags, Failure> {
    let threads = std::thread::available_parallelism()?.get();
    let mut f = Flags { model: PathBuf::new(), tuning: "lora".into(), dtype: "auto".into(), batch: 4, length: 256, threads, seconds: 15.0 };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--model" => f.model = value.into(),
            "--tuning" => f.tuning = value,
            "--dtype" => f.dtype = value,
            "--batch" => f.batch = value.parse()?,
            "--length" => f.length = value.parse()?,
            "--threads" => f.threads = value.parse()?,
            "--seconds" => f.seconds = value.parse()?,
            _ => return Err(format!("unknown flag {name}").into()),
        }
    }
    Ok(f)
}

/// The peer's job: LoRA of rank 8 on all linear layers, or everything; AdamW at 1e-4; every token a target.
fn spec(f: &Flags) -> Result<JobSpec, serde_json::Error> {
    let tuning = match f.tuning.as_str() {
        "lora" => json!({"type": "lora", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "use_rslora": false,
            "target_modules": "all-linear", "modules_to_save": null}),
        other => json!({"type": other}),
    };
    serde_json::from_value(json!({
        "task": "causal_lm", "seed": 0, "tuning": tuning,
        "data": {"text_column": "text", "label_column": "label", "text_pair_column": null, "labels": [],
            "problem_type": "single_label_classification", "validation_split": 0.0},
        "training": {"num_train_epochs": 1.0, "max_steps": -1, "per_device_train_batch_size": f.batch, "max_tokens_per_batch": null,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_steps": 0.0,
            "weight_decay": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 0.0,
            "label_smoothing_factor": 0.0, "class_weights": null, "max_length": f.length, "eval_steps": null, "save_steps": null,
            "logging_steps": 10, "save_total_limit": 1, "load_best_model_at_end": false, "metric_for_best_model": null,
            "greater_is_better": null, "early_stopping_patience": null, "gradient_checkpointing": false, "dtype": f.dtype, "packing": false},
    }))
}

/// Tokens per second of each step, the fastest first, and the precision; two warm-up steps are left out.
fn measure(f: &Flags) -> Result<(Vec<f64>, &'static str), Failure> {
    let spec = spec(f)?;
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
        model.zero_grads()?;
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
    let f = flags()?;
    let pool = tunesmith_ops::threads::build_pool(f.threads)?;
    let (rates, dtype) = pool.install(|| measure(&f))?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib =
        status.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0);
    let rounded = |x: f64| (x * 100.0).round() / 100.0;
    println!(
        "{}",
        json!({"name": "train_causal", "unit": "tokens/s", "best": rounded(rates[0]), "median": rounded(rates[rates.len() / 2]),
            "peak_rss_mib": (kib / 1024.0).round() as u64, "tuning": f.tuning, "dtype": dtype, "batch": f.batch, "length": f.length, "threads": f.threads})
    );
    Ok(())
}
