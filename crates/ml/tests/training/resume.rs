//! A paused or killed job goes on bit for bit: losses, logs, best step, the final model.
#![allow(clippy::unwrap_used)]

use tunesmith_ml::error::MlError;
use tunesmith_ml::spec::{JobSpec, LoraSpec, TargetModules, Tuning};
use tunesmith_ml::train::{Control, Finished, Outcome, TrainState};

use crate::jobs::*;
use crate::reference::*;

const LABELS: [&str; 2] = ["film", "market"];

/// 20 rows, batches of 4, 4 epochs, a checkpoint after each step; dropout in the base, in attention and in the updates.
fn settings(tuning: Tuning) -> JobSpec {
    let mut spec = spec(tuning, &LABELS);
    spec.seed = 5;
    let t = &mut spec.training;
    (t.num_train_epochs, t.save_steps, t.logging_steps) = (4.0, Some(1), 3);
    t.learning_rate = 5e-3;
    spec
}

fn lora_with_dropout() -> Tuning {
    Tuning::Lora(LoraSpec {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.1,
        use_rslora: false,
        target_modules: TargetModules::Pattern("all-linear".into()),
        modules_to_save: None,
    })
}

fn job(spec: JobSpec, eval: usize) -> Job {
    Job::new(fixtures().join("bert-tiny"), spec, rows(20, 2, 1), rows(eval, 2, 1))
}

/// Runs until the observer's wish is met, then goes on from `from` (or from the pause) to the end. All reports in one recorder.
fn interrupted(spec: &JobSpec, eval: usize, ask: Ask, from: Option<u64>) -> (Box<Finished>, Recorder) {
    let mut first = Recorder::new(Some(ask));
    let outcome = job(spec.clone(), eval).run(None, &mut first).unwrap();
    match ask.control {
        Control::Pause => assert!(matches!(outcome, Outcome::Paused)),
        _ => assert!(matches!(outcome, Outcome::Stopped)),
    }
    let from = from.unwrap_or_else(|| first.checkpoints.last().unwrap().0);
    let mut second = Recorder::new(None);
    second.inherit(&first);
    let finished = finished(job(spec.clone(), eval).run(Some(&first.kept(from)), &mut second).unwrap());
    // What the user sees: the first attempt's reports up to the checkpoint, then the second's.
    let upto = |step: u64| step <= from;
    let mut all = second;
    let logs = first.logs.into_iter().filter(|l| upto(l["step"].as_u64().unwrap())).chain(std::mem::take(&mut all.logs));
    all.logs = logs.collect();
    let checkpoints = first.checkpoints.into_iter().filter(|c| upto(c.0)).chain(std::mem::take(&mut all.checkpoints));
    all.checkpoints = checkpoints.collect();
    let progress = first.progress.into_iter().filter(|p| upto(p.step)).chain(std::mem::take(&mut all.progress));
    all.progress = progress.collect();
    (finished, all)
}

/// Everything of the two runs that does not measure time.
fn same(a: &(Box<Finished>, Recorder), b: &(Box<Finished>, Recorder), what: &str) {
    assert_eq!(a.1.checkpoint_losses(), b.1.checkpoint_losses(), "{what}: losses of steps");
    for figure in ["loss", "learning_rate", "grad_norm", "epoch", "eval_loss", "eval_accuracy", "eval_f1"] {
        assert_eq!(a.1.entries(figure), b.1.entries(figure), "{what}: {figure}");
    }
    let steps = |r: &Recorder| r.progress.iter().map(|p| (p.step, p.epoch, p.trained_tokens)).collect::<Vec<_>>();
    assert_eq!(steps(&a.1), steps(&b.1), "{what}: steps");
    assert!(bytes_of(&a.0.model) == bytes_of(&b.0.model), "{what}: the models differ");
    assert_eq!(a.0.model_step, b.0.model_step, "{what}");
    let last = |r: &(Box<Finished>, Recorder)| std::fs::read(r.1.kept(r.0.state.step).join("state.safetensors")).unwrap();
    assert!(last(a) == last(b), "{what}: masters or moments differ");
}

#[test]
fn a_paused_job_resumes_bit_exactly() {
    for tuning in [Tuning::Full, lora_with_dropout()] {
        let spec = settings(tuning);
        let whole = job(spec.clone(), 0).finish();
        assert_eq!(whole.1.checkpoint_losses().len(), 20);
        for step in [8, 10, 13] {
            let ask = Ask { step, call: 0, control: Control::Pause };
            same(&whole, &interrupted(&spec, 0, ask, None), &format!("paused at {step}"));
        }
    }
}

#[test]
fn a_killed_job_goes_on_from_an_older_checkpoint_bit_exactly() {
    let spec = settings(lora_with_dropout());
    let whole = job(spec.clone(), 0).finish();
    for (killed, from) in [(8, 8), (10, 9), (13, 10), (13, 5)] {
        let ask = Ask { step: killed, call: 0, control: Control::Stop };
        same(&whole, &interrupted(&spec, 0, ask, Some(from)), &format!("killed at {killed}, resumed from {from}"));
    }
}

#[test]
fn a_pause_between_micro_batches_loses_no_row() {
    let mut spec = settings(lora_with_dropout());
    (spec.training.per_device_train_batch_size, spec.training.gradient_accumulation_steps) = (2, 3);
    spec.training.save_steps = Some(4);
    let whole = job(spec.clone(), 0).finish();
    // Ten micro-batches an epoch are four steps; steps 4, 8, … have one micro-batch.
    assert_eq!(whole.0.state.step, 16);
    for (step, call) in [(4, 1), (5, 2), (9, 1)] {
        let paused = interrupted(&spec, 0, Ask { step, call, control: Control::Pause }, None);
        assert_eq!(paused.0.state.trained_rows, 80);
        let losses = |r: &Recorder| r.losses();
        assert_eq!(losses(&whole.1), losses(&paused.1), "paused in step {}", step + 1);
        assert!(bytes_of(&whole.0.model) == bytes_of(&paused.0.model), "paused in step {}", step + 1);
    }
}

#[test]
fn a_pause_during_an_evaluation_makes_it_up() {
    let mut spec = settings(lora_with_dropout());
    let t = &mut spec.training;
    (t.eval_steps, t.load_best_model_at_end, t.metric_for_best_model) = (Some(5), true, Some("loss".into()));
    // More tokens than one evaluation batch holds, so that the observer is asked in between.
    let eval = 400;
    let whole = job(spec.clone(), eval).finish();
    assert_eq!(whole.1.entries("eval_loss").into_keys().collect::<Vec<_>>(), [5, 10, 15, 20]);
    for step in [5, 10] {
        let ask = Ask { step, call: 0, control: Control::Pause };
        let mut first = Recorder::new(Some(ask));
        assert!(matches!(job(spec.clone(), eval).run(None, &mut first).unwrap(), Outcome::Paused));
        assert!(!first.entries("eval_loss").contains_key(&step), "the evaluation was not interrupted");
        assert!(TrainState::read(&first.kept(step)).unwrap().evaluation_due);
        same(&whole, &interrupted(&spec, eval, ask, None), &format!("paused in the evaluation at {step}"));
    }
}

#[test]
fn best_step_and_patience_outlive_a_pause() {
    // Evaluation rows with the other label each: their loss grows from the first evaluation on.
    let mut spec = settings(lora_with_dropout());
    let t = &mut spec.training;
    (t.eval_steps, t.load_best_model_at_end, t.metric_for_best_model) = (Some(2), true, Some("loss".into()));
    (t.early_stopping_patience, t.learning_rate) = (Some(4), 2e-2);
    let wrong = || {
        let mut job = job(spec.clone(), 8);
        job.eval = with_targets(rows(8, 2, 1), |i| tunesmith_data::Target::Class(1 - (i % 2) as u32));
        job
    };
    let whole = wrong().finish();
    assert!(whole.0.state.stopped_early && whole.0.state.step < 20, "{}", whole.0.state.step);
    let best = whole.0.state.best_step.unwrap();
    assert_eq!(whole.0.model_step, best);
    for step in [best + 1, best + 2, best + 5] {
        let mut first = Recorder::new(Some(Ask { step, call: 0, control: Control::Pause }));
        assert!(matches!(wrong().run(None, &mut first).unwrap(), Outcome::Paused));
        let from = first.checkpoints.last().unwrap().0;
        let mut second = Recorder::new(None);
        second.inherit(&first);
        let resumed = finished(wrong().run(Some(&first.kept(from)), &mut second).unwrap());
        assert_eq!((resumed.state.step, resumed.state.best_step), (whole.0.state.step, Some(best)), "paused at {step}");
        assert_eq!(resumed.state.best_metric, whole.0.state.best_metric);
        assert!(bytes_of(&whole.0.model) == bytes_of(&resumed.model), "paused at {step}");
    }
}

#[test]
fn the_epoch_in_reports_goes_on_after_a_pause_where_epochs_differ_in_steps() {
    let mut spec = settings(lora_with_dropout());
    spec.training.max_tokens_per_batch = Some(70);
    spec.training.eval_steps = Some(1);
    let uneven = || {
        let mut job = job(spec.clone(), 400);
        job.train.iter_mut().enumerate().for_each(|(i, row)| row.text = row.text.repeat(1 + (i * i) % 4));
        job
    };
    let (_, whole) = uneven().finish();
    // The first step of each epoch, by the reports: epochs must have different numbers of steps to prove anything.
    let epochs = whole.entries("epoch");
    let ends: Vec<u64> = epochs.iter().filter(|(_, e)| e.fract() == 0.0).map(|(step, _)| *step).collect();
    let lengths: Vec<u64> = ends.iter().scan(0, |last, end| Some(end - std::mem::replace(last, *end))).collect();
    assert!(lengths.windows(2).any(|w| w[0] != w[1]), "{lengths:?}");
    for step in [ends[0], ends[1] - 1, ends[2], ends[2] + 1] {
        let mut first = Recorder::new(Some(Ask { step, call: 0, control: Control::Pause }));
        assert!(matches!(uneven().run(None, &mut first).unwrap(), Outcome::Paused));
        assert!(!first.entries("eval_loss").contains_key(&step), "the evaluation was not interrupted");
        let mut second = Recorder::new(None);
        finished(uneven().run(Some(&first.kept(step)), &mut second).unwrap());
        let evaluated =
            |r: &Recorder, step: u64| r.logs.iter().find(|l| l.contains_key("eval_loss") && l["step"] == step).unwrap()["epoch"].clone();
        for later in [step, step + 1] {
            assert_eq!(evaluated(&second, later), evaluated(&whole, later), "paused at {step}, evaluated at {later}");
        }
    }
}

#[test]
fn a_resume_with_other_data_is_refused() {
    let spec = settings(lora_with_dropout());
    let mut first = Recorder::new(Some(Ask { step: 3, call: 0, control: Control::Pause }));
    job(spec.clone(), 0).run(None, &mut first).unwrap();
    let mut other = job(spec, 0);
    other.data = "other data".into();
    match other.run(Some(&first.kept(3)), &mut Recorder::new(None)) {
        Err(MlError::Setting { param, message }) => assert!(param == "training_file" && message.contains("changed"), "{message}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the resume was accepted"),
    }
}

#[test]
fn a_resume_from_another_jobs_tensors_is_refused() {
    let mut first = Recorder::new(Some(Ask { step: 3, call: 0, control: Control::Pause }));
    job(settings(lora_with_dropout()), 0).run(None, &mut first).unwrap();
    let error = job(settings(Tuning::Full), 0).run(Some(&first.kept(3)), &mut Recorder::new(None)).err().unwrap().to_string();
    assert!(error.contains("masters") && error.contains("shape"), "{error}");
}

#[test]
fn a_stop_writes_nothing() {
    let mut recorder = Recorder::new(Some(Ask { step: 2, call: 0, control: Control::Stop }));
    let mut spec = settings(lora_with_dropout());
    spec.training.save_steps = None;
    assert!(matches!(job(spec, 0).run(None, &mut recorder).unwrap(), Outcome::Stopped));
    assert!(recorder.checkpoints.is_empty());
    assert!(!recorder.work().exists());
}
