//! A workbench for tests: a store in a temporary folder, a clock to move, and jobs in any
//! condition.

use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use tunesmith_store::{
    Claim, DataLock, FileId, FileRow, Finished, JobError, JobId, JobReport, JobRow, Keys, LeaseToken, ModelKind, NewCheckpoint, NewEvent,
    NewFile, NewJob, NewMetric, NewModel, Options, PageQuery, Progress, Result, Store, StoreError, TestClock, checkpoint_name, model_name,
};

/// The wall time at which tests begin.
pub const START: i64 = 1_780_000_000_000;

/// A store of its own for one test.
pub struct Bench {
    pub folder: TempDir,
    pub clock: Arc<TestClock>,
    pub store: Store,
}

/// What a job is made of in a table of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Validating,
    ValidatingLeased,
    Queued,
    QueuedLeased,
    Running,
    Pausing,
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

pub async fn bench() -> Bench {
    bench_with(Options::default()).await
}

pub async fn bench_with(options: Options) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::at(START));
    let store = Store::open_with(folder.path(), clock.clone(), options).await.unwrap();
    Bench { folder, clock, store }
}

impl Bench {
    /// Another process on the same folder.
    pub async fn second(&self) -> Store {
        Store::open(self.folder.path(), self.clock.clone()).await.unwrap()
    }

    pub async fn file(&self) -> FileRow {
        let new = new_file(FileId::generate(&*self.clock), "rows.jsonl");
        self.store.blobs().put_bytes(&new.blob_key, "{}").await.unwrap();
        self.store.insert_file(new).await.unwrap()
    }

    pub async fn new_job(&self) -> NewJob {
        new_job(self.file().await.id)
    }

    pub async fn job(&self) -> JobRow {
        let new = self.new_job().await;
        self.store.create_job(new).await.unwrap().into_job()
    }

    /// Takes the next job for the worker `w`.
    pub async fn claim(&self) -> (LeaseToken, JobRow) {
        self.store.claim(&claim("w")).await.unwrap().expect("a job waits")
    }

    /// A job that trains, which must be the only one that waits.
    pub async fn running(&self) -> LeaseToken {
        let id = self.job().await.id;
        let (lease, job) = self.claim().await;
        assert_eq!(job.id, id, "another job was waiting");
        self.store.mark_running(&lease).await.unwrap();
        lease
    }

    /// A job in the condition asked for; the lease is the last one that it had.
    pub async fn job_in(&self, condition: Condition) -> (JobId, Option<LeaseToken>) {
        use Condition::*;
        let id = self.job().await.id;
        let store = &self.store;
        if condition == Validating {
            return (id, None);
        }
        let (lease, _) = self.claim().await;
        assert_eq!(lease.job, id);
        match condition {
            Validating | ValidatingLeased => return (id, Some(lease)),
            _ => store.mark_running(&lease).await.unwrap(),
        };
        match condition {
            Validating | ValidatingLeased | Running => {}
            Queued => drop(store.release(&lease).await.unwrap()),
            QueuedLeased => {
                store.release(&lease).await.unwrap();
                return (id, Some(self.claim().await.0));
            }
            Pausing => drop(store.pause(id).await.unwrap()),
            Paused => drop(store.paused(&lease).await.unwrap()),
            Succeeded => drop(store.succeed(&lease, &finished(self, id).await).await.unwrap()),
            Failed => drop(store.fail(&lease, &error("the loss is not a number")).await.unwrap()),
            Cancelled => drop(store.cancel(id).await.unwrap()),
        }
        (id, Some(lease))
    }

    pub async fn event_count(&self, job: JobId) -> usize {
        self.store.job_events_since(job, 0, 10_000).await.unwrap().len()
    }

    pub async fn last_event(&self, job: JobId) -> tunesmith_store::EventRow {
        let page = self.store.list_events(job, &PageQuery { limit: 1, ..Default::default() }).await.unwrap();
        page.items.into_iter().next().unwrap()
    }

    pub fn lock(&self) -> DataLock {
        DataLock::acquire(self.folder.path()).unwrap()
    }

    /// All relative paths of files below the blobs' folder.
    pub fn blob_files(&self) -> Vec<String> {
        let root = self.folder.path().join("blobs");
        let mut open = vec![root.clone()];
        let mut files = Vec::new();
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    files.push(path.strip_prefix(&root).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        files.sort();
        files
    }
}

pub fn claim(owner: &str) -> Claim {
    Claim { owner: owner.to_owned(), memory_budget: None }
}

pub fn error(message: &str) -> JobError {
    JobError { code: "test".to_owned(), message: message.to_owned(), param: None }
}

pub fn new_file(id: FileId, filename: &str) -> NewFile {
    NewFile {
        id,
        filename: filename.to_owned(),
        purpose: "fine-tune".to_owned(),
        bytes: 2,
        sha256: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a".to_owned(),
        blob_key: Keys::file(id),
        summary: json!({"rows": 1}),
    }
}

pub fn new_job(training_file: FileId) -> NewJob {
    NewJob {
        model: "all-minilm-l6-v2".to_owned(),
        training_file,
        validation_file: None,
        suffix: Some("news".to_owned()),
        seed: 7,
        task: "classification".to_owned(),
        method: json!({"type": "supervised"}),
        spec: json!({"training": {"num_train_epochs": 3}}),
        request: json!({"model": "all-minilm-l6-v2"}),
        metadata: json!({}),
        priority: 0,
        estimate_bytes: 1_000,
        idempotency: None,
    }
}

/// A finished job's legacy, with its blobs.
pub async fn finished(bench: &Bench, job: JobId) -> Finished {
    let file = FileId::generate(&*bench.clock);
    let csv = Keys::result(job, "metrics.csv");
    let folder = Keys::model(job);
    let predictions = Keys::result(job, "predictions.jsonl");
    let config = format!("{folder}/config.json");
    for key in [&csv, &predictions, &config] {
        bench.store.blobs().put_bytes(key, "x").await.unwrap();
    }
    let csv = NewFile { purpose: "fine-tune-results".to_owned(), blob_key: csv, ..new_file(file, "metrics.csv") };
    Finished {
        model: new_model(&model_name("all-minilm-l6-v2", Some("news"), job), &folder),
        result_files: vec![csv],
        trained_tokens: Some(4_096),
        report: Some(JobReport { report: json!({"peak_memory_bytes": 1}), predictions_key: Some(predictions) }),
    }
}

pub fn new_model(name: &str, folder: &str) -> NewModel {
    NewModel {
        name: name.to_owned(),
        kind: ModelKind::Adapter,
        base_name: "all-minilm-l6-v2".to_owned(),
        base_source: "hf:sentence-transformers/all-MiniLM-L6-v2".to_owned(),
        base_revision: Some("abc".to_owned()),
        task: "classification".to_owned(),
        labels: vec!["no".to_owned(), "yes".to_owned()],
        folder_key: folder.to_owned(),
        card: json!({"license": "apache-2.0"}),
        max_length: Some(128),
        metrics: json!({"eval_f1": 0.9}),
    }
}

/// Writes a checkpoint's folder and records it.
pub async fn checkpoint(store: &Store, lease: &LeaseToken, step: i64, is_best: bool) -> Result<()> {
    let new = new_checkpoint(lease.job, step, is_best);
    for name in ["adapter_model.safetensors", "state.safetensors", "state.json"] {
        store.blobs().put_bytes(&format!("{}/{name}", new.folder_key), "x").await?;
    }
    store.insert_checkpoint(lease, &new).await.map(|_| ())
}

pub fn new_checkpoint(job: JobId, step: i64, is_best: bool) -> NewCheckpoint {
    NewCheckpoint {
        step,
        model_name: checkpoint_name(&model_name("all-minilm-l6-v2", Some("news"), job), step),
        folder_key: Keys::checkpoint(job, step),
        metrics: json!({"step": step}),
        is_best,
    }
}

/// Everything that a worker can write or ask with its lease.
pub async fn worker_calls(bench: &Bench, lease: &LeaseToken) -> Vec<(&'static str, Result<()>)> {
    let store = &bench.store;
    let progress = Progress { step: Some(99), ..Default::default() };
    let entry: Value = json!({"loss": 1.0});
    let done = finished(bench, lease.job).await;
    let report = JobReport { report: json!({}), predictions_key: None };
    vec![
        ("heartbeat", store.heartbeat(lease).await.map(drop)),
        ("control", store.control(lease).await.map(drop)),
        ("progress", store.progress(lease, &progress).await),
        ("update_spec", store.update_spec(lease, &json!({"changed": true}), Some(1)).await),
        ("append_events", store.append_events(lease, &[NewEvent::info("late")]).await),
        ("append_metrics", store.append_metrics(lease, &[NewMetric { step: 99, entry }]).await),
        ("truncate_metrics_after", store.truncate_metrics_after(lease, 0).await),
        ("set_report", store.set_report(lease, &report).await),
        ("insert_checkpoint", store.insert_checkpoint(lease, &new_checkpoint(lease.job, 99, true)).await.map(drop)),
        ("retain_checkpoints", store.retain_checkpoints(lease, 1).await.map(drop)),
        ("mark_running", store.mark_running(lease).await.map(drop)),
        ("paused", store.paused(lease).await.map(drop)),
        ("release", store.release(lease).await.map(drop)),
        ("fail", store.fail(lease, &error("late")).await.map(drop)),
        ("succeed", store.succeed(lease, &done).await.map(drop)),
    ]
}

pub fn assert_fenced(what: &str, result: Result<()>) {
    assert!(matches!(result, Err(StoreError::Fenced { .. })), "{what}: {result:?}");
}
