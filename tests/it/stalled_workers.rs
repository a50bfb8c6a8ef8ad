//! Workers that stand still beyond their lease: the job is taken over, and the sleeper that wakes harms nothing.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::trainer::{
    LooseWorker, configured, events, file_job, history, is_alive, reached, request, send, server_in, stop_between_writes, succeeded,
    twenty_rows, until, until_gone, until_job, upload, weights, worker_of,
};

/// Fifteen seconds are for users; a test has less patience.
fn impatient() -> Arc<TempDir> {
    configured("lease_seconds = 4\n")
}

#[tokio::test]
async fn a_stalled_worker_of_the_server_is_ended_and_its_job_taken_over() {
    let server = server_in(impatient(), &["--workers", "1"]);
    let file = upload(&server, twenty_rows()).await;
    let filing = request(&file, json!({"max_steps": 120, "save_steps": 5}));
    let undisturbed = file_job(&server, &filing).await;
    let expected = succeeded(&server, &undisturbed).await;
    let id = file_job(&server, &filing).await;
    let worker = worker_of(&server).await;
    reached(&server, &id, 5).await;
    // Perhaps inside a transaction, so that nobody can write until it is ended.
    send(worker, Signal::STOP);
    let done = succeeded(&server, &id).await;
    until_gone(worker).await;
    assert_eq!(done["attempts"], 1, "{done}");
    let told = events(&server, &id).await;
    assert!(told.iter().any(|e| e["message"].as_str().unwrap().contains("gave no sign of life for 4 s")), "{told:#?}");
    assert_eq!(weights(&server, &done).await, weights(&server, &expected).await);
    assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await);
}

#[tokio::test]
async fn a_sleeper_that_wakes_after_its_lease_changes_nothing_and_works_on() {
    let server = server_in(impatient(), &["--workers", "0"]);
    let mut sleeper = LooseWorker::start(&server.folder);
    let file = upload(&server, twenty_rows()).await;
    let filing = request(&file, json!({"max_steps": 120, "save_steps": 5}));
    let undisturbed = file_job(&server, &filing).await;
    let expected = succeeded(&server, &undisturbed).await;
    let id = file_job(&server, &filing).await;
    reached(&server, &id, 5).await;
    stop_between_writes(&server, sleeper.pid()).await;
    until_job(&server, &id, "that waits again", |j| j["status"] == "queued").await;
    assert!(is_alive(sleeper.pid()), "a worker that was started by hand is not the server's to end");
    // It wakes in the middle of its successor's work, with checkpoints of its own to write.
    let successor = LooseWorker::start(&server.folder);
    let step = reached(&server, &id, 5).await;
    reached(&server, &id, step + 5).await;
    send(sleeper.pid(), Signal::CONT);
    let done = succeeded(&server, &id).await;
    assert_eq!(done["attempts"], 1, "{done}");
    assert_eq!(weights(&server, &done).await, weights(&server, &expected).await);
    assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await);
    drop(successor);
    // With the other one gone, only the sleeper can do this.
    let next = file_job(&server, &request(&file, json!({"max_steps": 3}))).await;
    succeeded(&server, &next).await;
    assert!(sleeper.is_running());
}

#[tokio::test]
async fn a_sleeper_that_wakes_after_the_end_leaves_the_model_as_it_is() {
    let server = server_in(impatient(), &["--workers", "0"]);
    let mut sleeper = LooseWorker::start(&server.folder);
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 60, "save_steps": 5}))).await;
    reached(&server, &id, 5).await;
    stop_between_writes(&server, sleeper.pid()).await;
    until_job(&server, &id, "that waits again", |j| j["status"] == "queued").await;
    let successor = LooseWorker::start(&server.folder);
    let done = succeeded(&server, &id).await;
    let (model, steps, told) = (weights(&server, &done).await, history(&server, &id).await, events(&server, &id).await);
    drop(successor);
    send(sleeper.pid(), Signal::CONT);
    let next = file_job(&server, &request(&file, json!({"max_steps": 3}))).await;
    succeeded(&server, &next).await;
    assert!(sleeper.is_running());
    let after = until("the job", async || Some(server.get(&format!("{}/{id}", crate::trainer::JOBS)).await.ok())).await;
    assert_eq!(after, done);
    assert_eq!((weights(&server, &done).await, history(&server, &id).await, events(&server, &id).await), (model, steps, told));
}

/// Stopped while it writes, again and again: the server ends it although nobody else can write as long as it lives.
#[tokio::test]
async fn a_worker_that_stands_still_inside_a_transaction_is_ended() {
    let server = server_in(impatient(), &["--workers", "1"]);
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 100_000, "save_steps": 5}))).await;
    let worker = worker_of(&server).await;
    reached(&server, &id, 5).await;
    until("a stop inside a transaction", async || {
        send(worker, Signal::STOP);
        let locked = is_locked(&server).await;
        if !locked {
            send(worker, Signal::CONT);
        }
        locked.then_some(())
    })
    .await;
    until_gone(worker).await;
    until_job(&server, &id, "that was taken over", |j| j["attempts"] == 1 && j["status"] == "running").await;
    crate::trainer::act(&server, &id, "cancel").await;
}

/// Whether somebody holds the database's write lock for longer than a transaction takes.
async fn is_locked(server: &crate::harness::Server) -> bool {
    let probe = server.upload_for("batch", "probe", "x");
    tokio::time::timeout(std::time::Duration::from_millis(500), probe).await.is_err()
}
