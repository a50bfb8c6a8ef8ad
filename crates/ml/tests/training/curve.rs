//! Thirty steps in a fixed order against `transformers` and `peft`: losses, gradient norms, learning rates, final weights.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use serde_json::Value;
use tunesmith_data::Target;
use tunesmith_ml::models::load_base;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::spec::{JobSpec, ProblemType, Tuning};
use tunesmith_ml::train::{Classifier, LossSettings, Schedule};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

use crate::reference::*;

fn settings() -> LossSettings {
    LossSettings { problem_type: ProblemType::SingleLabelClassification, label_smoothing: 0.0, class_weights: vec![] }
}

/// The fixture's loop over our classifier.
fn follow(curve: &Value, expected: &Value, mut c: Classifier, spec: &JobSpec, what: &str) -> Classifier {
    let rows = curve["rows"].as_array().unwrap();
    let per_step = curve["batch"].as_u64().unwrap() as usize;
    let steps = expected["steps"].as_array().unwrap();
    let schedule = Schedule::new(&spec.training, steps.len() as u64);
    for (i, step) in steps.iter().enumerate() {
        let chosen: Vec<Value> = (0..per_step).map(|j| rows[(i * per_step + j) % rows.len()].clone()).collect();
        let labels: Vec<Target> = chosen.iter().map(|r| Target::Class(r["label"].as_u64().unwrap() as u32)).collect();
        let targets: Vec<&Target> = labels.iter().collect();
        let loss = c.train_batch(&batch(&chosen, 0), &targets, &settings(), per_step as f64, Mode::Eval).unwrap();
        let norm = c.grad_norm().unwrap();
        let t = &spec.training;
        let learning_rate = schedule.learning_rate(i as u64);
        let (loss_there, norm_there) = (step["loss"].as_f64().unwrap(), step["grad_norm"].as_f64().unwrap());
        assert!((loss - loss_there).abs() < 1e-3, "{what}, step {}: loss {loss}, expected {loss_there}", i + 1);
        assert!((norm - norm_there).abs() < 1e-3 * norm_there.max(1.0), "{what}, step {}: norm {norm}, expected {norm_there}", i + 1);
        assert!((learning_rate - step["learning_rate"].as_f64().unwrap()).abs() < 1e-12, "{what}, step {}: {learning_rate}", i + 1);
        let clip = (t.max_grad_norm / (norm + 1e-6)).min(1.0);
        let adamw = AdamW {
            lr: learning_rate as f32,
            beta1: t.adam_beta1 as f32,
            beta2: t.adam_beta2 as f32,
            eps: t.adam_epsilon as f32,
            weight_decay: t.weight_decay as f32,
            step: i as u64 + 1,
        };
        c.update(&adamw, clip as f32).unwrap();
    }
    c
}

fn ends_alike(curve: &Value, expected: &Value, c: &Classifier, prefix: &str, what: &str) {
    let norms = expected["final_norms"].as_object().unwrap();
    let mut compared = 0;
    for info in &c.params.infos {
        let Some(norm) = norms.get(&format!("{prefix}{}", info.name)).and_then(Value::as_f64) else {
            assert!(info.name.ends_with("key.bias"), "{what}: no norm of {}", info.name);
            continue;
        };
        let ours = flat(&c.params.value(info).unwrap()).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((ours - norm).abs() < 2e-3 * norm.max(0.1), "{what}: norm of {} is {ours}, expected {norm}", info.name);
        compared += 1;
    }
    assert_eq!(compared, norms.len(), "{what}");
    let rows = curve["rows"].as_array().unwrap();
    let logits = c.logits(&batch(&rows[..4], 0)).unwrap();
    let there: Vec<f32> = expected["final_logits_of_first_four_rows"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32))
        .collect();
    assert!(worst(&logits, &there) < 5e-3, "{what}: final logits are off by {}", worst(&logits, &there));
}

fn job(curve: &Value, tuning: Tuning, learning_rate: &Value, labels: &[String]) -> JobSpec {
    let mut spec = spec(tuning, &labels.iter().map(String::as_str).collect::<Vec<_>>());
    let t = &mut spec.training;
    t.learning_rate = learning_rate.as_f64().unwrap();
    t.warmup_steps = curve["warmup_steps"].as_f64().unwrap();
    t.weight_decay = curve["weight_decay"].as_f64().unwrap();
    t.max_grad_norm = curve["max_grad_norm"].as_f64().unwrap();
    spec
}

#[test]
fn thirty_steps_of_full_fine_tuning_follow_transformers() {
    let curve = json("curve.json");
    for kernels in BOTH {
        let base = load_base(&fixtures().join("bert-tiny"), &Device::Cpu).unwrap();
        let spec = job(&curve, Tuning::Full, &curve["full"]["learning_rate"], &base.labels());
        let c = Classifier::new(base, &spec, Precision::F32, kernels).unwrap();
        let what = format!("full {kernels:?}");
        let c = follow(&curve, &curve["full"], c, &spec, &what);
        ends_alike(&curve, &curve["full"], &c, "", &what);
    }
}

#[test]
fn thirty_steps_of_lora_follow_peft() {
    let curve = json("curve.json");
    let folder = curve["adapter"].as_str().unwrap();
    let config = json(&format!("{folder}/adapter_config.json"));
    let weights = tensors(&format!("{folder}/adapter_model.safetensors"));
    for kernels in BOTH {
        let base = load_base(&fixtures().join("bert-tiny"), &Device::Cpu).unwrap();
        let tuning = lora_of(&config);
        let spec = job(&curve, tuning, &curve["lora"]["learning_rate"], &base.labels());
        let mut c = Classifier::new(base, &spec, Precision::F32, kernels).unwrap();
        for info in &c.params.infos {
            let value = weights.get_any(&format!("base_model.model.{}", info.name), &Device::Cpu).unwrap();
            c.params.masters.slice_set(&value.flatten_all().unwrap(), 0, info.slot.offset).unwrap();
        }
        c.pack().unwrap();
        let what = format!("lora {kernels:?}");
        let c = follow(&curve, &curve["lora"], c, &spec, &what);
        ends_alike(&curve, &curve["lora"], &c, "base_model.model.", &what);
    }
}

#[test]
fn weight_decay_spares_biases_and_norms_alone() {
    for folder in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
        let base = load_base(&fixtures().join(folder), &Device::Cpu).unwrap();
        let c = Classifier::new(base, &spec(Tuning::Full, &["a", "b"]), Precision::F32, Kernels::Native).unwrap();
        for info in &c.params.infos {
            let spared = info.name.ends_with(".bias") || info.name.contains("LayerNorm") || info.name.contains("layer_norm");
            assert_eq!(info.decays, !spared, "{folder}: {}", info.name);
            assert_eq!(info.decays, info.shape.len() == 2, "{folder}: {}", info.name);
        }
    }
}
