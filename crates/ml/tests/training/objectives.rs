//! Objectives through whole runs: class weights, label smoothing, several labels, numbers; their answers in serving.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use tunesmith_data::Target;
use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{ServedBase, ServedClassifier, classify, sigmoid};
use tunesmith_ml::spec::{ClassWeights, ProblemType, Tuning};
use tunesmith_ml::train::{LossSettings, class_weights};

use crate::jobs::*;
use crate::reference::*;

#[test]
fn a_class_of_weight_zero_teaches_nothing() {
    let run = |weights: Option<ClassWeights>, changed: bool| {
        let mut spec = spec(lora(4, 8.0), &["film", "market"]);
        spec.training.class_weights = weights;
        let mut train = rows(16, 2, 1);
        for (i, row) in train.iter_mut().enumerate().filter(|(i, _)| changed && i % 2 == 1) {
            row.text = text(i + 50, 3);
        }
        let (finished, _kept) = Job::new(fixtures().join("bert-tiny"), spec, train, vec![]).finish();
        bytes_of(&finished.model)
    };
    let ignored = || Some(ClassWeights::Map(BTreeMap::from([("market".to_owned(), 0.0)])));
    assert!(run(ignored(), false) == run(ignored(), true), "rows of weight zero changed the model");
    assert!(run(None, false) != run(None, true));
    assert!(run(ignored(), false) != run(None, false));
}

#[test]
fn a_batch_of_weight_zero_is_a_step_without_gradient() {
    let mut spec = spec(lora(4, 8.0), &["film", "market"]);
    spec.training.class_weights = Some(ClassWeights::Map(BTreeMap::from([("market".to_owned(), 0.0)])));
    spec.training.per_device_train_batch_size = 1;
    let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, rows(8, 2, 1), vec![]).finish();
    assert_eq!(finished.state.step, 8);
    assert_eq!(recorder.losses().values().filter(|l| **l == 0.0).count(), 4);
}

#[test]
fn balanced_weights_are_those_of_scikit_learn() {
    let labels = ["a", "b", "c"].map(str::to_owned);
    let targets: Vec<Target> = [0, 0, 0, 1, 1, 2].map(Target::Class).to_vec();
    let weights = class_weights(Some(&ClassWeights::Named("balanced".into())), &labels, &targets).unwrap();
    assert_eq!(weights, [6.0 / 9.0, 1.0, 2.0]);
    let unknown = class_weights(Some(&ClassWeights::Named("even".into())), &labels, &targets);
    assert!(unknown.unwrap_err().to_string().contains("balanced"));
    for (label, weight) in [("d", 1.0), ("a", -1.0), ("a", f64::NAN)] {
        let map = ClassWeights::Map(BTreeMap::from([(label.to_owned(), weight)]));
        let error = class_weights(Some(&map), &labels, &targets).unwrap_err().to_string();
        assert!(error.contains(label) && error.contains("a, b, c"), "{error}");
    }
}

#[test]
fn balanced_weights_and_smoothing_change_what_is_learned() {
    let run = |weights: Option<ClassWeights>, smoothing: f64| {
        let mut spec = spec(lora(4, 8.0), &["film", "market"]);
        (spec.training.class_weights, spec.training.label_smoothing_factor) = (weights, smoothing);
        let train = with_targets(rows(16, 2, 1), |i| Target::Class(u32::from(i % 4 == 0)));
        let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, train, vec![]).finish();
        (bytes_of(&finished.model), recorder.losses())
    };
    let plain = run(None, 0.0);
    let balanced = run(Some(ClassWeights::Named("balanced".into())), 0.0);
    let smooth = run(None, 0.2);
    assert!(plain.0 != balanced.0 && plain.0 != smooth.0 && balanced.0 != smooth.0);
    assert!(plain.1 != balanced.1 && plain.1 != smooth.1);
}

#[test]
fn smoothing_is_refused_where_it_has_no_meaning() {
    let mut spec = spec(lora(4, 8.0), &[]);
    (spec.data.problem_type, spec.training.label_smoothing_factor) = (ProblemType::Regression, 0.1);
    let job = Job::new(fixtures().join("bert-tiny"), spec, with_targets(rows(8, 2, 1), |i| Target::Value(i as f32)), vec![]);
    match job.prepare().err() {
        Some(MlError::Setting { param, .. }) => assert_eq!(param, "training.label_smoothing_factor"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn several_labels_are_learned_evaluated_and_served() {
    for tuning in [Tuning::Full, lora(8, 16.0)] {
        let whole = matches!(tuning, Tuning::Full);
        let mut spec = spec(tuning, &["film", "great", "market"]);
        spec.data.problem_type = ProblemType::MultiLabelClassification;
        (spec.training.num_train_epochs, spec.training.learning_rate) = (30.0, 3e-3);
        // Class of the subject, and "great" wherever the tail says so.
        let sets = |i: usize| {
            let mut set = vec![if i.is_multiple_of(2) { 0 } else { 2 }];
            if i % 4 == 3 {
                set.push(1);
            }
            set.sort_unstable();
            Target::Classes(set)
        };
        let (train, eval) = (with_targets(rows(24, 2, 1), sets), with_targets(rows(24, 2, 1), sets));
        let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, train, eval.clone()).finish();
        let losses: Vec<f64> = recorder.entries("eval_loss").into_values().collect();
        assert!(losses.last().unwrap() < &(0.5 * losses[0]), "{losses:?}");
        let evaluation = finished.state.last_evaluation.as_ref().unwrap();
        assert!(evaluation["eval_accuracy"].as_f64().unwrap() > 0.9, "{evaluation:?}");
        let base = Arc::new(ServedBase::load(&if whole { finished.model.clone() } else { fixtures().join("bert-tiny") }).unwrap());
        let served = if whole {
            ServedClassifier::whole(base, &finished.model).map(Option::unwrap)
        } else {
            ServedClassifier::adapter(base, &finished.model)
        };
        let served = served.unwrap();
        assert_eq!(served.answer.problem_type, ProblemType::MultiLabelClassification);
        let right = eval.iter().filter(|row| {
            let tokens = served.tokenizer().encode(&row.text, None).unwrap();
            let scores = sigmoid(&classify(&[(&tokens, &served)]).unwrap()[0]);
            let found: Vec<u32> = (0..3).filter(|c| scores[*c as usize] >= served.answer.threshold).collect();
            row.target == Target::Classes(found)
        });
        assert_eq!(right.count() as f64 / eval.len() as f64, evaluation["eval_accuracy"].as_f64().unwrap());
    }
}

#[test]
fn numbers_are_learned_evaluated_and_served() {
    let mut spec = spec(Tuning::Full, &[]);
    spec.data.problem_type = ProblemType::Regression;
    (spec.training.num_train_epochs, spec.training.learning_rate) = (40.0, 3e-3);
    (spec.training.metric_for_best_model, spec.training.load_best_model_at_end) = (Some("spearmanr".into()), true);
    let value = |i: usize| Target::Value(if i.is_multiple_of(2) { 2.5 } else { -1.0 } + 0.25 * (i % 4) as f32);
    let (train, eval) = (with_targets(rows(24, 2, 1), value), with_targets(rows(8, 2, 1), value));
    let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, train, eval.clone()).finish();
    let best = |name: &str| recorder.entries(name).into_values().fold(f64::MIN, f64::max);
    assert!(best("eval_pearson") > 0.95 && best("eval_r2") > 0.8, "{} {}", best("eval_pearson"), best("eval_r2"));
    assert_eq!(best("eval_spearmanr"), finished.state.best_metric.unwrap());
    let served = ServedClassifier::whole(Arc::new(ServedBase::load(&finished.model).unwrap()), &finished.model).unwrap().unwrap();
    assert_eq!((served.labels.as_slice(), served.answer.problem_type), (&["value".to_owned()][..], ProblemType::Regression));
    let mean_error: f64 = eval
        .iter()
        .map(|row| {
            let tokens = served.tokenizer().encode(&row.text, None).unwrap();
            let found = f64::from(classify(&[(&tokens, &served)]).unwrap()[0][0]);
            let Target::Value(truth) = row.target else { panic!("not a number") };
            (found - f64::from(truth)).abs() / eval.len() as f64
        })
        .sum();
    let reported = recorder.entries("eval_mae")[&finished.model_step];
    assert!((mean_error - reported).abs() < 1e-6, "{mean_error} {reported}");
}

#[test]
fn the_denominator_counts_weights_elements_or_rows() {
    let settings = |problem_type, class_weights| LossSettings { problem_type, label_smoothing: 0.0, class_weights };
    let classes = [Target::Class(0), Target::Class(1), Target::Class(1)];
    let sets = [Target::Classes(vec![]), Target::Classes(vec![0, 1])];
    assert_eq!(settings(ProblemType::SingleLabelClassification, vec![0.5, 2.0]).denominator(classes.iter(), 2), 4.5);
    assert_eq!(settings(ProblemType::MultiLabelClassification, vec![]).denominator(sets.iter(), 2), 4.0);
    assert_eq!(settings(ProblemType::Regression, vec![]).denominator([Target::Value(1.0)].iter(), 1), 1.0);
}
