//! Whole runs: what arrives at the observer, repeatability, batches by tokens, fractional epochs, accumulation.
#![allow(clippy::unwrap_used)]

use tunesmith_ml::models::WeightFile;
use tunesmith_ml::nn::Batch;
use tunesmith_ml::spec::{LoraSpec, SchedulerType, TargetModules, Tuning};
use tunesmith_ml::train::{EpochOrder, Level};

use crate::jobs::*;
use crate::reference::*;

const LABELS: [&str; 3] = ["film", "market", "sport"];

fn lora_with_dropout(r: usize) -> Tuning {
    Tuning::Lora(LoraSpec {
        r,
        lora_alpha: 2.0 * r as f64,
        lora_dropout: 0.1,
        use_rslora: false,
        target_modules: TargetModules::Pattern("all-linear".into()),
        modules_to_save: None,
    })
}

#[test]
fn a_run_reports_logs_evaluations_checkpoints_and_progress_where_they_are_due() {
    let mut spec = spec(lora(4, 8.0), &LABELS);
    spec.training.num_train_epochs = 2.0;
    spec.training.logging_steps = 3;
    spec.training.eval_steps = Some(4);
    spec.training.save_steps = Some(5);
    let job = Job::new(fixtures().join("bert-tiny"), spec, rows(18, 3, 1), rows(6, 3, 1));
    let (finished, recorder) = job.finish();
    // 18 rows in batches of 4 are 5 steps an epoch.
    assert_eq!(recorder.progress.iter().map(|p| p.step).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    assert!(recorder.progress.iter().all(|p| p.total_steps == 10 && p.eta_seconds >= 0.0));
    assert_eq!(recorder.progress.last().map(|p| p.epoch), Some(2.0));
    assert!(recorder.progress.windows(2).all(|w| w[0].epoch < w[1].epoch && w[0].trained_tokens < w[1].trained_tokens));
    assert_eq!(recorder.losses().into_keys().collect::<Vec<_>>(), [3, 6, 9, 10]);
    assert_eq!(recorder.entries("eval_accuracy").into_keys().collect::<Vec<_>>(), [4, 8, 10]);
    assert_eq!(recorder.checkpoints.iter().map(|c| c.0).collect::<Vec<_>>(), [5, 10]);
    for name in ["learning_rate", "grad_norm", "samples_per_second", "tokens_per_second", "epoch"] {
        assert_eq!(recorder.entries(name).keys().filter(|s| [3, 6, 9, 10].contains(*s)).count(), 4, "{name}");
    }
    let last = &recorder.checkpoints[1].1;
    assert_eq!((last["step"].as_u64(), last["valid_loss"] == last["eval_loss"]), (Some(10), true));
    assert_eq!((finished.state.trained_rows, finished.model_step), (36, 10));
    let tokens: u64 = 2 * job.prepare().unwrap().plan.train_tokens;
    assert_eq!(finished.state.trained_tokens, tokens);
    assert!(recorder.events.iter().any(|(level, m, d)| *level == Level::Info && m.contains("10 steps") && d["total_steps"] == 10));
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let run = |seed: u64| {
        let mut spec = spec(lora_with_dropout(4), &LABELS);
        spec.seed = seed;
        let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, rows(18, 3, 1), vec![]).finish();
        (bytes_of(&finished.model), recorder.losses())
    };
    let (first, again, other) = (run(7), run(7), run(8));
    assert!(first == again);
    assert!(first.1 != other.1 && first.0["adapter_model.safetensors"] != other.0["adapter_model.safetensors"]);
}

#[test]
fn the_loss_falls_for_every_family_and_tuning() {
    for folder in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
        for (tuning, learning_rate, share) in [(Tuning::Full, 1e-3, 0.7), (lora_with_dropout(8), 1e-2, 0.7), (Tuning::Head, 2e-2, 0.85)] {
            let mut spec = spec(tuning.clone(), &LABELS);
            (spec.training.num_train_epochs, spec.training.learning_rate) = (20.0, learning_rate);
            let (_, recorder) = Job::new(fixtures().join(folder), spec, rows(18, 3, 1), vec![]).finish();
            let losses: Vec<f64> = recorder.losses().into_values().collect();
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
            let (start, end) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
            assert!(end < share * start, "{folder} {tuning:?}: {start} → {end}");
        }
    }
}

#[test]
fn a_short_last_accumulation_is_a_step_with_the_mean_of_its_own_rows() {
    let base = without_dropout("bert-tiny");
    let run = |batch: usize, accumulation: usize| {
        let mut spec = spec(Tuning::Full, &["a", "b"]);
        spec.seed = 3;
        let t = &mut spec.training;
        (t.num_train_epochs, t.lr_scheduler_type) = (2.0, SchedulerType::Constant);
        (t.per_device_train_batch_size, t.gradient_accumulation_steps) = (batch, accumulation);
        let (finished, recorder) = Job::new(base.path(), spec, rows(5, 2, 1), vec![]).finish();
        assert_eq!((finished.state.step, finished.state.trained_rows), (4, 10));
        assert_eq!(recorder.losses().len(), 4);
        (WeightFile::open_folder(&finished.model).unwrap(), recorder)
    };
    let ((one, one_log), (four, four_log)) = (run(1, 4), run(4, 1));
    for name in one.names() {
        if !name.ends_with("key.bias") {
            // (a key's bias has no gradient but rounding, which Adam turns into steps)
            let off = worst(&values(&one, name), &values(&four, name));
            assert!(off < 1e-5, "{name} is off by {off}");
        }
    }
    for (a, b) in one_log.losses().into_values().zip(four_log.losses().into_values()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    for (a, b) in one_log.entries("grad_norm").into_values().zip(four_log.entries("grad_norm").into_values()) {
        assert!((a - b).abs() < 1e-4 * a.max(1.0), "{a} {b}");
    }
}

#[test]
fn gradient_checkpointing_trains_every_update_and_changes_no_bit() {
    for folder in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
        let runs = [false, true].map(|checkpointing| {
            let mut spec = spec(lora_with_dropout(4), &LABELS);
            spec.seed = 1;
            (spec.training.max_steps, spec.training.learning_rate) = (10, 1e-2);
            spec.training.gradient_checkpointing = checkpointing;
            let (finished, recorder) = Job::new(fixtures().join(folder), spec, rows(18, 3, 1), vec![]).finish();
            (finished, recorder)
        });
        assert_eq!(runs[0].1.losses(), runs[1].1.losses());
        let files = [&runs[0], &runs[1]].map(|r| WeightFile::open(&[r.0.model.join("adapter_model.safetensors")]).unwrap());
        let mut updates = 0;
        for name in files[0].names() {
            let ours = values(&files[0], name);
            assert_eq!(ours, values(&files[1], name), "{name}");
            if name.contains("lora_B") {
                assert!(ours.iter().any(|v| *v != 0.0), "{folder}: {name} was not trained");
                updates += 1;
            }
        }
        assert_eq!(updates, 12, "{folder}");
    }
}

#[test]
fn each_epoch_uses_each_row_once_in_another_order() {
    let training = spec(Tuning::Full, &LABELS).training;
    let lengths = vec![5; 20];
    let epochs: Vec<Vec<usize>> = (0..4)
        .map(|e| EpochOrder::new(5, e, &lengths, &training).steps.iter().flat_map(|s| s.rows().collect::<Vec<_>>()).collect())
        .collect();
    for (i, epoch) in epochs.iter().enumerate() {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        assert!(epochs[..i].iter().all(|e| e != epoch), "two epochs have one order");
    }
    let again: Vec<usize> = EpochOrder::new(5, 2, &lengths, &training).steps.iter().flat_map(|s| s.rows().collect::<Vec<_>>()).collect();
    assert_eq!(again, epochs[2]);
}

#[test]
fn batches_by_tokens_hold_the_limit_and_every_row() {
    let mut spec = spec(lora(4, 8.0), &LABELS);
    spec.training.max_tokens_per_batch = Some(60);
    spec.training.gradient_accumulation_steps = 2;
    spec.training.num_train_epochs = 2.0;
    let lengths: Vec<usize> = (0..30).map(|i| 5 + (i * 7) % 23).collect();
    let order = EpochOrder::new(1, 0, &lengths, &spec.training);
    let mut seen: Vec<usize> = order.steps.iter().flat_map(|s| s.rows().collect::<Vec<_>>()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    for rows in order.steps.iter().flat_map(|s| &s.micro_batches) {
        assert!(rows.iter().map(|r| lengths[*r]).sum::<usize>() <= 60);
    }
    // A row above the limit stands alone.
    let long = EpochOrder::new(1, 0, &[10, 100, 10], &spec.training);
    assert!(long.steps.iter().flat_map(|s| &s.micro_batches).any(|rows| rows == &[1]));
    let job = Job::new(fixtures().join("bert-tiny"), spec, rows(18, 3, 1), vec![]);
    let planned = job.prepare().unwrap().plan.total_steps;
    let (finished, _kept) = job.finish();
    assert_eq!((finished.state.step, finished.state.trained_rows), (planned, 36));
}

#[test]
fn packing_fills_batches_with_whole_rows() {
    let mut spec = spec(lora(4, 8.0), &LABELS);
    spec.training.per_device_train_batch_size = 2;
    spec.training.max_length = Some(50);
    spec.training.packing = true;
    let steps = EpochOrder::new(1, 0, &[10; 40], &spec.training).steps;
    assert_eq!(steps.iter().map(|s| s.rows().count()).collect::<Vec<_>>(), [10; 4]);
    spec.training.packing = false;
    assert_eq!(EpochOrder::new(1, 0, &[10; 40], &spec.training).steps.len(), 20);
}

#[test]
fn epochs_may_be_fractional_and_max_steps_wins() {
    let steps = |epochs: f64, max_steps: i64| {
        let mut spec = spec(Tuning::Head, &LABELS);
        (spec.training.num_train_epochs, spec.training.max_steps) = (epochs, max_steps);
        let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, rows(20, 3, 1), vec![]).finish();
        (finished.state.step, recorder.progress.last().unwrap().epoch)
    };
    assert_eq!(steps(1.5, -1), (8, 1.6)); // 7.5 steps round up, as in transformers
    assert_eq!(steps(0.5, -1), (3, 0.6));
    assert_eq!(steps(3.0, 7), (7, 1.4));
    assert_eq!(steps(0.1, 12), (12, 2.4));
}

#[test]
fn dropout_of_a_row_depends_on_its_number_and_not_on_its_batch() {
    let mut alone = Batch::new();
    alone.push(&[2, 10, 3], &[0; 3], 41, 0);
    let mut crowd = Batch::new();
    crowd.push(&[2, 11, 12, 3], &[0; 4], 40, 0);
    crowd.push(&[2, 10, 3], &[0; 3], 41, 0);
    assert_eq!(alone.row_ids, crowd.row_ids[4..]);
    assert!(crowd.row_ids[..4].iter().all(|id| !alone.row_ids.contains(id)));
}
