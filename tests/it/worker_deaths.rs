//! Workers that are killed: the job goes on from its last checkpoint by itself, to the same bits, and gives up in the end.

use std::sync::Arc;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{BIN, FIXTURES, Server};
use crate::trainer::{
    JOBS, act, children, ended, events, file_job, history, job, kill, reached, request, send, server, slow_request, slow_rows, succeeded,
    twenty_rows, until, until_gone, until_job, until_past, upload, weights, worker_of,
};

/// The case `resume-epoch-permutation`: 20 rows, batches of 4, 4 epochs, a checkpoint each step; killed within the second
/// epoch and around its end, paused and resumed in the third.
#[tokio::test]
async fn a_killed_and_paused_job_ends_with_the_same_bits() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let mut filing = request(&file, json!({"num_train_epochs": 4, "save_steps": 1, "eval_steps": 1}));
    // Many rows to evaluate on make each step long enough to be met.
    let many: String = (0..400).map(|i| twenty_rows().replace("row", &format!("row {i}"))).collect();
    (filing["validation_file"], filing["data"]) = (json!(upload(&server, many).await), json!({}));
    let undisturbed = file_job(&server, &filing).await;
    let expected = succeeded(&server, &undisturbed).await;
    let id = file_job(&server, &filing).await;
    let mut last = 0;
    for (kills, step) in [(1, 8), (2, 10)] {
        let pid = worker_of(&server).await;
        last = reached(&server, &id, step.max(last + 1)).await;
        kill(pid).await;
        let lost = until_job(&server, &id, "whose loss was noticed", |j| j["attempts"] == kills).await;
        assert!(lost["progress"]["step"].as_u64().unwrap() < 20, "killed too late to show anything: {lost}");
    }
    reached(&server, &id, 13.max(last + 1)).await;
    act(&server, &id, "pause").await;
    let paused = until_job(&server, &id, "that is paused", |j| j["status"] == "paused").await;
    assert!(paused["progress"]["step"].as_u64().unwrap() < 20, "paused too late to show anything: {paused}");
    act(&server, &id, "resume").await;
    let done = succeeded(&server, &id).await;
    let all = history(&server, &id).await;
    assert_eq!(all, history(&server, &undisturbed).await);
    let steps: Vec<_> = all.iter().filter(|e| e["loss"].is_number()).collect();
    assert_eq!(steps.iter().map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    assert_eq!(steps[12]["epoch"], json!(2.6));
    assert_eq!(weights(&server, &done).await, weights(&server, &expected).await);
    assert_eq!(done["trained_tokens"], expected["trained_tokens"]);
}

#[tokio::test]
async fn a_server_whose_binary_was_replaced_still_starts_workers() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let binary = folder.path().join("tunesmith");
    std::fs::copy(BIN, &binary).unwrap();
    let server = Server::of_binary(&binary, folder, &["--model-dir", FIXTURES, "--worker-threads", "1", "--workers", "1"]);
    let first = worker_of(&server).await;
    std::fs::remove_file(&binary).unwrap();
    std::fs::write(&binary, "the next version").unwrap();
    kill(first).await;
    let id = file_job(&server, &request(&upload(&server, twenty_rows()).await, json!({"max_steps": 1}))).await;
    succeeded(&server, &id).await;
}

#[tokio::test]
async fn a_job_that_kills_three_workers_fails_with_all_reasons_and_can_be_resumed() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let filing = request(&file, json!({"max_steps": 300, "save_steps": 5}));
    let undisturbed = file_job(&server, &filing).await;
    let expected = succeeded(&server, &undisturbed).await;
    let id = file_job(&server, &filing).await;
    let mut last = 0;
    for (attempt, signal) in [(1, Signal::KILL), (2, Signal::ABORT), (3, Signal::KILL)] {
        let pid = worker_of(&server).await;
        // A new checkpoint shows that this worker has the job.
        last = reached(&server, &id, last + 5).await;
        send(pid, signal);
        until("the loss to be noticed", async || (job(&server, &id).await["attempts"] == attempt).then_some(())).await;
        last = reached(&server, &id, last).await;
    }
    let failed = ended(&server, &id).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("worker_lost")), "{failed}");
    let message = failed["error"]["message"].as_str().unwrap();
    for reason in
        ["1. the worker was killed (signal 9, SIGKILL)", "2. the worker aborted (signal 6, SIGABRT)", "3. the worker was killed (signal 9"]
    {
        assert!(message.contains(reason), "{reason}: {message}");
    }
    assert!(message.contains("its last lines") && message.contains("waiting for jobs"), "{message}");
    let resumed = act(&server, &id, "resume").await;
    assert_eq!((&resumed["attempts"], &resumed["error"]), (&json!(0), &json!(null)));
    let done = succeeded(&server, &id).await;
    assert_eq!(weights(&server, &done).await, weights(&server, &expected).await);
    assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await);
}

#[tokio::test]
async fn a_worker_killed_before_the_first_checkpoint_begins_again() {
    let server = server();
    let file = upload(&server, slow_rows()).await;
    let pid = worker_of(&server).await;
    let mut filing = slow_request(&file, 300);
    filing["training"]["logging_steps"] = json!(10);
    let id = file_job(&server, &filing).await;
    until_past(&server, &id, 0).await;
    kill(pid).await;
    let done = succeeded(&server, &id).await;
    assert_eq!((&done["attempts"], &done["progress"]["step"]), (&json!(1), &json!(300)));
    let steps: Vec<u64> = history(&server, &id).await.iter().map(|e| e["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=30).map(|n| n * 10).collect::<Vec<_>>(), "what is trained again stands once");
}

#[tokio::test]
async fn an_idle_worker_that_dies_is_replaced() {
    let server = server();
    let pid = worker_of(&server).await;
    kill(pid).await;
    let next = until("another worker", async || children(server.pid()).into_iter().find(|p| *p != pid)).await;
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 3}))).await;
    let done = succeeded(&server, &id).await;
    assert_eq!(done["attempts"], 0);
    assert_eq!(children(server.pid()), [next]);
}

#[tokio::test]
async fn a_worker_that_is_told_to_end_gives_its_job_back() {
    let server = server();
    let file = upload(&server, slow_rows()).await;
    let id = file_job(&server, &slow_request(&file, 300)).await;
    let pid = worker_of(&server).await;
    until_past(&server, &id, 0).await;
    send(pid, Signal::TERM);
    until_gone(pid).await;
    let done = succeeded(&server, &id).await;
    assert_eq!(done["attempts"], 0, "that was no failed attempt");
    let told = events(&server, &id).await;
    let stopped = told.iter().find(|e| e["message"].as_str().unwrap().starts_with("The worker stops")).unwrap();
    let resumed = told.iter().find(|e| e["message"].as_str().unwrap().starts_with("Resuming")).unwrap();
    assert!(resumed["message"].as_str().unwrap().contains(&format!("step {}.", stopped["data"]["step"])), "{stopped} {resumed}");
}

/// Validation, the first steps, a checkpoint, an evaluation, the end: wherever the blow falls, the result is the same.
#[tokio::test]
async fn a_worker_killed_at_any_moment_changes_nothing() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let mut filing = request(&file, json!({"max_steps": 20, "save_steps": 3, "eval_steps": 4, "metric_for_best_model": "loss"}));
    filing["data"] = json!({"validation_split": 0.2});
    let undisturbed = file_job(&server, &filing).await;
    let start = Instant::now();
    let expected = succeeded(&server, &undisturbed).await;
    let length = start.elapsed();
    for part in 0..6 {
        let pid = worker_of(&server).await;
        let id = file_job(&server, &filing).await;
        // Not a wait for something, but the moment of the blow.
        tokio::time::sleep(length * part / 6).await;
        kill(pid).await;
        let done = succeeded(&server, &id).await;
        assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await, "killed after {part} sixths");
        assert_eq!(weights(&server, &done).await, weights(&server, &expected).await, "killed after {part} sixths");
        let metrics = async |id: &str| server.get(&format!("{JOBS}/{id}/metrics")).await.ok()["report"]["best_step"].clone();
        assert_eq!(metrics(&id).await, metrics(&undisturbed).await);
        until("the next worker", async || children(server.pid()).into_iter().find(|p| *p != pid)).await;
    }
}
