//! Pause, resume and cancel against a worker that trains: they act within a step, and a resumed job is the unbroken one.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::trainer::{
    JOBS, act, ended, file_job, history, job, reached, request, server, slow_request, slow_rows, states, succeeded, twenty_rows, until_job,
    until_past, upload, weights,
};

/// Pauses a job wherever it is, and answers it when it stands.
async fn pause(server: &Server, id: &str) -> Value {
    act(server, id, "pause").await;
    until_job(server, id, "that is paused", |j| j["status"] == "paused").await
}

#[tokio::test]
async fn a_job_that_was_paused_again_and_again_is_the_unbroken_one() {
    let server = server();
    let file = upload(&server, slow_rows()).await;
    for (tuning, training) in [
        (json!({"type": "lora", "lora_dropout": 0.1}), json!({"eval_steps": 50, "save_steps": 100, "logging_steps": 7})),
        (json!({"type": "full"}), json!({"gradient_accumulation_steps": 2, "gradient_checkpointing": true, "eval_steps": 60})),
        (
            json!({"type": "lora"}),
            json!({"eval_steps": 20, "metric_for_best_model": "loss", "logging_steps": 5, "lr_scheduler_type": "cosine"}),
        ),
    ] {
        let mut filing = slow_request(&file, 400);
        filing["training"].as_object_mut().unwrap().remove("save_steps");
        filing["training"].as_object_mut().unwrap().extend(training.as_object().unwrap().clone());
        filing["tuning"] = tuning.clone();
        filing["data"] = json!({"validation_split": 0.25});
        let undisturbed = file_job(&server, &filing).await;
        let expected = succeeded(&server, &undisturbed).await;
        let id = file_job(&server, &filing).await;
        let mut last = 0;
        for pauses in 0..2 {
            until_past(&server, &id, last).await;
            let paused = pause(&server, &id).await;
            let step = paused["progress"]["step"].as_u64().unwrap();
            assert!(step > last && paused["pausing"] == false, "pause {pauses}: {paused}");
            assert_eq!(reached(&server, &id, step).await, step, "a pause leaves a checkpoint of where it is");
            last = step;
            act(&server, &id, "resume").await;
        }
        let done = succeeded(&server, &id).await;
        assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await, "{tuning}");
        assert_eq!(weights(&server, &done).await, weights(&server, &expected).await, "{tuning}");
        let report = |metrics: Value| {
            (metrics["confusion_matrix"].clone(), metrics["report"]["best_step"].clone(), metrics["report"]["model_step"].clone())
        };
        let (ours, theirs) =
            (server.get(&format!("{JOBS}/{id}/metrics")).await.ok(), server.get(&format!("{JOBS}/{undisturbed}/metrics")).await.ok());
        assert_eq!(report(ours), report(theirs), "{tuning}");
    }
}

#[tokio::test]
async fn a_pause_shows_itself_at_once_and_ends_within_a_step() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 100_000, "save_steps": 100_000, "logging_steps": 1000}))).await;
    until_past(&server, &id, 0).await;
    let asked = act(&server, &id, "pause").await;
    assert_eq!((&asked["status"], &asked["pausing"]), (&json!("running"), &json!(true)));
    assert_eq!(act(&server, &id, "pause").await["pausing"], true, "repeating is fine");
    let paused = until_job(&server, &id, "that is paused", |j| j["status"] == "paused").await;
    let step = paused["progress"]["step"].as_u64().unwrap();
    assert_eq!(reached(&server, &id, 1).await, step);
    let told = states(&server, &id).await;
    assert_eq!(told.last().map(String::as_str), Some("paused"));
    act(&server, &id, "resume").await;
    let resumed = until_past(&server, &id, step).await;
    assert_eq!(resumed["attempts"], 0);
    act(&server, &id, "cancel").await;
}

#[tokio::test]
async fn a_cancelled_job_frees_its_worker_within_a_step() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 100_000, "save_steps": 20, "logging_steps": 1000}))).await;
    reached(&server, &id, 20).await;
    let cancelled = act(&server, &id, "cancel").await;
    assert_eq!(cancelled["status"], "cancelled");
    // The next job has the same worker, so it begins only when that one has let go.
    let next = file_job(&server, &request(&file, json!({"max_steps": 3}))).await;
    succeeded(&server, &next).await;
    let after = job(&server, &id).await;
    assert_eq!(
        (&after["status"], &after["progress"]["step"]),
        (&json!("cancelled"), &cancelled["progress"]["step"]),
        "nothing is written any more"
    );
    let list = server.get(&format!("{JOBS}/{id}/checkpoints?limit=1")).await.ok();
    let kept = list["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap();
    server.post("/v1/classify", &json!({"model": kept, "input": "row 03"})).await.ok();
}

/// A job whose worker has so many rows to check that it can be met at it.
async fn job_in_validation(server: &Server) -> String {
    let long = "the market rose and the market fell ".repeat(8);
    let rows: String = (0..20_000).map(|i| format!("{}\n", json!({"text": format!("{long} {i}"), "label": i % 2}))).collect();
    let file = upload(server, rows).await;
    let id = file_job(server, &request(&file, json!({"max_steps": 2}))).await;
    until_job(server, &id, "that its worker checks", |j| j["status"] == "validating_files" && j["queue"].is_null()).await;
    id
}

#[tokio::test]
async fn a_pause_during_validation_keeps_the_job_from_running() {
    let server = server();
    let id = job_in_validation(&server).await;
    act(&server, &id, "pause").await;
    let paused = until_job(&server, &id, "that is paused", |j| j["status"] == "paused").await;
    assert_eq!(paused["progress"]["step"], 0);
    assert!(!states(&server, &id).await.iter().any(|s| s == "running"));
    act(&server, &id, "resume").await;
    succeeded(&server, &id).await;
}

#[tokio::test]
async fn a_cancel_during_validation_ends_the_job() {
    let server = server();
    let id = job_in_validation(&server).await;
    assert_eq!(act(&server, &id, "cancel").await["status"], "cancelled");
    let next = file_job(&server, &request(&upload(&server, twenty_rows()).await, json!({"max_steps": 3}))).await;
    succeeded(&server, &next).await;
    assert_eq!(ended(&server, &id).await["status"], "cancelled");
    assert_eq!(states(&server, &id).await.last().map(String::as_str), Some("cancelled"));
}
