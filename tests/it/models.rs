//! Models, checkpoints, metrics and downloads, of a job that a pretended worker has finished.

use std::io::Read;

use serde_json::{Value, json};
use tunesmith_store::{
    FileId, Finished, JobReport, Keys, LeaseToken, ModelKind, NewCheckpoint, NewFile, NewMetric, NewModel, Store, checkpoint_name,
    model_name,
};

use crate::harness::{Server, claim};

const WEIGHTS: &[u8] = b"not really weights";

/// Ends a job as its worker would: metrics, a checkpoint, the model with its folder, the report.
async fn finish(store: &Store, lease: &LeaseToken) -> String {
    store.mark_running(lease).await.unwrap();
    let name = model_name("file:tiny", None, lease.job);
    let entry = |step, entry| NewMetric { step, entry };
    let metrics = [
        entry(10, json!({"step": 10, "epoch": 0.5, "loss": 0.7})),
        entry(20, json!({"step": 20, "epoch": 1.0, "eval_loss": 0.4, "eval_f1": 0.9})),
    ];
    store.append_metrics(lease, &metrics).await.unwrap();
    let folder = Keys::checkpoint(lease.job, 20);
    for file in ["model/model.safetensors", "state.json"] {
        store.blobs().put_bytes(&format!("{folder}/{file}"), WEIGHTS).await.unwrap();
    }
    let checkpoint = NewCheckpoint {
        step: 20,
        model_name: checkpoint_name(&name, 20),
        folder_key: folder,
        metrics: json!({"step": 20, "valid_loss": 0.4}),
        is_best: true,
    };
    store.insert_checkpoint(lease, &checkpoint).await.unwrap();
    let folder = Keys::model(lease.job);
    store.blobs().put_bytes(&format!("{folder}/config.json"), "{}").await.unwrap();
    store.blobs().put_bytes(&format!("{folder}/model.safetensors"), WEIGHTS).await.unwrap();
    let predictions = Keys::result(lease.job, "predictions.jsonl");
    store.blobs().put_bytes(&predictions, "{\"label\":\"a\"}\n").await.unwrap();
    let id = FileId::generate(&**store.clock());
    store.blobs().put_bytes(&Keys::file(id), "step,loss\n").await.unwrap();
    let result = NewFile {
        id,
        filename: "metrics.csv".into(),
        purpose: "fine-tune-results".into(),
        bytes: 10,
        sha256: String::new(),
        blob_key: Keys::file(id),
        summary: Value::Null,
    };
    let model = NewModel {
        name: name.clone(),
        kind: ModelKind::Full,
        base_name: "file:tiny".into(),
        base_source: "file:tiny".into(),
        base_revision: None,
        task: "classification".into(),
        labels: vec!["neg".into(), "pos".into()],
        folder_key: folder,
        card: json!({"licence": "unknown"}),
        max_length: Some(128),
        metrics: json!({"eval_f1": 0.9}),
    };
    let report = JobReport {
        report: json!({"confusion_matrix": {"labels": ["neg", "pos"], "matrix": [[3, 1], [0, 4]]}, "peak_memory_bytes": 5, "total_parameters": 7, "trainable_parameters": 2, "duration_seconds": 1.5}),
        predictions_key: Some(predictions),
    };
    let finished = Finished { model, result_files: vec![result], trained_tokens: Some(1234), report: Some(report) };
    store.succeed(lease, &finished).await.unwrap();
    name
}

async fn trained(server: &Server) -> (String, String) {
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let store = server.store().await;
    let lease = claim(&store).await;
    (job, finish(&store, &lease).await)
}

#[tokio::test]
async fn a_succeeded_job_leads_to_its_model_and_results() {
    let server = Server::start();
    let (job, name) = trained(&server).await;
    let job = server.get(&format!("/v1/fine_tuning/jobs/{job}")).await.ok();
    assert_eq!((&job["status"], &job["fine_tuned_model"], &job["trained_tokens"]), (&json!("succeeded"), &json!(name), &json!(1234)));
    let csv = server.get(&format!("/v1/files/{}/content", job["result_files"][0].as_str().unwrap())).await;
    assert_eq!(csv.text(), "step,loss\n");
    let model = server.get(&format!("/v1/models/{name}")).await.ok();
    assert_eq!(
        (&model["object"], &model["kind"], &model["labels"], &model["max_length"]),
        (&json!("model"), &json!("full"), &json!(["neg", "pos"]), &json!(128))
    );
    let list = server.get("/v1/models").await.ok();
    assert_eq!(list["data"][0]["id"], json!(name));
    assert!(list["data"].as_array().unwrap().iter().any(|m| m["id"] == "all-minilm-l6-v2" && m["kind"] == "base"));
}

#[tokio::test]
async fn metrics_come_as_json_csv_and_pictures() {
    let server = Server::start();
    let (job, _) = trained(&server).await;
    let path = format!("/v1/fine_tuning/jobs/{job}/metrics");
    let metrics = server.get(&path).await.ok();
    assert_eq!(metrics["log_history"][1]["eval_f1"], json!(0.9));
    assert_eq!(metrics["confusion_matrix"]["matrix"], json!([[3, 1], [0, 4]]));
    assert_eq!((&metrics["peak_memory_bytes"], &metrics["duration_seconds"]), (&json!(5), &json!(1.5)));
    let csv = server.get(&format!("{path}?format=csv")).await;
    assert_eq!(csv.text(), "step,epoch,loss,eval_loss,eval_f1\n10,0.5,0.7,,\n20,1.0,,0.4,0.9\n");
    assert!(csv.header("content-type").starts_with("text/csv"));
    for picture in ["loss.svg", "confusion.svg"] {
        let svg = server.get(&format!("{path}/{picture}")).await;
        assert_eq!(svg.header("content-type"), "image/svg+xml");
        assert!(svg.text().starts_with("<svg"));
    }
    assert_eq!(server.get(&format!("{path}/predictions.jsonl")).await.text(), "{\"label\":\"a\"}\n");
    assert_eq!(server.get(&format!("{path}?format=xml")).await.error(400)["param"], "format");
}

#[tokio::test]
async fn a_job_that_has_not_trained_has_empty_metrics() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/fine_tuning/jobs/{job}/metrics");
    let metrics = server.get(&path).await.ok();
    assert_eq!((&metrics["log_history"], &metrics["confusion_matrix"]), (&json!([]), &json!(null)));
    assert_eq!(server.get(&format!("{path}/loss.svg")).await.status, 200);
    server.get(&format!("{path}/confusion.svg")).await.error(404);
    server.get(&format!("{path}/predictions.jsonl")).await.error(404);
}

#[tokio::test]
async fn a_checkpoint_is_listed_and_is_a_model() {
    let server = Server::start();
    let (job, name) = trained(&server).await;
    let list = server.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints")).await.ok();
    let checkpoint = &list["data"][0];
    assert_eq!((&checkpoint["object"], &checkpoint["step_number"]), (&json!("fine_tuning.job.checkpoint"), &json!(20)));
    assert_eq!(checkpoint["fine_tuned_model_checkpoint"], json!(format!("{name}:ckpt-step-20")));
    assert_eq!(checkpoint["metrics"]["valid_loss"], json!(0.4));
    let model = server.get(&format!("/v1/models/{name}:ckpt-step-20")).await.ok();
    assert_eq!(model["kind"], "checkpoint");
    server.get(&format!("/v1/models/{name}:ckpt-step-21")).await.error(404);
}

#[tokio::test]
async fn a_download_is_a_zip_of_the_models_files_alone() {
    let server = Server::start();
    let (_, name) = trained(&server).await;
    for (model, expected) in
        [(name.clone(), vec!["config.json", "model.safetensors"]), (format!("{name}:ckpt-step-20"), vec!["model.safetensors"])]
    {
        let got = server.get(&format!("/v1/models/{model}/download")).await;
        assert_eq!(got.header("content-type"), "application/zip");
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(got.bytes)).unwrap();
        let names: Vec<String> = zip.file_names().map(|n| n.unwrap().into_owned()).collect();
        assert_eq!(names, expected, "the state of a resume is no part of a model");
        let mut weights = Vec::new();
        zip.by_name("model.safetensors").unwrap().read_to_end(&mut weights).unwrap();
        assert_eq!(weights, WEIGHTS);
    }
    server.get("/v1/models/all-minilm-l6-v2/download").await.error(404);
}

#[tokio::test]
async fn a_deleted_model_is_gone_with_its_checkpoints() {
    let server = Server::start();
    let (job, name) = trained(&server).await;
    let path = format!("/v1/models/{name}");
    assert_eq!(server.delete(&path).await.ok(), json!({"id": name, "object": "model", "deleted": true}));
    assert_eq!(server.get(&path).await.error(404)["code"], "model_not_found");
    server.get(&format!("{path}:ckpt-step-20")).await.error(404);
    server.get(&format!("{path}/download")).await.error(404);
    server.delete(&path).await.error(404);
    assert_eq!(server.delete("/v1/models/all-minilm-l6-v2").await.error(409)["code"], "in_use");
    server.get(&format!("/v1/fine_tuning/jobs/{job}")).await.ok();
}

#[tokio::test]
async fn a_deleted_job_leaves_its_model() {
    let server = Server::start();
    let (job, name) = trained(&server).await;
    server.delete(&format!("/v1/fine_tuning/jobs/{job}")).await.ok();
    server.get(&format!("/v1/models/{name}")).await.ok();
    assert_eq!(server.get(&format!("/v1/models/{name}/download")).await.status, 200);
}

#[tokio::test]
async fn names_with_slashes_are_taken_in_escaped_form() {
    let server = Server::start();
    let model = server.get("/v1/models/sentence-transformers%2Fall-MiniLM-L6-v2").await.ok();
    assert_eq!(model["id"], "all-minilm-l6-v2");
    assert_eq!(server.get("/v1/models/no%2Fsuch").await.error(404)["code"], "model_not_found");
}
