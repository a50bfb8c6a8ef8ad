//! bf16 products with f32 masters, with and without a unit for them, and results that do not depend on threads.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use candle_core::Device;
use tunesmith_ml::models::{WeightFile, load_base};
use tunesmith_ml::nn::{Kernels, ParamInfo};
use tunesmith_ml::spec::{Dtype, JobSpec, SchedulerType, Tuning};
use tunesmith_ml::train::{Classifier, Control, Outcome};
use tunesmith_ops::matmul::Precision;

use crate::jobs::*;
use crate::reference::*;

const LABELS: [&str; 2] = ["film", "market"];

/// One fixed batch, 200 steps.
fn fixed_batch(dtype: Dtype, learning_rate: f64, weight_decay: f64) -> JobSpec {
    let mut spec = spec(Tuning::Full, &LABELS);
    spec.seed = 2;
    let t = &mut spec.training;
    (t.max_steps, t.lr_scheduler_type, t.learning_rate, t.weight_decay) = (200, SchedulerType::Constant, learning_rate, weight_decay);
    (t.dtype, t.save_steps, t.logging_steps) = (dtype, Some(100), 50);
    spec
}

fn job(spec: JobSpec) -> Job {
    Job::new(fixtures().join("bert-tiny"), spec, rows(4, 2, 1), vec![])
}

/// The masters at the start, the parameters, and the masters and second moments after the last step.
fn masters(spec: &JobSpec) -> (Vec<f32>, Vec<ParamInfo>, Vec<f32>, Vec<f32>) {
    let base = load_base(&fixtures().join("bert-tiny"), &Device::Cpu).unwrap();
    let start = Classifier::new(base, spec, Precision::F32, Kernels::Native).unwrap();
    let (_, recorder) = job(spec.clone()).finish();
    let state = WeightFile::open(&[recorder.kept(200).join("state.safetensors")]).unwrap();
    (flat(&start.params.masters), start.params.infos.clone(), values(&state, "masters"), values(&state, "exp_avg_sq"))
}

#[test]
fn small_updates_are_not_lost_in_bf16() {
    for (learning_rate, weight_decay) in [(1e-6, 0.0), (1e-4, 0.1)] {
        let runs = [Dtype::Bfloat16, Dtype::Float32].map(|d| masters(&fixed_batch(d, learning_rate, weight_decay)));
        let (start, infos, ..) = &runs[0];
        // Not the biases of keys, whose gradient is rounding, and not the rows of tables that no token uses.
        let trained: Vec<usize> = infos
            .iter()
            .filter(|i| !i.name.ends_with("key.bias"))
            .flat_map(|i| i.slot.range())
            .filter(|i| runs.iter().all(|r| r.3[*i] > 0.0))
            .collect();
        assert!(trained.len() > 10_000, "{}", trained.len());
        let updates = runs.each_ref().map(|r| trained.iter().map(|i| f64::from(r.2[*i]) - f64::from(start[*i])).collect::<Vec<_>>());
        for update in &updates {
            let changed = update.iter().filter(|u| **u != 0.0).count() as f64 / trained.len() as f64;
            assert!(changed > 0.95, "only {changed} of the masters changed at {learning_rate}");
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let [bf16, f32] = &updates;
        let (norm16, norm32) = (dot(bf16, bf16).sqrt(), dot(f32, f32).sqrt());
        let cosine = dot(bf16, f32) / (norm16 * norm32);
        assert!(cosine > 0.95 && (0.9..1.1).contains(&(norm16 / norm32)), "{learning_rate}: cosine {cosine}, {norm16} to {norm32}");
    }
}

#[test]
fn a_bf16_run_resumes_bit_exactly() {
    let spec = fixed_batch(Dtype::Bfloat16, 1e-4, 0.1);
    let (whole, _kept) = job(spec.clone()).finish();
    let mut first = Recorder::new(Some(Ask { step: 100, call: 0, control: Control::Pause }));
    assert!(matches!(job(spec.clone()).run(None, &mut first).unwrap(), Outcome::Paused));
    let mut second = Recorder::new(None);
    let resumed = finished(job(spec).run(Some(&first.kept(100)), &mut second).unwrap());
    assert!(bytes_of(&whole.model) == bytes_of(&resumed.model));
}

fn short_bf16() -> (String, Vec<f64>) {
    let mut spec = fixed_batch(Dtype::Bfloat16, 1e-3, 0.01);
    (spec.training.max_steps, spec.training.logging_steps) = (20, 1);
    let job = job(spec);
    let dtype = job.prepare().unwrap().plan.dtype;
    (dtype, job.finish().1.losses().into_values().collect())
}

/// Not a test of its own: what the next one runs with fewer instructions.
#[test]
#[ignore = "started by bf16_trains_without_a_unit_for_it"]
fn child_prints_bf16_losses() {
    let losses: Vec<String> = short_bf16().1.iter().map(f64::to_string).collect();
    println!("unit {} losses {}", tunesmith_ops::cpu::has_bf16(), losses.join(","));
}

#[test]
fn bf16_trains_without_a_unit_for_it() {
    let (dtype, here) = short_bf16();
    assert_eq!(dtype, "bfloat16");
    assert!(here.last().unwrap() < &here[0]);
    for isa in ["scalar", "avx2"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["precision::child_prints_bf16_losses", "--exact", "--ignored", "--nocapture"])
            .env("TUNESMITH_ISA", isa)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let line = out.lines().find_map(|l| l.split_once("unit false losses ")).unwrap_or_else(|| panic!("{isa}: {out}")).1;
        let there: Vec<f64> = line.split(',').map(|l| l.parse().unwrap()).collect();
        assert_eq!(there.len(), here.len());
        for (a, b) in here.iter().zip(&there) {
            assert!((a - b).abs() < 2e-2, "{isa}: {here:?} {there:?}");
        }
    }
}

#[test]
fn bf16_on_composed_operations_is_refused_and_f32_is_not() {
    let on_composed = |dtype: Dtype| {
        let mut job = job(fixed_batch(dtype, 1e-3, 0.0));
        job.kernels = Kernels::Composed;
        job.prepare().map(|p| p.plan.dtype).map_err(|e| e.to_string())
    };
    assert!(on_composed(Dtype::Bfloat16).unwrap_err().contains("float32"));
    assert_eq!(on_composed(Dtype::Float32).unwrap(), "float32");
}

#[test]
fn composed_operations_train_like_our_kernels() {
    let mut spec = fixed_batch(Dtype::Float32, 1e-3, 0.01);
    (spec.training.max_steps, spec.training.logging_steps) = (20, 1);
    let [native, composed] = BOTH.map(|kernels| {
        let mut job = job(spec.clone());
        job.kernels = kernels;
        job.finish().1.losses()
    });
    assert_eq!(native.len(), 20);
    for (step, loss) in &native {
        assert!((loss - composed[step]).abs() < 1e-3, "step {step}: {loss}, {}", composed[step]);
    }
}

#[test]
fn neither_training_nor_evaluation_depends_on_the_number_of_threads() {
    let base = random_bert(128, 2, 512);
    for (tuning, dtype) in [(Tuning::Full, Dtype::Float32), (lora(8, 16.0), Dtype::Float32), (Tuning::Full, Dtype::Bfloat16)] {
        let runs = [1, 3].map(|threads| {
            let pool = tunesmith_ops::threads::build_pool(threads).unwrap();
            let mut spec = spec(tuning.clone(), &LABELS);
            let t = &mut spec.training;
            (t.per_device_train_batch_size, t.max_steps, t.eval_steps, t.dtype) = (16, 6, Some(3), dtype);
            pool.install(|| {
                let (finished, recorder) = Job::new(base.path(), spec, rows(40, 2, 1), rows(50, 2, 1)).finish();
                (recorder.losses(), recorder.entries("grad_norm"), recorder.entries("eval_loss"), bytes_of(&finished.model))
            })
        });
        assert_eq!((&runs[0].0, &runs[0].1, &runs[0].2), (&runs[1].0, &runs[1].1, &runs[1].2), "{tuning:?}");
        assert!(runs[0].3 == runs[1].3, "{tuning:?} {dtype:?}: the models differ");
    }
}
