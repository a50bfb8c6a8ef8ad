//! Training speed of an encoder on random tokens: one JSON line, as the peers' scripts print it.
//!
//! `train_encoder --model FOLDER [--tuning full|lora] [--dtype f32|bf16|auto] [--batch 16] [--length 128] [--threads 2] [--seconds 15]`

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use tunesmith_data::Target;
use tunesmith_ml::models::{Stream, load_base};
use tunesmith_ml::nn::{Batch, Mode};
use tunesmith_ml::spec::{Dtype, JobSpec};
use tunesmith_ml::train::{Classifier, LossSettings, precision};
use tunesmith_ops::optim::AdamW;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command's flags, with their defaults.
struct Flags {
    model: PathBuf,
    tuning: String,
    dtype: String,
    batch: usize,
    length: usize,
    threads: usize,
    seconds: f64,
}

fn flags() -> Result<Flags, Box<dyn std::error::Error>> {
    let threads = std::thread::available_parallelism()?.get();
    let mut f = Flags { model: PathBuf::new(), tuning: "full".into(), dtype: "f32".into(), batch: 16, length: 128, threads, seconds: 15.0 };
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

/// The peer's job: four labels, LoRA of rank 8 on query and value, AdamW at 5e-5.
fn spec(f: &Flags) -> Result<JobSpec, serde_json::Error> {
    let tuning = match f.tuning.as_str() {
        "lora" => json!({"type": "lora", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "use_rslora": false,
            "target_modules": ["query", "value"], "modules_to_save": ["classifier"]}),
        other => json!({"type": other}),
    };
    serde_json::from_value(json!({
        "task": "classification", "seed": 0, "tuning": tuning,
        "data": {"text_column": "text", "label_column": "label", "text_pair_column": null, "labels": ["a", "b", "c", "d"],
            "problem_type": "single_label_classification", "validation_split": 0.0},
        "training": {"num_train_epochs": 1.0, "max_steps": -1, "per_device_train_batch_size": f.batch, "max_tokens_per_batch": null,
            "gradient_accumulation_steps": 1, "learning_rate": 5e-5, "lr_scheduler_type": "constant", "warmup_steps": 0.0,
            "weight_decay": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 0.0,
            "label_smoothing_factor": 0.0, "class_weights": null, "max_length": f.length, "eval_steps": null, "save_steps": null,
            "logging_steps": 10, "save_total_limit": 1, "load_best_model_at_end": false, "metric_for_best_model": null,
            "greater_is_better": null, "early_stopping_patience": null, "gradient_checkpointing": false, "dtype": f.dtype, "packing": false},
    }))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let f = flags()?;
    let pool = tunesmith_ops::threads::build_pool(f.threads)?;
    let rates = pool.install(|| measure(&f)).map_err(|e| e.to_string())?;
    let peak = std::fs::read_to_string("/proc/self/status")?;
    let kib = peak.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0);
    let rounded = |x: f64| (x * 100.0).round() / 100.0;
    println!(
        "{}",
        json!({"name": "train_encoder", "unit": "samples/s", "best": rounded(rates[0]), "median": rounded(rates[rates.len() / 2]),
            "peak_rss_mib": (kib / 1024.0).round() as u64, "tuning": f.tuning, "dtype": f.dtype, "batch": f.batch, "length": f.length, "threads": f.threads})
    );
    Ok(())
}

/// Samples per second of each step, the fastest first; two warm-up steps are left out.
fn measure(f: &Flags) -> Result<Vec<f64>, Box<dyn std::error::Error + Send + Sync>> {
    let spec = spec(f)?;
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
        classifier.zero_grads()?;
        classifier.train_batch(&batch, &targets, &loss, f.batch as f64, Mode::Train { seed: 0, step })?;
        classifier.update(&AdamW { lr: 5e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step }, 1.0)?;
        if step > 2 {
            rates.push(f.batch as f64 / from.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(|a, b| b.total_cmp(a));
    Ok(rates)
}
