//! Several workers, several servers: who gets which job, who waits and why.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server, command};
use crate::trainer::{
    LooseWorker, act, children, configured, events, file_job, job, request, server_in, succeeded, twenty_rows, until_job, until_past,
    upload,
};

/// A job that ends only when it is told to.
fn endless(file: &str) -> Value {
    request(file, json!({"max_steps": 1_000_000, "save_steps": 1_000_000, "logging_steps": 1000}))
}

fn short(file: &str, priority: i64) -> Value {
    let mut filing = request(file, json!({"max_steps": 3}));
    filing["priority"] = json!(priority);
    filing
}

fn in_folder(flags: &[&str]) -> Server {
    server_in(Arc::new(tempfile::tempdir().unwrap()), flags)
}

/// The worker that a job's start names.
async fn owner(server: &Server, id: &str) -> String {
    let told = events(server, id).await;
    let start = told.iter().find(|e| e["data"]["worker"].is_string());
    start.unwrap_or_else(|| panic!("no start: {told:#?}"))["data"]["worker"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn two_workers_train_two_jobs_at_the_same_time() {
    let server = in_folder(&["--workers", "2"]);
    let file = upload(&server, twenty_rows()).await;
    let (one, two) = (file_job(&server, &endless(&file)).await, file_job(&server, &endless(&file)).await);
    for id in [&one, &two] {
        until_past(&server, id, 0).await;
    }
    assert_eq!(job(&server, &one).await["status"], "running", "the first one still trains");
    assert_ne!(owner(&server, &one).await, owner(&server, &two).await);
    assert_eq!(children(server.pid()).len(), 2);
    // A third one waits for a worker, and gets the one that is free first.
    let three = file_job(&server, &short(&file, 0)).await;
    let waiting = job(&server, &three).await;
    assert_eq!((&waiting["queue"]["position"], &waiting["queue"]["reason"]), (&json!(1), &json!("waiting for a worker to be free")));
    act(&server, &two, "cancel").await;
    succeeded(&server, &three).await;
    assert_eq!(owner(&server, &three).await, owner(&server, &two).await);
    act(&server, &one, "cancel").await;
}

#[tokio::test]
async fn the_queue_is_worked_off_by_priority_and_then_by_age() {
    let server = in_folder(&["--workers", "1"]);
    let file = upload(&server, twenty_rows()).await;
    let first = file_job(&server, &endless(&file)).await;
    until_past(&server, &first, 0).await;
    let mut filed = Vec::new();
    for priority in [0, 5, -1, 5] {
        filed.push(file_job(&server, &short(&file, priority)).await);
    }
    for (id, place) in filed.iter().zip([3, 1, 4, 2]) {
        assert_eq!(job(&server, id).await["queue"]["position"], place);
    }
    act(&server, &first, "cancel").await;
    let mut starts = Vec::new();
    for (number, id) in filed.iter().enumerate() {
        succeeded(&server, id).await;
        let told = events(&server, id).await;
        // Ids of events grow with time, over all jobs.
        starts.push((told.iter().find(|e| e["data"]["worker"].is_string()).unwrap()["id"].as_str().unwrap().to_owned(), number));
    }
    starts.sort();
    assert_eq!(starts.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 3, 0, 2]);
}

#[tokio::test]
async fn a_job_without_memory_waits_says_why_and_starts_when_there_is_some() {
    // Room for one of these jobs, which are estimated at about 200 MB, and not for two.
    let server = server_in(configured("[budgets]\njobs_bytes = 300000000\n"), &["--workers", "2"]);
    let file = upload(&server, twenty_rows()).await;
    let first = file_job(&server, &endless(&file)).await;
    until_job(&server, &first, "that its worker has", |j| j["queue"].is_null()).await;
    let mut large = request(&file, json!({"max_steps": 3, "per_device_train_batch_size": 4096}));
    large["tuning"] = json!({"type": "full"});
    let second = file_job(&server, &large).await;
    let waiting =
        until_job(&server, &second, "that waits for memory", |j| j["queue"]["reason"].as_str().is_some_and(|r| r.contains("memory"))).await;
    assert_eq!(waiting["queue"]["position"], 1);
    // It does not keep a smaller one behind it from running.
    act(&server, &first, "cancel").await;
    let third = file_job(&server, &short(&file, 0)).await;
    succeeded(&server, &third).await;
    assert_eq!(job(&server, &second).await["status"], "validating_files");
    act(&server, &second, "cancel").await;
}

#[tokio::test]
async fn a_server_without_workers_is_served_by_one_that_was_started_apart() {
    let server = in_folder(&["--workers", "0"]);
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &short(&file, 0)).await;
    assert_eq!(job(&server, &id).await["queue"]["reason"], "waiting for a worker to be free");
    let worker = LooseWorker::start(&server.folder);
    let done = succeeded(&server, &id).await;
    assert!(owner(&server, &id).await.starts_with(&format!("worker:{}:", worker.pid())));
    server.post("/v1/classify", &json!({"model": done["fine_tuned_model"], "input": "row 03"})).await.ok();
    assert_eq!(children(server.pid()), [] as [u32; 0]);
}

/// The second one must not touch what the first one's workers hold.
#[tokio::test]
async fn a_second_server_on_a_training_one_names_it_and_disturbs_nothing() {
    let server = in_folder(&["--workers", "1"]);
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &endless(&file)).await;
    until_past(&server, &id, 0).await;
    let mut second = command(server.folder.path());
    second.args(["serve", "--port", "0", "--workers", "1", "--model-dir", FIXTURES]);
    let output = tokio::task::spawn_blocking(move || second.output().unwrap()).await.unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&server.pid().to_string()), "{text}");
    let step = job(&server, &id).await["progress"]["step"].as_u64().unwrap();
    let later = until_past(&server, &id, step).await;
    assert_eq!((&later["status"], &later["attempts"]), (&json!("running"), &json!(0)));
    assert_eq!(events(&server, &id).await.iter().filter(|e| e["data"]["worker"].is_string()).count(), 1);
    act(&server, &id, "cancel").await;
}
