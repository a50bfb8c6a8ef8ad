//! Numbers without a model: learning rates of `transformers`, metrics of scikit-learn and scipy.
#![allow(clippy::unwrap_used)]

mod reference;

use reference::*;
use serde_json::Value;
use tunesmith_ml::eval::{Averages, ClassFigures, averages, confusion, multi_label_figures, pearson, r_squared, ranks};
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::train::Schedule;

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn sets(v: &Value) -> Vec<Vec<u32>> {
    let set = |row: &Value| floats(row).iter().enumerate().filter(|(_, x)| **x > 0.5).map(|(i, _)| i as u32).collect();
    v.as_array().unwrap().iter().map(set).collect()
}

#[test]
fn schedules_are_those_of_transformers() {
    let expected = json("schedules.json");
    for case in expected["cases"].as_array().unwrap() {
        let mut training = spec(Tuning::Full, &["a", "b"]).training;
        training.learning_rate = expected["learning_rate"].as_f64().unwrap();
        training.lr_scheduler_type = serde_json::from_value(case["name"].clone()).unwrap();
        training.warmup_steps = case["warmup_steps"].as_f64().unwrap();
        let schedule = Schedule::new(&training, expected["steps"].as_u64().unwrap());
        for (done, there) in floats(&case["learning_rates"]).into_iter().enumerate() {
            let ours = schedule.learning_rate(done as u64);
            assert!((ours - there).abs() < 1e-12, "{} with {} steps, step {done}: {ours}, {there}", case["name"], case["warmup_steps"]);
        }
    }
}

#[test]
fn a_share_of_warm_up_is_rounded_up_to_steps() {
    let mut training = spec(Tuning::Full, &["a", "b"]).training;
    training.warmup_steps = 0.12; // of 20 steps: 2.4, so 3
    let share = Schedule::new(&training, 20);
    training.warmup_steps = 3.0;
    let steps = Schedule::new(&training, 20);
    assert!((0..20).all(|i| share.learning_rate(i) == steps.learning_rate(i)));
}

fn same(name: &str, ours: &Averages, case: &Value, accuracy: &str) {
    let close = |a: f64, b: &Value, what: &str| {
        let b = b.as_f64().unwrap();
        assert!((a - b).abs() < 1e-12, "{name}, {what}: {a}, expected {b}");
    };
    close(ours.accuracy, &case[accuracy], accuracy);
    for (figures, average) in [(&ours.macro_, "macro"), (&ours.micro, "micro"), (&ours.weighted, "weighted")] {
        for (value, figure) in [(figures.precision, "precision"), (figures.recall, "recall"), (figures.f1, "f1")] {
            close(value, &case[average][figure], &format!("{average} {figure}"));
        }
    }
    for (i, class) in ours.per_class.iter().enumerate() {
        let ClassFigures { precision, recall, f1, support } = *class;
        for (value, figure) in [(precision, "precision"), (recall, "recall"), (f1, "f1"), (support as f64, "support")] {
            close(value, &case["per_class"][figure][i], &format!("class {i} {figure}"));
        }
    }
}

#[test]
fn single_label_figures_are_those_of_scikit_learn() {
    for case in json("metrics.json")["single_label"].as_array().unwrap() {
        let pairs = floats(&case["gold"]).into_iter().zip(floats(&case["predicted"])).map(|(g, p)| (g as usize, p as usize));
        let matrix = confusion(case["classes"].as_u64().unwrap() as usize, pairs);
        assert_eq!(serde_json::json!(matrix.0), case["confusion_matrix"]);
        same(case["name"].as_str().unwrap(), &averages(&matrix), case, "accuracy");
    }
}

#[test]
fn multi_label_figures_are_those_of_scikit_learn() {
    for case in json("metrics.json")["multi_label"].as_array().unwrap() {
        let rows: Vec<(Vec<u32>, Vec<u32>)> = sets(&case["gold"]).into_iter().zip(sets(&case["predicted"])).collect();
        same(case["name"].as_str().unwrap(), &multi_label_figures(4, &rows), case, "subset_accuracy");
    }
}

#[test]
fn regression_figures_are_those_of_scipy() {
    for case in json("metrics.json")["regression"].as_array().unwrap() {
        let (gold, predicted) = (floats(&case["gold"]), floats(&case["predicted"]));
        let close = |a: f64, what: &str| assert!((a - case[what].as_f64().unwrap()).abs() < 1e-9, "{}: {what} {a}", case["name"]);
        close(pearson(&gold, &predicted), "pearson");
        close(pearson(&ranks(&gold), &ranks(&predicted)), "spearman");
        close(r_squared(&gold, &predicted), "r2");
    }
}

#[test]
fn a_class_that_occurs_nowhere_counts_for_several_labels_and_not_for_one() {
    // scikit-learn: f1_score([0, 1], [0, 1], average="macro") is 1, of a matrix with a third column of zeros it is 2/3.
    assert_eq!(averages(&confusion(3, [(0, 0), (1, 1)].into_iter())).macro_.f1, 1.0);
    let rows = [(vec![0], vec![0]), (vec![1], vec![1])];
    assert_eq!(multi_label_figures(3, &rows).macro_.f1, 2.0 / 3.0);
}
