//! Losses that are not numbers, and settings that contradict the model.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use tunesmith_ml::error::MlError;
use tunesmith_ml::models::write_safetensors;
use tunesmith_ml::spec::{Dtype, TargetModules, Tuning};

use crate::jobs::*;
use crate::reference::*;

fn not_finite(job: &Job) -> (&'static str, u64, String) {
    match job.run(None, &mut Recorder::new(None)) {
        Err(MlError::NotFinite { what, step, rows }) => (what, step, rows),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the run did not fail"),
    }
}

#[test]
fn a_learning_rate_that_blows_the_weights_up_fails_with_step_and_lines() {
    let mut spec = spec(Tuning::Full, &["film", "market"]);
    (spec.training.learning_rate, spec.training.num_train_epochs) = (1e30, 2.0);
    let lines: Vec<u64> = (101..109).collect();
    let (_, step, rows_there) = not_finite(&Job::new(fixtures().join("bert-tiny"), spec, rows(8, 2, 101), vec![]));
    assert_eq!(step, 2);
    let named: Vec<u64> = rows_there.split(", ").map(|l| l.parse().unwrap()).collect();
    assert_eq!(named.len(), 4);
    assert!(named.iter().all(|l| lines.contains(l)), "{rows_there}");
}

#[test]
fn infinite_weights_fail_at_the_first_step_with_the_rows_of_the_micro_batch() {
    let folder = edited("bert-tiny", |_| {});
    let file = tensors("bert-tiny/model.safetensors");
    let broken: Vec<_> = file
        .names()
        .into_iter()
        .map(|n| {
            let value = file.get_any(n, &Device::Cpu).unwrap();
            let infinite = n.ends_with("layer.1.output.dense.bias");
            (n.to_owned(), if infinite { (value * f64::INFINITY).unwrap() } else { value })
        })
        .collect();
    write_safetensors(&folder.path().join("model.safetensors"), &broken).unwrap();
    let mut spec = spec(lora(4, 8.0), &["film", "market"]);
    (spec.training.per_device_train_batch_size, spec.training.gradient_accumulation_steps) = (2, 4);
    let (what, step, rows_there) = not_finite(&Job::new(folder.path(), spec, rows(8, 2, 11), vec![]));
    assert_eq!((what, step, rows_there.split(", ").count()), ("loss", 1, 2));
}

#[test]
fn a_target_that_is_not_there_is_answered_with_those_that_are() {
    let tuning = |targets: TargetModules| match lora(4, 8.0) {
        Tuning::Lora(mut l) => {
            l.target_modules = targets;
            Tuning::Lora(l)
        }
        other => other,
    };
    for (targets, named) in [
        (TargetModules::Names(vec!["query".into(), "q_proj".into()]), "q_proj"),
        (TargetModules::Pattern(".*q_proj".into()), "q_proj"),
        (TargetModules::Pattern("*(".into()), "regular expression"),
        (TargetModules::Names(vec!["classifier".into()]), "classifier"),
    ] {
        let job = Job::new(fixtures().join("bert-tiny"), spec(tuning(targets), &["a", "b"]), rows(8, 2, 1), vec![]);
        match job.run(None, &mut Recorder::new(None)).err() {
            Some(MlError::Setting { param, message }) => {
                assert_eq!(param, "tuning.target_modules");
                assert!(message.contains(named), "{message}");
                assert!(named == "regular expression" || message.contains("query, key, value"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_estimate_grows_with_what_is_trained_and_kept() {
    let estimate = |tuning: Tuning, change: &dyn Fn(&mut tunesmith_ml::spec::TrainingSpec)| {
        let mut spec = spec(tuning, &["a", "b"]);
        change(&mut spec.training);
        Job::new(fixtures().join("bert-tiny"), spec, rows(64, 2, 1), vec![]).prepare().unwrap().plan.estimated_memory_bytes
    };
    let (full, lora8, head) = (estimate(Tuning::Full, &|_| {}), estimate(lora(8, 16.0), &|_| {}), estimate(Tuning::Head, &|_| {}));
    assert!(full > lora8 && lora8 > head, "{full} {lora8} {head}");
    assert!(estimate(Tuning::Full, &|t| t.per_device_train_batch_size = 32) > full);
    assert!(estimate(Tuning::Full, &|t| t.gradient_checkpointing = true) < full);
    // Operands are rounded on their way into a product: masters are all that is kept.
    assert_eq!(estimate(Tuning::Full, &|t| t.dtype = Dtype::Bfloat16), full);
    assert!(estimate(Tuning::Full, &|t| t.max_tokens_per_batch = Some(4096)) > full);
}
