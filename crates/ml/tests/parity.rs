//! Logits, losses and gradients against `transformers` and `peft`, for each family, natively and composed.
#![allow(clippy::unwrap_used)]

mod reference;

use candle_core::Device;
use reference::*;
use serde_json::Value;
use tunesmith_data::Target;
use tunesmith_ml::models::load_base;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::train::{Classifier, LossSettings, loss};
use tunesmith_ops::matmul::Precision;

const FAMILIES: [&str; 3] = ["bert-tiny", "distilbert-tiny", "roberta-tiny"];

fn classifier(folder: &str, tuning: Tuning, kernels: Kernels) -> Classifier {
    let base = load_base(&fixtures().join(folder), &Device::Cpu).unwrap();
    let labels = base.labels();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    Classifier::new(base, &spec(tuning, &labels), Precision::F32, kernels).unwrap()
}

fn settings(case: &Value) -> LossSettings {
    LossSettings {
        problem_type: serde_json::from_value(case["problem_type"].clone()).unwrap(),
        label_smoothing: case["label_smoothing"].as_f64().unwrap_or(0.0),
        class_weights: case["class_weights"].as_array().map(|w| w.iter().map(|v| v.as_f64().unwrap()).collect()).unwrap_or_default(),
    }
}

/// Compares the gradients of all parameters that the file holds under `prefix`.
fn gradients_agree(classifier: &Classifier, file: &tunesmith_ml::models::WeightFile, prefix: &str, zeros: &[String], what: &str) {
    let grads = flat(&classifier.params.grads);
    let mut compared = 0;
    for info in &classifier.params.infos {
        let ours = &grads[info.slot.range()];
        let name = format!("{prefix}{}", info.name);
        if zeros.contains(&info.name) {
            assert!(ours.iter().all(|g| g.abs() < 1e-5), "{what}: {} should be zero", info.name);
            continue;
        }
        let expected = values(file, &name);
        let error = relative(ours, &expected);
        assert!(error < 1e-4, "{what}: gradient of {} is off by {error:.2e}", info.name);
        if expected.iter().any(|g| *g != 0.0) {
            assert!(ours.iter().any(|g| *g != 0.0), "{what}: gradient of {} is zero", info.name);
        }
        compared += 1;
    }
    assert!(compared > 10, "{what}: only {compared} gradients were compared");
}

fn names(v: &Value) -> Vec<String> {
    v.as_array().map(|a| a.iter().map(|s| s.as_str().unwrap().to_owned()).collect()).unwrap_or_default()
}

#[test]
fn eval_logits_and_every_gradient_of_full_fine_tuning_agree_with_transformers() {
    for (folder, kernels) in FAMILIES.iter().flat_map(|f| BOTH.map(|k| (*f, k))) {
        let (expected, file) = (json(&format!("{folder}/parity.json")), tensors(&format!("{folder}/parity.safetensors")));
        let what = format!("{folder} {kernels:?}");
        let c = classifier(folder, Tuning::Full, kernels);
        let batch = batch(expected["rows"].as_array().unwrap(), c.position_offset());
        let off = worst(&c.logits(&batch).unwrap(), &values(&file, "logits"));
        assert!(off < 1e-4, "{what}: logits are off by {off:.2e}");
        let case = expected["cases"].as_array().unwrap().iter().find(|c| c["name"] == "single_label").unwrap();
        let targets = targets(case);
        let targets: Vec<&Target> = targets.iter().collect();
        let settings = settings(case);
        let denominator = settings.denominator(targets.iter().copied(), c.outputs());
        c.zero_grads().unwrap();
        let value = c.train_batch(&batch, &targets, &settings, denominator, Mode::Eval).unwrap();
        assert!((value - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}: loss {value}");
        gradients_agree(&c, &file, "single_label/grad/", &names(&expected["expected_zeros"]), &what);
    }
}

#[test]
fn every_loss_and_its_gradient_agree_with_torch() {
    for folder in FAMILIES {
        let (expected, file) = (json(&format!("{folder}/parity.json")), tensors(&format!("{folder}/parity.safetensors")));
        let logits = values(&file, "logits");
        for case in expected["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            if name == "regression_one" || case["problem_type"] == "regression" {
                continue; // one output each: below
            }
            let (targets, settings) = (targets(case), settings(case));
            let targets: Vec<&Target> = targets.iter().collect();
            let denominator = settings.denominator(targets.iter().copied(), 3);
            let (value, grad) = loss(&logits, &targets, 3, &settings, denominator);
            assert!((value - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{folder} {name}: {value}");
            assert!(worst(&grad, &values(&file, &format!("{name}/dlogits"))) < 1e-6, "{folder} {name}");
        }
    }
}

#[test]
fn gradient_checkpointing_changes_no_bit_with_dropout_on() {
    let expected = json("bert-tiny/parity.json");
    let case = &expected["cases"][0];
    let targets = targets(case);
    let targets: Vec<&Target> = targets.iter().collect();
    for tuning in [Tuning::Full, lora(4, 8.0)] {
        let grads = [false, true].map(|checkpointing| {
            let base = load_base(&fixtures().join("bert-tiny"), &Device::Cpu).unwrap();
            let mut spec = spec(tuning.clone(), &["a", "b", "c"]);
            spec.training.gradient_checkpointing = checkpointing;
            let c = Classifier::new(base, &spec, Precision::F32, Kernels::Native).unwrap();
            let batch = batch(expected["rows"].as_array().unwrap(), 0);
            c.train_batch(&batch, &targets, &settings(case), 6.0, Mode::Train { seed: 1, step: 3 }).unwrap();
            flat(&c.params.grads)
        });
        assert!(grads[0].iter().any(|g| *g != 0.0));
        assert_eq!(grads[0], grads[1]);
    }
}

#[test]
fn dropout_drops_alike_natively_and_composed() {
    let expected = json("bert-tiny/parity.json");
    let case = &expected["cases"][0];
    let targets = targets(case);
    let targets: Vec<&Target> = targets.iter().collect();
    let grads = BOTH.map(|kernels| {
        let c = classifier("bert-tiny", Tuning::Full, kernels);
        let batch = batch(expected["rows"].as_array().unwrap(), 0);
        c.train_batch(&batch, &targets, &settings(case), 6.0, Mode::Train { seed: 1, step: 3 }).unwrap();
        flat(&c.params.grads)
    });
    assert!(relative(&grads[0], &grads[1]) < 1e-5, "{}", relative(&grads[0], &grads[1]));
}

#[test]
fn lora_gradients_agree_with_peft() {
    for (folder, adapter) in [("bert-tiny", "bert"), ("distilbert-tiny", "distilbert"), ("roberta-tiny", "roberta")] {
        for kernels in BOTH {
            let expected = json(&format!("lora/{adapter}/expected.json"));
            let config = json(&format!("lora/{adapter}/adapter_config.json"));
            let file = tensors(&format!("lora/{adapter}/expected.safetensors"));
            let weights = tensors(&format!("lora/{adapter}/adapter_model.safetensors"));
            let tuning = lora_of(&config);
            let mut c = classifier(folder, tuning, kernels);
            for info in &c.params.infos {
                let value = weights.get_any(&format!("base_model.model.{}", info.name), &Device::Cpu).unwrap();
                c.params.masters.slice_set(&value.flatten_all().unwrap(), 0, info.slot.offset).unwrap();
            }
            c.pack().unwrap();
            let batch = batch(expected["rows"].as_array().unwrap(), c.position_offset());
            let what = format!("{adapter} {kernels:?}");
            let off = worst(&c.logits(&batch).unwrap(), &values(&file, "logits"));
            assert!(off < 1e-4, "{what}: logits are off by {off:.2e}");
            let labels: Vec<Target> =
                expected["labels"].as_array().unwrap().iter().map(|l| Target::Class(l.as_u64().unwrap() as u32)).collect();
            let targets: Vec<&Target> = labels.iter().collect();
            let settings = LossSettings {
                problem_type: tunesmith_ml::spec::ProblemType::SingleLabelClassification,
                label_smoothing: 0.0,
                class_weights: vec![],
            };
            let value = c.train_batch(&batch, &targets, &settings, targets.len() as f64, Mode::Eval).unwrap();
            assert!((value - expected["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}: loss {value}");
            gradients_agree(&c, &file, "grad/base_model.model.", &names(&expected["expected_zeros"]), &what);
        }
    }
}
