//! What tests of real training start from: a server with the tiny models, jobs to follow, processes to hit.
//!
//! Waiting is always for something that the server or the kernel shows, within a limit that only a failing test reaches.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{FIXTURES, Server, command};

pub const JOBS: &str = "/v1/fine_tuning/jobs";
pub const MODEL: &str = "file:bert-tiny";

/// Longer than anything takes that goes well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(5);

/// A server with one worker and the tiny models.
pub fn server() -> Server {
    server_in(Arc::new(tempfile::tempdir().unwrap()), &["--workers", "1"])
}

/// A server with the tiny models on a folder, which may hold a tunesmith.toml.
pub fn server_in(folder: Arc<TempDir>, flags: &[&str]) -> Server {
    let mut all = vec!["--model-dir", FIXTURES, "--worker-threads", "1"];
    all.extend(flags);
    Server::in_folder(folder, &all)
}

/// A folder with a configuration file.
pub fn configured(toml: &str) -> Arc<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tunesmith.toml"), toml).unwrap();
    Arc::new(folder)
}

/// A worker that was started by hand on a server's data folder; it dies with its handle.
pub struct LooseWorker(Child);

impl LooseWorker {
    pub fn start(folder: &TempDir) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(folder.path().join("worker.log")).unwrap();
        let mut command = command(folder.path());
        command.args(["worker", "--model-dir", FIXTURES, "--worker-threads", "1"]).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for LooseWorker {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A request with settings that make a short job exact: f32, no held-out rows, one entry of the log a step.
pub fn request(file: &str, training: Value) -> Value {
    let mut all = json!({"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2, "max_length": 32, "dtype": "f32"});
    all.as_object_mut().unwrap().extend(training.as_object().unwrap().clone());
    json!({"model": MODEL, "training_file": file, "seed": 5, "data": {"validation_split": 0}, "training": all})
}

/// Uploads rows and answers the file's id.
pub async fn upload(server: &Server, rows: impl Into<Vec<u8>>) -> String {
    server.upload("rows.jsonl", rows).await.ok()["id"].as_str().unwrap().to_owned()
}

/// Twenty rows of two classes, as in the case that this suite is built around.
pub fn twenty_rows() -> String {
    (1..=20).map(|i| format!("{}\n", json!({"text": format!("row {i:02}"), "label": if i % 3 == 0 { "fizz" } else { "plain" }}))).collect()
}

/// Rows and settings of some milliseconds a step, so that there is time to do something to the job while it trains.
pub fn slow_rows() -> String {
    let long = "the market rose and the market fell ".repeat(10);
    (0..48).map(|i| format!("{}\n", json!({"text": format!("{i} {long}"), "label": if i % 2 == 0 { "red" } else { "blue" }}))).collect()
}

/// A job of `steps` such steps without a checkpoint before its end.
pub fn slow_request(file: &str, steps: u64) -> Value {
    request(file, json!({"max_steps": steps, "save_steps": steps, "per_device_train_batch_size": 16, "max_length": 64}))
}

/// Waits until a job has made a step after `last`.
pub async fn until_past(server: &Server, id: &str, last: u64) -> Value {
    until_job(server, id, "that goes on", |j| j["status"] == "running" && j["progress"]["step"].as_u64() > Some(last)).await
}

/// Files a job and answers its id.
pub async fn file_job(server: &Server, request: &Value) -> String {
    server.post(JOBS, request).await.ok()["id"].as_str().unwrap().to_owned()
}

pub async fn job(server: &Server, id: &str) -> Value {
    server.get(&format!("{JOBS}/{id}")).await.ok()
}

pub async fn act(server: &Server, id: &str, action: &str) -> Value {
    server.post(&format!("{JOBS}/{id}/{action}"), &json!({})).await.ok()
}

/// Looks until there is something to see.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        tokio::time::sleep(GLANCE).await;
    }
}

/// Looks at a job until it is as wished.
pub async fn until_job(server: &Server, id: &str, what: &str, wished: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let job = job(server, id).await;
        if wished(&job) {
            return job;
        }
        let over = is_final(&job) || start.elapsed() > PATIENCE;
        assert!(!over, "waited for a job {what}, but it is {job}\n{}", server.log());
        tokio::time::sleep(GLANCE).await;
    }
}

fn is_final(job: &Value) -> bool {
    ["succeeded", "failed", "cancelled"].contains(&job["status"].as_str().unwrap())
}

/// Waits for the job's end, whatever it is.
pub async fn ended(server: &Server, id: &str) -> Value {
    until_job(server, id, "that has ended", is_final).await
}

/// Waits for the job's good end.
pub async fn succeeded(server: &Server, id: &str) -> Value {
    let job = ended(server, id).await;
    assert_eq!(job["status"], "succeeded", "{job}\n{}", server.log());
    job
}

/// Waits until the job has a checkpoint of that step or a later one, and answers its step.
pub async fn reached(server: &Server, id: &str, step: u64) -> u64 {
    until(&format!("a checkpoint of step {step}"), async || {
        let list = server.get(&format!("{JOBS}/{id}/checkpoints?limit=1")).await.ok();
        list["data"][0]["step_number"].as_u64().filter(|n| *n >= step)
    })
    .await
}

/// A job's events, oldest first.
pub async fn events(server: &Server, id: &str) -> Vec<Value> {
    let mut all = server.get(&format!("{JOBS}/{id}/events?limit=100")).await.ok()["data"].as_array().unwrap().clone();
    while let Some(last) = all.last().cloned() {
        let page = server.get(&format!("{JOBS}/{id}/events?limit=100&after={}", last["id"].as_str().unwrap())).await.ok();
        all.extend(page["data"].as_array().unwrap().clone());
        if page["has_more"] == false {
            break;
        }
    }
    all.reverse();
    all
}

/// The states that a job's events tell of, in order.
pub async fn states(server: &Server, id: &str) -> Vec<String> {
    events(server, id).await.iter().filter_map(|e| e["data"]["state"].as_str().map(str::to_owned)).collect()
}

/// What training measured at each step, less what depends on the clock.
pub async fn history(server: &Server, id: &str) -> Vec<Value> {
    let metrics = server.get(&format!("{JOBS}/{id}/metrics")).await.ok();
    let mut entries = metrics["log_history"].as_array().unwrap().clone();
    for entry in &mut entries {
        let entry = entry.as_object_mut().unwrap();
        entry.retain(|name, _| !(name.contains("per_second") || name.contains("runtime") || name == "eta_seconds"));
    }
    entries
}

/// The files of a model's download.
pub async fn download(server: &Server, model: &str) -> BTreeMap<String, Vec<u8>> {
    let zip = server.get(&format!("/v1/models/{model}/download")).await;
    assert_eq!(zip.status, 200, "{}", zip.text());
    unzip(&zip.bytes)
}

pub fn unzip(zip: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(zip)).unwrap();
    let mut files = BTreeMap::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(entry.name().unwrap().into_owned(), bytes);
    }
    files
}

/// The weights that a succeeded job made, as the bytes of their file.
pub async fn weights(server: &Server, job: &Value) -> Vec<u8> {
    let mut files = download(server, job["fine_tuned_model"].as_str().unwrap()).await;
    let name = files.keys().find(|n| n.ends_with(".safetensors")).unwrap().clone();
    files.remove(&name).unwrap()
}

/// Scores of texts, in order.
pub async fn classify(server: &Server, model: &str, input: &Value) -> Value {
    server.post("/v1/classify", &json!({"model": model, "input": input})).await.ok()["data"].clone()
}

/// The processes that a process has started and that still run.
pub fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    processes.filter(|pid| stat(*pid).is_some_and(|(state, of)| of == parent && state != 'Z')).collect()
}

/// Whether a process runs or stands still; one that has ended and was not waited for does neither.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// A process's state and parent.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may have any character.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The only worker of a server.
pub async fn worker_of(server: &Server) -> u32 {
    until("a worker", async || children(server.pid()).first().copied()).await
}

/// Stops a worker where it lets others write. SQLite's one write lock stays with a process that is stopped inside a
/// transaction, and only the end of the process would free it.
pub async fn stop_between_writes(server: &Server, pid: u32) {
    until("a worker that holds no lock", async || {
        send(pid, Signal::STOP);
        let free = server.upload_for("batch", "probe", "x").await.status == 200;
        if !free {
            send(pid, Signal::CONT);
        }
        free.then_some(())
    })
    .await;
}

pub async fn until_gone(pid: u32) {
    until(&format!("the end of process {pid}"), async || (!is_alive(pid)).then_some(())).await;
}

pub fn send(pid: u32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// `kill -9`, and waits until the process is gone.
pub async fn kill(pid: u32) {
    send(pid, Signal::KILL);
    until_gone(pid).await;
}
