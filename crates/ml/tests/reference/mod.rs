//! What tests of several files share: the fixtures' folder, a job's settings, comparisons.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde_json::Value;
use tunesmith_data::{Example, Target};
use tunesmith_ml::models::{WeightFile, read_json};
use tunesmith_ml::nn::{Batch, Kernels};
use tunesmith_ml::spec::*;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub fn json(path: &str) -> Value {
    read_json(&fixtures().join(path)).unwrap()
}

pub fn tensors(path: &str) -> WeightFile {
    WeightFile::open(&[fixtures().join(path)]).unwrap()
}

pub fn values(file: &WeightFile, name: &str) -> Vec<f32> {
    file.get_any(name, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// A job with every default of the contract, no warm-up and constant seed.
pub fn spec(tuning: Tuning, labels: &[&str]) -> JobSpec {
    JobSpec {
        task: Task::Classification,
        seed: 7,
        data: DataSpec {
            text_column: "text".into(),
            label_column: "label".into(),
            text_pair_column: None,
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            labels_by_id: false,
            problem_type: ProblemType::SingleLabelClassification,
            validation_split: 0.0,
            language: None,
        },
        tuning,
        training: TrainingSpec {
            num_train_epochs: 1.0,
            max_steps: -1,
            per_device_train_batch_size: 4,
            max_tokens_per_batch: None,
            gradient_accumulation_steps: 1,
            learning_rate: 1e-3,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_steps: 0.0,
            weight_decay: 0.01,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            label_smoothing_factor: 0.0,
            class_weights: None,
            max_length: None,
            eval_steps: None,
            save_steps: None,
            logging_steps: 1,
            save_total_limit: 5,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            gradient_checkpointing: false,
            dtype: Dtype::Float32,
            packing: false,
            assistant_only_loss: None,
        },
    }
}

pub fn lora(r: usize, alpha: f64) -> Tuning {
    Tuning::Lora(LoraSpec {
        r,
        lora_alpha: alpha,
        lora_dropout: 0.0,
        use_rslora: false,
        target_modules: TargetModules::Pattern("all-linear".into()),
        modules_to_save: None,
    })
}

/// The fixtures' LoRA: PEFT saved the modules that its configuration names, and the head's other layer stayed frozen.
pub fn lora_of(config: &Value) -> Tuning {
    let Tuning::Lora(spec) = lora(config["r"].as_u64().unwrap() as usize, config["lora_alpha"].as_f64().unwrap()) else { unreachable!() };
    let named = config["modules_to_save"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_owned());
    // PEFT adds the name of a head that other families have.
    Tuning::Lora(LoraSpec { modules_to_save: Some(named.filter(|m| m != "score").collect()), ..spec })
}

/// Rows of token ids as a packed batch.
pub fn batch(rows: &[Value], position_offset: u32) -> Batch {
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let mut batch = Batch::new();
    for (i, row) in rows.iter().enumerate() {
        batch.push(&ids(&row["ids"]), &ids(&row["type_ids"]), i as u64, position_offset);
    }
    batch
}

/// Targets of a parity case.
pub fn targets(case: &Value) -> Vec<Target> {
    let labels = case["labels"].as_array().unwrap();
    match case["problem_type"].as_str().unwrap() {
        "single_label_classification" => labels.iter().map(|l| Target::Class(l.as_u64().unwrap() as u32)).collect(),
        "multi_label_classification" => labels
            .iter()
            .map(|row| {
                Target::Classes(
                    row.as_array().unwrap().iter().enumerate().filter(|(_, v)| v.as_f64().unwrap() > 0.5).map(|(i, _)| i as u32).collect(),
                )
            })
            .collect(),
        _ => labels.iter().map(|l| Target::Value(l.as_f64().unwrap() as f32)).collect(),
    }
}

pub fn example(line: u64, text: &str, class: u32) -> Example {
    Example { line, text: text.to_owned(), text_pair: None, target: Target::Class(class) }
}

/// Largest absolute difference.
pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Difference of two gradients relative to the reference's norm.
pub fn relative(ours: &[f32], reference: &[f32]) -> f64 {
    assert_eq!(ours.len(), reference.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(reference).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut reference.iter().map(|v| f64::from(*v))).max(1e-12)
}

pub const BOTH: [Kernels; 2] = [Kernels::Native, Kernels::Composed];
