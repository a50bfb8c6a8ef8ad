//! One evaluation's report, from logits and targets, with the names of `trainer_state.json`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tunesmith_data::{Example, Target};

use super::classification::{Averages, averages, confusion, multi_label_figures};
use super::regression::{pearson, r_squared, ranks};
use crate::infer::{sigmoid, softmax};
use crate::spec::ProblemType;
use crate::train::{LossSettings, loss};

/// A row of the evaluation with its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Line of the row in its file.
    pub line: u64,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// What the data says: a name, a list of names or a number.
    pub label: Value,
    /// What the model says.
    pub prediction: Value,
    /// Probability of the prediction; for several labels the probability of each; the number itself for a regression.
    pub score: Value,
}

/// Figures of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// `eval_loss`, `eval_accuracy`, `eval_f1`, …
    pub metrics: Map<String, Value>,
    /// Rows are true classes; absent unless each row has one label.
    pub confusion_matrix: Option<Vec<Vec<u64>>>,
    /// Each row's answer.
    pub predictions: Vec<Prediction>,
}

/// The report of logits `[rows, outputs]`. Labels of multi-label rows count from `threshold` on.
pub fn report(
    rows: &[Example],
    logits: &[f32],
    labels: &[String],
    settings: &LossSettings,
    threshold: f32,
    runtime: Duration,
) -> EvalReport {
    let outputs = logits.len() / rows.len().max(1);
    let targets: Vec<&Target> = rows.iter().map(|r| &r.target).collect();
    let denominator = settings.denominator(targets.iter().copied(), outputs);
    let plain = LossSettings { label_smoothing: 0.0, ..settings.clone() };
    let (eval_loss, _) = loss(logits, &targets, outputs, &plain, denominator);
    let mut metrics = Map::new();
    metrics.insert("eval_loss".into(), json!(eval_loss));
    let (confusion_matrix, predictions) = match settings.problem_type {
        ProblemType::SingleLabelClassification => single(rows, logits, labels, &mut metrics),
        ProblemType::MultiLabelClassification => (None, multi(rows, logits, labels, threshold, &mut metrics)),
        ProblemType::Regression => (None, regression(rows, logits, &mut metrics)),
    };
    let seconds = runtime.as_secs_f64();
    metrics.insert("eval_runtime".into(), json!(seconds));
    metrics.insert("eval_samples_per_second".into(), json!(rows.len() as f64 / seconds.max(1e-9)));
    EvalReport { metrics, confusion_matrix, predictions }
}

fn single(
    rows: &[Example],
    logits: &[f32],
    labels: &[String],
    metrics: &mut Map<String, Value>,
) -> (Option<Vec<Vec<u64>>>, Vec<Prediction>) {
    let mut pairs = Vec::with_capacity(rows.len());
    let mut predictions = Vec::with_capacity(rows.len());
    for (row, logits) in rows.iter().zip(logits.chunks_exact(labels.len())) {
        let probabilities = softmax(logits);
        let best = (0..labels.len()).fold(0, |b, c| if probabilities[c] > probabilities[b] { c } else { b });
        if let Target::Class(truth) = &row.target {
            pairs.push((*truth as usize, best));
            predictions.push(prediction(row, json!(labels[*truth as usize]), json!(labels[best]), json!(probabilities[best])));
        }
    }
    let matrix = confusion(labels.len(), pairs.into_iter());
    averages_into(&averages(&matrix), labels, metrics);
    (Some(matrix.0), predictions)
}

fn multi(rows: &[Example], logits: &[f32], labels: &[String], threshold: f32, metrics: &mut Map<String, Value>) -> Vec<Prediction> {
    let names = |classes: &[u32]| classes.iter().map(|c| labels[*c as usize].clone()).collect::<Vec<_>>();
    let mut sets = Vec::with_capacity(rows.len());
    let mut predictions = Vec::with_capacity(rows.len());
    for (row, logits) in rows.iter().zip(logits.chunks_exact(labels.len())) {
        let scores = sigmoid(logits);
        let found: Vec<u32> = (0..labels.len() as u32).filter(|c| scores[*c as usize] >= threshold).collect();
        if let Target::Classes(truth) = &row.target {
            let scores: Map<String, Value> = labels.iter().cloned().zip(scores.iter().map(|s| json!(s))).collect();
            predictions.push(prediction(row, json!(names(truth)), json!(names(&found)), scores.into()));
            sets.push((truth.clone(), found));
        }
    }
    averages_into(&multi_label_figures(labels.len(), &sets), labels, metrics);
    predictions
}

fn regression(rows: &[Example], logits: &[f32], metrics: &mut Map<String, Value>) -> Vec<Prediction> {
    let truth: Vec<f64> = rows.iter().map(|r| if let Target::Value(v) = r.target { f64::from(v) } else { 0.0 }).collect();
    let found: Vec<f64> = logits.iter().map(|v| f64::from(*v)).collect();
    let errors: Vec<f64> = truth.iter().zip(&found).map(|(t, f)| f - t).collect();
    let n = rows.len().max(1) as f64;
    let mse = errors.iter().map(|e| e * e).sum::<f64>() / n;
    for (name, value) in [
        ("eval_mse", mse),
        ("eval_rmse", mse.sqrt()),
        ("eval_mae", errors.iter().map(|e| e.abs()).sum::<f64>() / n),
        ("eval_pearson", pearson(&truth, &found)),
        ("eval_r2", r_squared(&truth, &found)),
        ("eval_spearmanr", pearson(&ranks(&truth), &ranks(&found))),
    ] {
        metrics.insert(name.into(), json!(value));
    }
    rows.iter().zip(&found).zip(&truth).map(|((row, found), truth)| prediction(row, json!(truth), json!(found), json!(found))).collect()
}

fn prediction(row: &Example, label: Value, prediction: Value, score: Value) -> Prediction {
    Prediction { line: row.line, text: row.text.clone(), text_pair: row.text_pair.clone(), label, prediction, score }
}

fn averages_into(a: &Averages, labels: &[String], metrics: &mut Map<String, Value>) {
    for (name, value) in [
        ("eval_accuracy", a.accuracy),
        ("eval_precision", a.macro_.precision),
        ("eval_recall", a.macro_.recall),
        ("eval_f1", a.macro_.f1),
        ("eval_precision_micro", a.micro.precision),
        ("eval_recall_micro", a.micro.recall),
        ("eval_f1_micro", a.micro.f1),
        ("eval_precision_weighted", a.weighted.precision),
        ("eval_recall_weighted", a.weighted.recall),
        ("eval_f1_weighted", a.weighted.f1),
    ] {
        metrics.insert(name.into(), json!(value));
    }
    let per_class: Map<String, Value> = labels
        .iter()
        .zip(&a.per_class)
        .map(|(l, f)| (l.clone(), json!({"precision": f.precision, "recall": f.recall, "f1": f.f1, "support": f.support})))
        .collect();
    metrics.insert("eval_per_class".into(), per_class.into());
}
