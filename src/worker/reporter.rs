//! Between the training thread and the store: what the loop reports is written in batches, what the user asks for reaches
//! the loop between micro-batches.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tunesmith_ml::error::MlError;
use tunesmith_ml::train::{CheckpointReady, Control, Level, Observer, Progress};
use tunesmith_store::{Keys, LeaseToken, NewCheckpoint, NewEvent, NewMetric, Store, StoreError, checkpoint_name};

use super::card::Card;
use super::share::Share;

/// What the loop is to do; shared by the threads of one job.
#[derive(Clone, Default)]
pub struct Wish(Arc<AtomicU8>);

const GO: u8 = 0;
const PAUSE: u8 = 1;
const RELEASE: u8 = 2;
const STOP: u8 = 3;

impl Wish {
    /// The user asks for a pause.
    pub fn pause(&self) {
        self.0.fetch_max(PAUSE, Ordering::Relaxed);
    }

    /// The worker ends; another one is to go on.
    pub fn release(&self) {
        self.0.fetch_max(RELEASE, Ordering::Relaxed);
    }

    /// The job is not ours any more.
    pub fn stop(&self) {
        self.0.fetch_max(STOP, Ordering::Relaxed);
    }

    /// Whether a written checkpoint means a pause that the user asked for, not the worker's end.
    pub fn is_pause(&self) -> bool {
        self.0.load(Ordering::Relaxed) == PAUSE
    }

    /// What the loop is to do.
    pub fn control(&self) -> Control {
        match self.0.load(Ordering::Relaxed) {
            GO => Control::Continue,
            PAUSE | RELEASE => Control::Pause,
            _ => Control::Stop,
        }
    }
}

/// Beats every second, and asks ten times a second what the user wants, until `done`.
pub async fn keep_lease(store: Store, lease: LeaseToken, wish: Wish, stop: CancellationToken, done: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tick = 0u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled(), if wish.control() == Control::Continue => { wish.release(); continue }
            () = done.cancelled() => return,
        }
        let answer = if tick.is_multiple_of(10) { store.heartbeat(&lease).await } else { store.control(&lease).await };
        tick += 1;
        match answer {
            Ok(tunesmith_store::Control::None) => {}
            Ok(tunesmith_store::Control::Pause) => wish.pause(),
            Err(StoreError::Fenced { .. }) => return wish.stop(),
            // A busy or full disk: the lease lives for many missed beats.
            Err(error) => tracing::warn!(job_id = %lease.job, %error, "a beat was missed"),
        }
    }
}

enum Entry {
    Event(NewEvent),
    Metric(NewMetric),
    /// Asks for everything before it to be written now; answered when it is.
    Flush(oneshot::Sender<()>),
}

/// The loop's observer.
pub struct Reporter {
    store: Store,
    lease: LeaseToken,
    wish: Wish,
    runtime: Handle,
    entries: mpsc::Sender<Entry>,
    progress: watch::Sender<Option<Progress>>,
    writer: Option<tokio::task::JoinHandle<()>>,
    failure: Option<StoreError>,
    model_name: String,
    save_total_limit: usize,
    card: Card,
    share: Share,
}

impl Reporter {
    /// Starts the writer of reports. Must be called inside the runtime.
    pub fn start(store: Store, lease: LeaseToken, wish: Wish, save_total_limit: usize, card: Card, share: Share) -> Self {
        let (entries, from_loop) = mpsc::channel(1024);
        let (progress, latest) = watch::channel(None);
        let writer = tokio::spawn(write_all(store.clone(), lease.clone(), wish.clone(), from_loop, latest));
        let (runtime, writer, model_name) = (Handle::current(), Some(writer), card.name.clone());
        Self { store, lease, wish, runtime, entries, progress, writer, failure: None, model_name, save_total_limit, card, share }
    }

    fn send(&self, entry: Entry) {
        // Fails only when the writer has ended, which it does when the lease is lost; the wish says so.
        let _ = self.entries.blocking_send(entry);
    }

    /// Writes what is left, and answers what the store said when it refused a checkpoint.
    pub async fn finish(mut self) -> Option<StoreError> {
        let (writer, failure) = (self.writer.take(), self.failure.take());
        drop(self);
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "the writer of reports failed");
        }
        failure
    }

    /// A worker that dies after the checkpoint resumes from it, so what was measured before must be written before.
    async fn flush(&self) {
        let (written, answer) = oneshot::channel();
        // Both fail only when the writer has ended, for want of the lease; the checkpoint meets the same.
        if self.entries.send(Entry::Flush(written)).await.is_ok() {
            let _ = answer.await;
        }
    }

    async fn keep_checkpoint(&self, ready: &CheckpointReady<'_>) -> Result<(), StoreError> {
        let step = i64::try_from(ready.step).unwrap_or(i64::MAX);
        let key = Keys::checkpoint(self.lease.job, step);
        self.flush().await;
        // Moving is not fenced: a worker that was stopped for long must not replace what its successor wrote.
        self.store.control(&self.lease).await?;
        self.store.blobs().move_folder(&key, ready.folder).await?;
        let new = NewCheckpoint {
            step,
            model_name: checkpoint_name(&self.model_name, step),
            folder_key: key,
            metrics: Value::Object(ready.metrics.clone()),
            is_best: ready.is_best,
        };
        self.store.insert_checkpoint(&self.lease, &new).await?;
        self.store.retain_checkpoints(&self.lease, self.save_total_limit).await?;
        Ok(())
    }
}

impl Observer for Reporter {
    fn control(&mut self) -> Control {
        self.wish.control()
    }

    fn threads(&mut self) -> Option<Arc<rayon::ThreadPool>> {
        self.share.pool()
    }

    fn event(&mut self, level: Level, message: String, data: Value) {
        let event = match level {
            Level::Info => NewEvent::info(message),
            Level::Warn => NewEvent::warn(message),
        };
        self.send(Entry::Event(event.with(data)));
    }

    fn log(&mut self, entry: Map<String, Value>) {
        let step = entry.get("step").and_then(Value::as_i64).unwrap_or(0);
        let figure = |name: &str| entry.get(name).and_then(Value::as_f64);
        let message = match (figure("loss"), figure("eval_loss")) {
            (Some(loss), _) => format!("Step {step}: training loss {loss:.4}"),
            (None, Some(loss)) => match figure("eval_accuracy") {
                Some(accuracy) => format!("Step {step}: evaluation loss {loss:.4}, accuracy {accuracy:.4}"),
                None => format!("Step {step}: evaluation loss {loss:.4}"),
            },
            (None, None) => format!("Step {step}"),
        };
        let entry = Value::Object(entry);
        self.send(Entry::Event(NewEvent::metrics(message, entry.clone())));
        self.send(Entry::Metric(NewMetric { step, entry }));
    }

    fn progress(&mut self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    fn checkpoint(&mut self, ready: CheckpointReady) -> Result<(), MlError> {
        let card = self.card.text(Some(&ready.metrics));
        std::fs::write(ready.folder.join("model/README.md"), card).map_err(|e| MlError::io(ready.folder, e))?;
        let kept = self.runtime.block_on(self.keep_checkpoint(&ready));
        kept.map_err(|e| {
            if matches!(e, StoreError::Fenced { .. }) {
                self.wish.stop();
            }
            let message = e.to_string();
            self.failure = Some(e);
            MlError::Observer(message)
        })
    }

    fn state_folder(&mut self, step: u64) -> Result<PathBuf, MlError> {
        let key = Keys::checkpoint(self.lease.job, i64::try_from(step).unwrap_or(i64::MAX));
        self.store
            .blobs()
            .local_path(&key)
            .ok_or_else(|| MlError::Observer(format!("the checkpoint of step {step} is not on this machine")))
    }
}

/// How long entries are gathered, so that a fast loop does not write one transaction a step.
const GATHER: Duration = Duration::from_millis(200);
/// Entries that a disk without room may leave waiting in memory.
const MOST_PENDING: usize = 8192;

/// What waits to be written.
#[derive(Default)]
struct Pending {
    events: Vec<NewEvent>,
    metrics: Vec<NewMetric>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Pending {
    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Event(event) => self.events.push(event),
            Entry::Metric(metric) => self.metrics.push(metric),
            Entry::Flush(written) => self.flushes.push(written),
        }
    }

    /// What was written is forgotten part by part, so that after an error nothing is lost and nothing written twice.
    async fn write(&mut self, store: &Store, lease: &LeaseToken, progress: Option<Progress>) -> Result<(), StoreError> {
        store.append_metrics(lease, &self.metrics).await?;
        self.metrics.clear();
        if let Some(p) = progress {
            store.progress(lease, &training(p)).await?;
        }
        if !self.events.is_empty() {
            store.append_events(lease, &self.events).await?;
            self.events.clear();
        }
        self.flushes.drain(..).for_each(|written| {
            let _ = written.send(());
        });
        Ok(())
    }
}

/// Writes entries and progress every 200 ms, at once where a checkpoint waits for it, and the rest when the loop has ended.
async fn write_all(
    store: Store,
    lease: LeaseToken,
    wish: Wish,
    mut entries: mpsc::Receiver<Entry>,
    mut latest: watch::Receiver<Option<Progress>>,
) {
    let mut pending = Pending::default();
    loop {
        let open = tokio::select! {
            entry = entries.recv() => match entry {
                Some(entry) => { pending.add(entry); true }
                None => false,
            },
            changed = latest.changed() => changed.is_ok(),
        };
        if open {
            gather(&mut entries, &mut pending).await;
        }
        // Both senders are gone together, and what they sent last may still wait here.
        while !open && let Ok(entry) = entries.try_recv() {
            pending.add(entry);
        }
        let progress = *latest.borrow_and_update();
        if let Err(error) = pending.write(&store, &lease, progress).await {
            if matches!(error, StoreError::Fenced { .. }) {
                return wish.stop();
            }
            tracing::error!(job_id = %lease.job, %error, "a report could not be written; it is tried again");
            // Whoever waits goes on: a checkpoint meets the same fault and tells of it.
            pending.flushes.clear();
            if pending.events.len() + pending.metrics.len() > MOST_PENDING {
                tracing::error!(job_id = %lease.job, "reports are dropped");
                pending = Pending::default();
            }
        }
        if !open {
            return;
        }
    }
}

/// Takes entries until the time is over, one asks to be written at once, or the loop has ended.
async fn gather(entries: &mut mpsc::Receiver<Entry>, pending: &mut Pending) {
    let end = tokio::time::Instant::now() + GATHER;
    while pending.flushes.is_empty() && pending.events.len() + pending.metrics.len() < MOST_PENDING {
        match tokio::time::timeout_at(end, entries.recv()).await {
            Ok(Some(entry)) => pending.add(entry),
            Ok(None) | Err(_) => return,
        }
    }
}

fn training(p: Progress) -> tunesmith_store::Progress {
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    tunesmith_store::Progress {
        phase: Some("training".to_owned()),
        step: Some(whole(p.step)),
        total_steps: Some(whole(p.total_steps)),
        epoch: Some(p.epoch),
        eta_ms: Some((p.eta_seconds * 1e3) as i64),
        trained_tokens: Some(whole(p.trained_tokens)),
    }
}
