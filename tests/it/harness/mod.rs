//! What every test starts from: a server of its own, and short words to talk to it.
//!
//! A server is waited for by its line on standard output, never by sleeping, and dies with its handle.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tunesmith_store::{Claim, LeaseToken, Store, SystemClock};

/// The binary under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_tunesmith");

/// Small models and adapters; a folder for `--model-dir`.
pub const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// A running server.
pub struct Server {
    pub url: String,
    pub folder: Arc<TempDir>,
    child: Child,
    http: Client,
    key: Option<String>,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON in a {}: {}", self.status, self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The body of a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The error object of a failure with this status; checks that it is OpenAI's.
    #[track_caller]
    pub fn error(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        for field in ["message", "type", "param", "code"] {
            assert!(error.get(field).is_some(), "the error has no {field}: {error}");
        }
        error
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Server {
    /// A server without workers: jobs stay where the test puts them.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// The same with more flags.
    pub fn with(flags: &[&str]) -> Self {
        Self::in_folder(Arc::new(tempfile::tempdir().unwrap()), flags)
    }

    /// A server on a data folder that another one has left.
    pub fn in_folder(folder: Arc<TempDir>, flags: &[&str]) -> Self {
        Self::of_binary(Path::new(BIN), folder, flags)
    }

    /// The same of another file of the binary.
    pub fn of_binary(binary: &Path, folder: Arc<TempDir>, flags: &[&str]) -> Self {
        let mut command = command_of(binary, folder.path());
        command.args(["serve", "--port", "0"]).args(flags);
        if !flags.contains(&"--workers") {
            command.args(["--workers", "0"]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::from(std::fs::File::create(folder.path().join("log")).unwrap()));
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("tunesmith listening on ");
        let Some(url) = url.map(str::to_owned) else {
            child.wait().unwrap();
            panic!("the server did not start: {}", std::fs::read_to_string(folder.path().join("log")).unwrap());
        };
        tunesmith_hub::install_tls();
        Self { url, folder, child, http: Client::builder().timeout(Duration::from_secs(60)).build().unwrap(), key: None }
    }

    pub fn use_key(&mut self, key: &str) {
        self.key = Some(key.to_owned());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.request(Method::POST, path).json(body)).await
    }

    /// Posts each body and checks that it is refused with `status` and names that parameter.
    pub async fn refuses(&self, path: &str, status: u16, cases: impl IntoIterator<Item = (Value, &str)>) {
        for (body, param) in cases {
            let error = self.post(path, &body).await.error(status);
            assert_eq!(error["param"], param, "{path} {body}: {error}");
        }
    }

    pub async fn upload(&self, name: &str, bytes: impl Into<Vec<u8>>) -> Answer {
        self.upload_for("fine-tune", name, bytes).await
    }

    pub async fn upload_for(&self, purpose: &str, name: &str, bytes: impl Into<Vec<u8>>) -> Answer {
        let file = reqwest::multipart::Part::bytes(bytes.into()).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new().text("purpose", purpose.to_owned()).part("file", file);
        answer(self.request(Method::POST, "/v1/files").multipart(form)).await
    }

    /// Uploads a data set of two classes and answers its id.
    pub async fn data_set(&self) -> String {
        let file = self.upload("rows.jsonl", two_classes(20)).await.ok();
        file["id"].as_str().unwrap().to_owned()
    }

    /// Files a job on the folder's own model and answers it.
    pub async fn job(&self, training_file: &str) -> Value {
        self.post("/v1/fine_tuning/jobs", &job_request(training_file)).await.ok()
    }

    /// The store behind the server, as a worker sees it.
    pub async fn store(&self) -> Store {
        Store::open(&self.data_dir(), Arc::new(SystemClock::new())).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The binary with an environment that the developer's own settings do not reach.
pub fn command(folder: &Path) -> Command {
    command_of(Path::new(BIN), folder)
}

fn command_of(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars() {
        if name.starts_with("TUNESMITH_") {
            command.env_remove(name);
        }
    }
    let models = folder.join("models");
    make_model(&models);
    command
        .current_dir(folder)
        .env("TUNESMITH_DATA_DIR", folder.join("data"))
        .env("TUNESMITH_MODEL_DIR", &models)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder.join("hf"))
        .env("TUNESMITH_CACHE", folder.join("cache"))
        .stdin(Stdio::null());
    command
}

/// A folder that passes for a model until a worker opens it.
fn make_model(models: &Path) {
    let folder = models.join("tiny");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"model_type":"bert"}"#).unwrap();
    std::fs::write(folder.join("model.safetensors"), [0; 64]).unwrap();
}

/// Reads an answer to its end.
pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let bytes = response.bytes().await.unwrap().to_vec();
    Answer { status, headers, bytes }
}

/// Rows of two classes, each `n` times.
pub fn two_classes(n: usize) -> String {
    (0..n)
        .map(|i| {
            format!("{}\n{}\n", json!({"text": format!("good {i}"), "label": "pos"}), json!({"text": format!("bad {i}"), "label": "neg"}))
        })
        .collect()
}

/// The smallest request.
pub fn job_request(training_file: &str) -> Value {
    json!({"model": "file:tiny", "training_file": training_file})
}

/// Takes the next job as a worker would.
pub async fn claim(store: &Store) -> LeaseToken {
    let claim = Claim { owner: "test-worker".into(), memory_budget: None };
    store.claim(&claim).await.unwrap().expect("a job waits").0
}
