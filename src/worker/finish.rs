//! The end of a trained job: the saved model is evaluated as the server will run it, and written with its report.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tunesmith_data::Example;
use tunesmith_hub::Pulled;
use tunesmith_ml::error::MlError;
use tunesmith_ml::eval::{EvalReport, report};
use tunesmith_ml::infer::{DEFAULT_THRESHOLD, ServedBase, ServedClassifier, classify};
use tunesmith_ml::models::Outline;
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::text::{Encoded, by_tokens};
use tunesmith_ml::train::{EVAL_TOKENS, FinalEvaluation, Finished, LossSettings, Plan, evaluate_language};
use tunesmith_store::{FileId, JobReport, JobRow, Keys, LeaseToken, ModelKind, NewFile, NewModel};

use super::card::Card;
use super::failure::Failure;
use super::job::Machine;
use crate::api::jobs::{Echo, metrics_csv};

/// A trained job.
pub struct Ended<'a> {
    /// What the loop left.
    pub finished: &'a Finished,
    /// The job's size.
    pub plan: &'a Plan,
    /// The card without figures.
    pub card: &'a Card,
    /// The base.
    pub base: &'a Pulled,
    /// The job's row as claimed.
    pub job: &'a JobRow,
}

/// Writes the model, its report and `succeeded`.
///
/// # Errors
/// If the saved model cannot be loaded, or the store fails.
pub async fn finish(machine: &Machine, lease: &LeaseToken, ended: Ended<'_>) -> Result<(), Failure> {
    let (store, job) = (&machine.store, ended.job);
    let f = ended.finished;
    let evaluation = evaluate(machine, &ended).await?;
    let metrics = evaluation.as_ref().map(|e| e.metrics.clone());
    std::fs::write(f.model.join("README.md"), ended.card.text(metrics.as_ref()))?;
    let folder_key = Keys::model(job.id);
    // Moving is not fenced: a worker that was stopped for long must not replace what its successor wrote.
    store.control(lease).await?;
    store.blobs().move_folder(&folder_key, &f.model).await?;
    let predictions_key = match &evaluation {
        Some(e) => Some(write_predictions(machine, job, e).await?),
        None => None,
    };
    let model = NewModel {
        name: ended.card.name.clone(),
        kind: if matches!(ended.card.spec.tuning, Tuning::Lora(_)) { ModelKind::Adapter } else { ModelKind::Full },
        base_name: job.model.clone(),
        base_source: ended.base.source.clone(),
        base_revision: Some(ended.base.revision.clone()),
        task: job.task.clone(),
        labels: ended.card.spec.data.labels.clone(),
        folder_key,
        card: card_json(&ended),
        max_length: i64::try_from(max_length(&ended)?).ok(),
        metrics: metrics.clone().map_or(Value::Null, Value::Object),
    };
    let report = JobReport { report: report_json(&ended, evaluation), predictions_key };
    let result_files = vec![write_csv(machine, job).await?];
    let trained_tokens = i64::try_from(f.state.trained_tokens).ok();
    store.succeed(lease, &tunesmith_store::Finished { model, result_files, trained_tokens, report: Some(report) }).await?;
    Ok(())
}

/// Evaluates the saved folder through the code that serves it.
async fn evaluate(machine: &Machine, ended: &Ended<'_>) -> Result<Option<EvalReport>, Failure> {
    let eval = ended.finished.eval.clone();
    let labels = ended.card.spec.data.labels.clone();
    let (model, base) = (ended.finished.model.clone(), ended.base.model_path());
    let adapter = matches!(ended.card.spec.tuning, Tuning::Lora(_));
    let pool = machine.pool.clone();
    let work = move || {
        let base = adapter.then_some(&base);
        pool.install(|| match &*eval {
            FinalEvaluation::Classification { rows, .. } if rows.is_empty() => Ok(None),
            FinalEvaluation::Classification { rows, tokens, loss } => evaluate_folder(&model, base, rows, tokens, loss, &labels).map(Some),
            FinalEvaluation::Language(rows) if rows.is_empty() => Ok(None),
            FinalEvaluation::Language(rows) => Ok(Some(evaluate_language(base.unwrap_or(&model), adapter.then_some(&model), rows)?)),
        })
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| Failure::Panic(e.to_string()))?
}

fn evaluate_folder(
    model: &Path,
    base: Option<&std::path::PathBuf>,
    rows: &[Example],
    tokens: &[Encoded],
    loss: &LossSettings,
    labels: &[String],
) -> Result<EvalReport, Failure> {
    let started = Instant::now();
    let classifier = match base {
        Some(base) => ServedClassifier::adapter(Arc::new(ServedBase::load(base)?), model)?,
        None => ServedClassifier::whole(Arc::new(ServedBase::load(model)?), model)?
            .ok_or_else(|| MlError::Format("the model was saved without its classifier".to_owned()))?,
    };
    let mut logits = Vec::new();
    for batch in by_tokens(tokens.iter().map(|row| row.ids.len()), EVAL_TOKENS) {
        let rows: Vec<_> = tokens[batch].iter().map(|row| (row, &classifier)).collect();
        logits.extend(classify(&rows)?.concat());
    }
    Ok(report(rows, &logits, labels, loss, DEFAULT_THRESHOLD, started.elapsed()))
}

async fn write_predictions(machine: &Machine, job: &JobRow, evaluation: &EvalReport) -> Result<String, Failure> {
    let key = Keys::result(job.id, "predictions.jsonl");
    let mut lines = Vec::new();
    for prediction in &evaluation.predictions {
        serde_json::to_writer(&mut lines, prediction).map_err(|e| Failure::Panic(e.to_string()))?;
        lines.push(b'\n');
    }
    machine.store.blobs().put_bytes(&key, lines).await?;
    Ok(key)
}

/// The history as CSV, as a file that `files.content` serves.
async fn write_csv(machine: &Machine, job: &JobRow) -> Result<NewFile, Failure> {
    let entries = machine.store.metrics(job.id).await?;
    let history: Vec<Value> = entries.into_iter().map(|m| m.entry).collect();
    let csv = metrics_csv::write(&history).into_bytes();
    let id = FileId::generate(&**machine.store.clock());
    let blob_key = Keys::file(id);
    let file = NewFile {
        id,
        filename: format!("{}-metrics.csv", job.id),
        purpose: "fine-tune-results".to_owned(),
        bytes: i64::try_from(csv.len()).unwrap_or(i64::MAX),
        sha256: tunesmith_ml::sha256_hex(&csv),
        blob_key: blob_key.clone(),
        summary: Value::Null,
    };
    machine.store.blobs().put_bytes(&blob_key, csv).await?;
    Ok(file)
}

fn card_json(ended: &Ended) -> Value {
    let spec = &ended.card.spec;
    let Echo { tuning, training, .. } = Echo::of(spec);
    let mut card = json!({
        "base_model": ended.job.model,
        "licence": ended.base.licence,
        "task": ended.job.task,
        "tuning": tuning,
        "training": training,
        "seed": spec.seed,
        "data": ended.plan,
    });
    if !spec.task.is_language() {
        card["problem_type"] = json!(spec.data.problem_type);
    }
    card
}

/// Tokens that the finished model reads: a classifier as many as in training, a language model as its base does.
fn max_length(ended: &Ended) -> Result<usize, MlError> {
    match ended.card.spec.task.is_language() {
        true => Ok(Outline::read(&ended.base.model_path())?.max_tokens),
        false => Ok(ended.plan.max_length),
    }
}

fn report_json(ended: &Ended, evaluation: Option<EvalReport>) -> Value {
    let f = ended.finished;
    let mut report = json!({
        "peak_memory_bytes": crate::machine::peak_memory(),
        "trainable_parameters": f.trainable_parameters,
        "total_parameters": f.total_parameters,
        "duration_seconds": f.state.train_seconds,
        "model_step": f.model_step,
        "best_metric": f.state.best_metric,
        "best_step": f.state.best_step,
        "target_modules": f.target_modules,
        "dtype": ended.plan.dtype,
        "train_rows": ended.plan.train_rows,
        "eval_rows": ended.plan.eval_rows,
        "truncated_rows": ended.plan.truncated_rows,
    });
    if let Some(e) = evaluation {
        report["evaluation"] = Value::Object(e.metrics);
        if let Some(matrix) = e.confusion_matrix {
            report["confusion_matrix"] = json!({"labels": ended.card.spec.data.labels, "matrix": matrix});
        }
    }
    report
}
