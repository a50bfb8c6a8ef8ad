//! Which weights are saved: the best step's or the last ones; early stopping; figures that do not exist.
#![allow(clippy::unwrap_used)]

use tunesmith_data::Target;
use tunesmith_ml::spec::{JobSpec, Tuning};

use crate::jobs::*;
use crate::reference::*;

/// A job whose evaluation rows all bear the other label, so that it gets worse from the first evaluation on.
fn worsening(change: impl Fn(&mut JobSpec)) -> Job {
    let mut spec = spec(lora(4, 8.0), &["film", "market"]);
    let t = &mut spec.training;
    (t.num_train_epochs, t.learning_rate, t.eval_steps, t.save_steps) = (10.0, 1e-2, Some(4), Some(4));
    change(&mut spec);
    let eval = with_targets(rows(8, 2, 1), |i| Target::Class(1 - (i % 2) as u32));
    Job::new(fixtures().join("bert-tiny"), spec, rows(16, 2, 1), eval)
}

#[test]
fn the_best_steps_weights_are_saved_and_no_others() {
    let (finished, recorder) = worsening(|s| {
        (s.training.load_best_model_at_end, s.training.metric_for_best_model) = (true, Some("loss".into()));
    })
    .finish();
    let losses = recorder.entries("eval_loss");
    let (best, _) = losses.iter().min_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    assert!(*best < 40, "{losses:?}");
    assert_eq!((finished.model_step, finished.state.step), (*best, 40));
    assert!(bytes_of(&finished.model) == bytes_of(&recorder.kept(*best).join("model")));
    assert!(bytes_of(&finished.model) != bytes_of(&recorder.kept(40).join("model")));
    let marked: Vec<u64> = recorder.checkpoints.iter().filter(|c| c.2).map(|c| c.0).collect();
    assert_eq!(marked.last(), Some(best), "the best checkpoint is marked");
}

#[test]
fn without_a_metric_the_last_weights_are_saved() {
    let (finished, recorder) = worsening(|_| {}).finish();
    assert_eq!((finished.model_step, finished.state.best_step), (40, None));
    assert!(bytes_of(&finished.model) == bytes_of(&recorder.kept(40).join("model")));
}

#[test]
fn training_stops_when_patience_is_over() {
    let (finished, recorder) = worsening(|s| {
        let t = &mut s.training;
        (t.load_best_model_at_end, t.metric_for_best_model, t.early_stopping_patience) = (true, Some("eval_loss".into()), Some(3));
    })
    .finish();
    let best = finished.state.best_step.unwrap();
    assert!(finished.state.stopped_early);
    assert_eq!(finished.state.step, best + 3 * 4);
    assert_eq!(finished.model_step, best);
    assert!(recorder.events.iter().any(|(_, m, _)| m.contains("Stopped early") && m.contains("eval_loss")));
    assert_eq!(recorder.checkpoints.last().unwrap().0, finished.state.step);
}

#[test]
fn the_direction_of_the_metric_can_be_turned() {
    let best = |metric: &str, greater: Option<bool>| {
        let (finished, recorder) = worsening(|s| {
            let t = &mut s.training;
            (t.load_best_model_at_end, t.metric_for_best_model, t.greater_is_better) = (true, Some(metric.into()), greater);
        })
        .finish();
        let values = recorder.entries(&format!("eval_{metric}"));
        (
            finished.state.best_metric.unwrap(),
            values.values().copied().fold(f64::MAX, f64::min),
            values.values().copied().fold(0.0, f64::max),
        )
    };
    let (chosen, smallest, _) = best("loss", None);
    assert_eq!(chosen, smallest);
    let (chosen, _, largest) = best("loss", Some(true));
    assert_eq!(chosen, largest);
    let (chosen, _, largest) = best("accuracy", None);
    assert_eq!(chosen, largest);
}

#[test]
fn a_metric_that_the_evaluation_lacks_is_an_error_that_lists_those_it_has() {
    let job = worsening(|s| s.training.metric_for_best_model = Some("rouge".into()));
    let error = job.run(None, &mut Recorder::new(None)).err().unwrap().to_string();
    assert!(error.contains("rouge") && error.contains("eval_accuracy"), "{error}");
}

#[test]
fn the_best_step_is_saved_when_evaluations_fall_between_checkpoints() {
    let (finished, recorder) = worsening(|s| {
        let t = &mut s.training;
        (t.load_best_model_at_end, t.metric_for_best_model) = (true, Some("loss".into()));
        (t.eval_steps, t.save_steps) = (Some(3), Some(7));
    })
    .finish();
    let best = finished.state.best_step.unwrap();
    assert_eq!((best % 3, finished.model_step), (0, best));
    assert!(bytes_of(&finished.model) == bytes_of(&recorder.kept(best).join("model")));
}

#[test]
fn the_head_alone_is_trained_and_the_encoder_keeps_every_bit() {
    for folder in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
        let spec = spec(Tuning::Head, &["film", "market"]);
        let (finished, _kept) = Job::new(fixtures().join(folder), spec, rows(16, 2, 1), vec![]).finish();
        let (base, tuned) = (tensors(&format!("{folder}/model.safetensors")), weights_of(&finished.model));
        let mut kept = 0;
        for name in tuned.names() {
            let head = name.contains("classifier") || name.contains("pooler");
            let same = base.shape(name).unwrap() == tuned.shape(name).unwrap() && values(&base, name) == values(&tuned, name);
            assert_eq!(same, !head, "{folder}: {name}");
            kept += usize::from(!head);
        }
        assert!(kept > 30, "{folder}: {kept}");
    }
}

fn weights_of(folder: &std::path::Path) -> tunesmith_ml::models::WeightFile {
    tunesmith_ml::models::WeightFile::open_folder(folder).unwrap()
}
