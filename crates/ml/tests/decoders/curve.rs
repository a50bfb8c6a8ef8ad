//! Thirty steps in a fixed order against `transformers` and `peft`: losses, gradient norms, learning rates, final weights.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use tunesmith_ml::nn::Mode;
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::train::{LanguageModel, Schedule, Sequence};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

use crate::adapters::trainable;
use crate::reference::*;
use crate::*;

fn rows(curve: &Value) -> Vec<Sequence> {
    let one = |(i, row): (usize, &Value)| {
        let ids: Vec<u32> = row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let mut weights = vec![1.0; ids.len()];
        weights[0] = 0.0;
        Sequence { line: i as u64 + 1, ids, weights, truncated: 0 }
    };
    curve["rows"].as_array().unwrap().iter().enumerate().map(one).collect()
}

fn mean_loss(model: &LanguageModel, rows: &[Sequence]) -> f64 {
    let loss = model.evaluate(&rows.iter().collect::<Vec<_>>()).unwrap();
    loss.loss / loss.weight
}

fn follow(curve: &Value, expected: &Value, mut model: LanguageModel, prefix: &str, what: &str) {
    let rows = rows(curve);
    let number = |name: &str| curve[name].as_f64().unwrap();
    let mut training = spec(Tuning::Full, &[]).training;
    training.learning_rate = number("learning_rate");
    let steps = expected["steps"].as_array().unwrap();
    let schedule = Schedule::new(&training, steps.len() as u64);
    let close = |ours: f64, there: &Value, within: f64, name: &str| {
        let there = there.as_f64().unwrap();
        assert!((ours - there).abs() < within, "{what}: {name} is {ours}, expected {there}");
    };
    close(mean_loss(&model, &rows), &expected["first_loss_of_all_rows"], 1e-5, "the first loss");
    let batch = curve["batch"].as_u64().unwrap() as usize;
    for (i, step) in steps.iter().enumerate() {
        let chosen: Vec<&Sequence> = (0..batch).map(|j| &rows[(i * batch + j) % rows.len()]).collect();
        let weight: f64 = chosen.iter().map(|s| s.weight()).sum();
        assert_eq!(weight, step["tokens"].as_f64().unwrap());
        let loss = model.train_batch(&chosen, 0, weight, Mode::Eval).unwrap();
        let norm = model.grad_norm().unwrap();
        let rate = schedule.learning_rate(i as u64);
        let name = |figure: &str| format!("{figure} of step {}", i + 1);
        close(loss.loss / weight, &step["loss"], 1e-4, &name("the loss"));
        close(norm, &step["grad_norm"], 1e-4 * norm.max(1.0), &name("the gradient's norm"));
        close(rate, &step["learning_rate"], 1e-12, &name("the rate"));
        let clip = (number("max_grad_norm") / (norm + 1e-6)).min(1.0);
        let adamw =
            AdamW { lr: rate as f32, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: number("weight_decay") as f32, step: i as u64 + 1 };
        model.update(&adamw, clip as f32).unwrap();
    }
    close(mean_loss(&model, &rows), &expected["final_loss_of_all_rows"], 1e-4, "the final loss");
    let norms = expected["final_norms"].as_object().unwrap();
    assert_eq!(norms.len(), model.params.infos.len());
    let undecayed: Vec<&str> = expected["without_decay"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    for info in &model.params.infos {
        let name = format!("{prefix}{}", info.name);
        assert_eq!(info.decays, !undecayed.contains(&&name[..]), "{what}: weight decay of {name}");
        let norm = flat(&model.params.value(info).unwrap()).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        close(norm, &norms[&name], 1e-3 * norm.max(0.1), &format!("the norm of {name}"));
    }
}

#[test]
fn thirty_steps_of_full_fine_tuning_follow_transformers() {
    let curve = json("decoders/curve.json");
    for kernels in BOTH {
        let mut spec = spec(Tuning::Full, &[]);
        spec.training.weight_decay = curve["weight_decay"].as_f64().unwrap();
        let model = LanguageModel::new(base(curve["model"].as_str().unwrap()), &spec, Precision::F32, kernels).unwrap();
        follow(&curve, &curve["full"], model, "", &format!("full {kernels:?}"));
    }
}

#[test]
fn thirty_steps_of_lora_follow_peft() {
    let curve = json("decoders/curve.json");
    let name = |field: &str| curve[field].as_str().unwrap();
    for kernels in BOTH {
        let model = trainable(name("adapter"), name("model"), kernels);
        follow(&curve, &curve["lora"], model, "base_model.model.", &format!("LoRA {kernels:?}"));
    }
}
