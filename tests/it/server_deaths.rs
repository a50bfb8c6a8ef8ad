//! Servers that are killed or told to end: no process stays behind, and the next server lets every job go on by itself.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::trainer::{
    LooseWorker, act, events, file_job, history, is_alive, job, kill, reached, request, send, server, server_in, slow_request, slow_rows,
    succeeded, twenty_rows, until_gone, until_job, until_past, upload, weights, worker_of,
};

const ONE_WORKER: &[&str] = &["--workers", "1"];

#[tokio::test]
async fn a_killed_server_leaves_no_worker_and_its_job_goes_on_after_the_restart() {
    let first = server();
    let file = upload(&first, twenty_rows()).await;
    let filing = request(&file, json!({"max_steps": 120, "save_steps": 5}));
    let undisturbed = file_job(&first, &filing).await;
    let expected = succeeded(&first, &undisturbed).await;
    let id = file_job(&first, &filing).await;
    let worker = worker_of(&first).await;
    reached(&first, &id, 10).await;
    let folder = first.folder.clone();
    let start = Instant::now();
    kill(first.pid()).await;
    drop(first);
    until_gone(worker).await;
    assert!(start.elapsed() < Duration::from_secs(10), "the worker took {:?} to notice", start.elapsed());
    let second = server_in(folder, ONE_WORKER);
    let done = succeeded(&second, &id).await;
    assert_eq!(done["attempts"], 0, "the server's end is no fault of the job");
    assert_eq!(weights(&second, &done).await, weights(&second, &expected).await);
    assert_eq!(history(&second, &id).await, history(&second, &undisturbed).await);
}

/// The new server does not wait for the old one's worker, which may be writing its last checkpoint just then.
#[tokio::test]
async fn a_server_that_is_back_at_once_takes_the_job_from_the_orphan() {
    let mut server = server();
    let file = upload(&server, twenty_rows()).await;
    let filing = request(&file, json!({"max_steps": 200, "save_steps": 2}));
    let undisturbed = file_job(&server, &filing).await;
    let expected = succeeded(&server, &undisturbed).await;
    let id = file_job(&server, &filing).await;
    let mut last = 0;
    for _ in 0..3 {
        last = reached(&server, &id, last + 4).await;
        let folder = server.folder.clone();
        kill(server.pid()).await;
        server = server_in(folder, ONE_WORKER);
    }
    let done = succeeded(&server, &id).await;
    assert_eq!(done["attempts"], 0);
    assert_eq!(weights(&server, &done).await, weights(&server, &expected).await);
    assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await);
}

/// Both at once, as when a machine is switched off: the worker has no time to write a checkpoint or give the job back.
#[tokio::test]
async fn a_job_outlives_the_death_of_server_and_worker() {
    let first = server();
    let file = upload(&first, twenty_rows()).await;
    let id = file_job(&first, &request(&file, json!({"max_steps": 200, "save_steps": 10}))).await;
    let worker = worker_of(&first).await;
    reached(&first, &id, 10).await;
    send(worker, Signal::STOP);
    kill(first.pid()).await;
    kill(worker).await;
    let folder = first.folder.clone();
    drop(first);
    let second = server_in(folder, ONE_WORKER);
    let done = succeeded(&second, &id).await;
    assert_eq!((&done["progress"]["step"], &done["attempts"]), (&json!(200), &json!(0)));
    let told = events(&second, &id).await;
    for what in ["The server was restarted", "Resuming from the checkpoint of step"] {
        assert!(told.iter().any(|e| e["message"].as_str().unwrap().contains(what)), "{what}: {told:#?}");
    }
}

#[tokio::test]
async fn sigterm_ends_server_and_worker_and_the_job_goes_on_where_it_was() {
    let mut first = server();
    let mut filing = slow_request(&upload(&first, slow_rows()).await, 400);
    filing["training"]["logging_steps"] = json!(7);
    let undisturbed = file_job(&first, &filing).await;
    let expected = succeeded(&first, &undisturbed).await;
    let id = file_job(&first, &filing).await;
    let worker = worker_of(&first).await;
    until_past(&first, &id, 0).await;
    let folder = first.folder.clone();
    let start = Instant::now();
    let status = tokio::task::spawn_blocking(move || first.stop()).await.unwrap();
    assert!(status.success() && start.elapsed() < Duration::from_secs(10), "{status} after {:?}", start.elapsed());
    assert!(!is_alive(worker), "the worker outlived its server");
    // A server without workers shows what was left.
    let looking = server_in(folder.clone(), &["--workers", "0"]);
    let left = job(&looking, &id).await;
    assert_eq!((&left["status"], &left["attempts"]), (&json!("queued"), &json!(0)), "{left}");
    let step = left["progress"]["step"].as_u64().unwrap();
    assert!((1..400).contains(&step), "{left}");
    assert_eq!(reached(&looking, &id, 1).await, step, "nothing of what was trained is lost");
    drop(looking);
    let second = server_in(folder, ONE_WORKER);
    let done = succeeded(&second, &id).await;
    assert_eq!(weights(&second, &done).await, weights(&second, &expected).await);
    assert_eq!(history(&second, &id).await, history(&second, &undisturbed).await, "the running sums of the log's window are kept too");
}

#[tokio::test]
async fn a_paused_job_stays_paused_over_a_restart() {
    let mut first = server();
    let file = upload(&first, slow_rows()).await;
    let id = file_job(&first, &slow_request(&file, 400)).await;
    until_past(&first, &id, 0).await;
    act(&first, &id, "pause").await;
    until_job(&first, &id, "that is paused", |j| j["status"] == "paused").await;
    let folder = first.folder.clone();
    tokio::task::spawn_blocking(move || first.stop()).await.unwrap();
    let second = server_in(folder, ONE_WORKER);
    let other = file_job(&second, &request(&upload(&second, twenty_rows()).await, json!({"max_steps": 3}))).await;
    succeeded(&second, &other).await;
    assert_eq!(job(&second, &id).await["status"], "paused", "the worker was free and left it alone");
    act(&second, &id, "resume").await;
    succeeded(&second, &id).await;
}

#[tokio::test]
async fn a_worker_of_its_own_trains_on_while_the_server_restarts() {
    let first = server_in(std::sync::Arc::new(tempfile::tempdir().unwrap()), &["--workers", "0"]);
    let mut worker = LooseWorker::start(&first.folder);
    let file = upload(&first, twenty_rows()).await;
    let id = file_job(&first, &request(&file, json!({"max_steps": 300, "save_steps": 5}))).await;
    reached(&first, &id, 5).await;
    let folder = first.folder.clone();
    kill(first.pid()).await;
    drop(first);
    let second = server_in(folder, &["--workers", "0"]);
    let done = succeeded(&second, &id).await;
    assert_eq!((&done["attempts"], &done["progress"]["step"]), (&json!(0), &json!(300)));
    let told = events(&second, &id).await;
    assert!(!told.iter().any(|e| e["message"].as_str().unwrap().contains("Resuming")), "its worker never let go of it: {told:#?}");
    assert!(worker.is_running());
}
