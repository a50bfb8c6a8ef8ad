//! Training through the API with a real worker process on a tiny model: from upload to answer.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server, two_classes};
use crate::trainer::download;

const JOBS: &str = "/v1/fine_tuning/jobs";

fn server() -> Server {
    Server::in_folder(
        std::sync::Arc::new(tempfile::tempdir().unwrap()),
        &["--model-dir", FIXTURES, "--workers", "1", "--worker-threads", "1"],
    )
}

/// Follows the job's stream to its end and answers the job.
async fn finished(server: &Server, job: &Value) -> Value {
    let path = format!("{JOBS}/{}", job["id"].as_str().unwrap());
    let stream = server
        .request(reqwest::Method::GET, &format!("{path}/events"))
        .header("accept", "text/event-stream")
        .timeout(Duration::from_secs(300));
    stream.send().await.unwrap().text().await.unwrap();
    server.get(&path).await.ok()
}

async fn train(server: &Server, tuning: Value) -> Value {
    let file = server.upload("rows.jsonl", two_classes(24)).await.ok();
    let request = json!({"model": "file:bert-tiny", "training_file": file["id"], "suffix": "test", "seed": 7, "tuning": tuning,
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "logging_steps": 1, "learning_rate": 1e-2, "max_length": 32, "dtype": "f32"}});
    let job = server.post(JOBS, &request).await.ok();
    finished(server, &job).await
}

#[tokio::test]
async fn a_job_trains_and_its_model_answers_at_once() {
    let server = server();
    for tuning in [json!({"type": "lora"}), json!({"type": "full"}), json!({"type": "head"})] {
        let job = train(&server, tuning.clone()).await;
        assert_eq!(job["status"], "succeeded", "{job}\n{}", server.log());
        let model = job["fine_tuned_model"].as_str().unwrap();
        assert!(model.starts_with("ft:") && model.contains(":test:"), "{model}");
        let answer = server.post("/v1/classify", &json!({"model": model, "input": ["good 1", "bad 1"]})).await.ok();
        assert_eq!(answer["data"][0]["scores"].as_array().unwrap().len(), 2, "{tuning}");
        let metrics = server.get(&format!("{JOBS}/{}/metrics", job["id"].as_str().unwrap())).await.ok();
        let losses: Vec<f64> = metrics["log_history"].as_array().unwrap().iter().filter_map(|e| e["loss"].as_f64()).collect();
        assert_eq!(losses.len() as u64, job["progress"]["total_steps"].as_u64().unwrap());
        let total: u64 = metrics["confusion_matrix"]["matrix"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|r| r.as_array().unwrap())
            .map(|n| n.as_u64().unwrap())
            .sum();
        assert!(total >= 2, "{metrics}");
        let csv = server.get(&format!("/v1/files/{}/content", job["result_files"][0].as_str().unwrap())).await;
        assert!(csv.text().starts_with("step,epoch") && csv.text().contains("loss"));
        let checkpoints = server.get(&format!("{JOBS}/{}/checkpoints", job["id"].as_str().unwrap())).await.ok();
        let name = checkpoints["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap();
        server.post("/v1/classify", &json!({"model": name, "input": "good 1"})).await.ok();
        for name in [model, name] {
            let files = download(&server, name).await;
            assert!(files.contains_key("tokenizer.json") && files.keys().any(|n| n.ends_with(".safetensors")), "{:?}", files.keys());
            // Of whole models the card says what form they have.
            let card = String::from_utf8_lossy(&files["README.md"]);
            assert_eq!(card.contains("The weights are float32"), tuning["type"] != "lora", "{card}");
        }
    }
}

#[tokio::test]
async fn a_dry_run_counts_and_files_nothing() {
    let server = server();
    let file = server.upload("rows.jsonl", two_classes(20)).await.ok();
    let request = json!({"model": "file:bert-tiny", "training_file": file["id"], "dry_run": true, "training": {"num_train_epochs": 1, "per_device_train_batch_size": 4}});
    let plan = server.post(JOBS, &request).await.ok();
    assert_eq!((&plan["object"], &plan["train_rows"], &plan["eval_rows"]), (&json!("fine_tuning.job.plan"), &json!(36), &json!(4)));
    assert_eq!(plan["total_steps"], 9);
    assert!(plan["train_tokens"].as_u64().unwrap() > 36 * 3 && plan["estimated_memory_bytes"].as_u64().unwrap() > 0);
    assert!(plan["estimated_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(server.get(JOBS).await.ok()["data"], json!([]));
}

#[tokio::test]
async fn a_model_that_cannot_be_trained_fails_the_job_with_a_reason() {
    let server = server();
    let file = server.data_set().await;
    // Its folder exists, so filing succeeds; only the worker opens it.
    let job = server.post(JOBS, &json!({"model": "file:lora", "training_file": file})).await.ok();
    let job = finished(&server, &job).await;
    assert_eq!(job["status"], "failed");
    assert!(!job["error"]["message"].as_str().unwrap().is_empty(), "{job}");
}
