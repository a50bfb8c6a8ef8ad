//! The server's side of its workers: starts them, replaces those that die, and tells their jobs why.
//!
//! A worker's standard input is a pipe that only the server holds: however the server ends, the workers end with it.

use std::collections::VecDeque;
use std::io::Write;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tunesmith_store::{LeaseWatcher, SilentLease, Store};

use super::SUPERVISED;
use crate::config::Config;

/// Lines of a worker's log that a dead worker's job shows.
const LAST_LINES: usize = 5;
/// Bytes of a line of a worker's log; a longer one is broken.
const LONGEST_LINE: u64 = 16 << 10;
/// How long a worker may take to write its checkpoint and end.
const GRACE: Duration = Duration::from_secs(8);
/// A worker that ends sooner than this has its next start delayed, twice as long each time.
const SHORT_LIFE: Duration = Duration::from_secs(10);
/// But no longer than this: a job may be waiting.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// The workers of one server, and the watch over all leases.
pub struct Supervisor {
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Takes back what an earlier server's workers held, and starts this one's.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn start(store: Store, config: Arc<Config>, shutdown: CancellationToken) -> anyhow::Result<Self> {
        store.release_all_of(SUPERVISED).await?;
        let server = uuid::Uuid::now_v7().simple().to_string();
        let stalled = Stalled::default();
        let mut tasks = JoinSet::new();
        let watcher = LeaseWatcher::new(store.clone()).with_timeout(config.lease_timeout());
        tasks.spawn(watch_leases(watcher, stalled.clone(), shutdown.clone()));
        for number in 0..config.workers {
            let worker = Worker {
                store: store.clone(),
                config: config.clone(),
                name: format!("{SUPERVISED}{server}:{number}"),
                stalled: stalled.clone(),
                shutdown: shutdown.clone(),
            };
            tasks.spawn(worker.keep_alive());
        }
        Ok(Self { tasks })
    }

    /// Waits for the workers to end, after the shutdown was cancelled.
    pub async fn ended(mut self) {
        while let Some(result) = self.tasks.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a supervising task failed");
            }
        }
    }
}

/// Owners that gave no beat for too long; their processes are to be ended.
#[derive(Clone, Default)]
struct Stalled(Arc<(Mutex<Vec<String>>, tokio::sync::Notify)>);

impl Stalled {
    fn add(&self, owner: &str) {
        let mut owners = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !owners.iter().any(|o| o == owner) {
            owners.push(owner.to_owned());
        }
        drop(owners);
        self.0.1.notify_waiters();
    }

    /// Resolves when `owner` has been added.
    async fn contains(&self, owner: &str) {
        loop {
            let notified = self.0.1.notified();
            if self.take(owner) {
                return;
            }
            notified.await;
        }
    }

    fn take(&self, owner: &str) -> bool {
        let mut owners = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = owners.iter().position(|o| o == owner);
        at.map(|at| owners.remove(at)).is_some()
    }
}

async fn watch_leases(mut watcher: LeaseWatcher, stalled: Stalled, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        match watcher.silent().await {
            Ok(silent) => take_all(&watcher, silent, &stalled).await,
            Err(error) => tracing::error!(%error, "leases cannot be watched"),
        }
    }
}

async fn take_all(watcher: &LeaseWatcher, silent: Vec<SilentLease>, stalled: &Stalled) {
    for lease in silent {
        // Ended before its lease is taken: it may stand still inside a transaction, and then nobody can write until it is
        // gone. Workers that were started by hand are not ours to end; the fence holds them.
        if lease.owner.starts_with(SUPERVISED) {
            stalled.add(&lease.owner);
        }
        let owner = lease.owner.clone();
        if let Err(error) = watcher.take(lease).await {
            tracing::error!(owner, %error, "a silent worker's lease cannot be taken; if the process stands still, end it");
        }
    }
}

struct Worker {
    store: Store,
    config: Arc<Config>,
    name: String,
    stalled: Stalled,
    shutdown: CancellationToken,
}

impl Worker {
    async fn keep_alive(self) {
        let mut delay = Duration::from_millis(100);
        for life in 0u64.. {
            let started = tokio::time::Instant::now();
            let owner = format!("{}:{life}", self.name);
            if let Err(error) = self.live(&owner).await {
                tracing::error!(%error, "a worker cannot be started");
            }
            if self.shutdown.is_cancelled() {
                return;
            }
            delay = if started.elapsed() > SHORT_LIFE { Duration::from_millis(100) } else { (delay * 2).min(LONGEST_DELAY) };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    /// One process, from start to end.
    async fn live(&self, owner: &str) -> anyhow::Result<()> {
        let kills_before = crate::machine::memory_kills();
        let mut child = Command::new(crate::program::own_file()?)
            .args(["worker", "--owner", owner])
            .envs(self.config.child_environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        // `wait` would close it, and the worker takes that for the server's end.
        let _stdin = child.stdin.take();
        let lines = child.stderr.take().map(LastLines::follow);
        let mut silent = false;
        let status = tokio::select! {
            status = child.wait() => status?,
            () = self.stalled.contains(owner) => {
                silent = true;
                child.kill().await?;
                child.wait().await?
            }
            () = self.shutdown.cancelled() => return end(&mut child).await,
        };
        if !status.success() {
            let last = match lines {
                Some(lines) => lines.after_death().await,
                None => Vec::new(),
            };
            let reason = match silent {
                true => format!("the worker {owner} gave no sign of life for {} s", self.config.lease_seconds),
                false => reason(status, crate::machine::memory_kills() > kills_before, &last),
            };
            tracing::warn!(owner, reason, "a worker died");
            self.store.owner_died(owner, &reason).await?;
        }
        Ok(())
    }
}

/// Asks a worker to end, waits for its checkpoint, and kills it when that takes too long.
async fn end(child: &mut Child) -> anyhow::Result<()> {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        tracing::warn!("a worker did not end in time and is killed; its job goes on from its last checkpoint");
        child.kill().await?;
    }
    Ok(())
}

/// A worker's log, passed on, and its last lines.
struct LastLines {
    kept: Arc<Mutex<VecDeque<String>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl LastLines {
    fn follow(stderr: ChildStderr) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::with_capacity(LAST_LINES)));
        Self { reader: tokio::spawn(read_lines(stderr, kept.clone())), kept }
    }

    /// What the worker wrote last. A process that it had started may hold the pipe open, so the end is not waited for long.
    async fn after_death(self) -> Vec<String> {
        if tokio::time::timeout(Duration::from_secs(1), self.reader).await.is_err() {
            tracing::debug!("a dead worker's log is still open");
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

async fn read_lines(stderr: ChildStderr, kept: Arc<Mutex<VecDeque<String>>>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bytes, not text: a line that is no UTF-8 must not end the reading, or the worker stands still on a full pipe.
        match (&mut stderr).take(LONGEST_LINE).read_until(b'\n', &mut line).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        // Nobody has to listen, and a closed standard error must not end the reading.
        writeln!(std::io::stderr(), "{text}").ok();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == LAST_LINES {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

/// Why a worker died, for its job's user.
fn reason(status: ExitStatus, out_of_memory: bool, last: &[String]) -> String {
    use std::os::unix::process::ExitStatusExt;
    let mut reason = match (status.signal(), out_of_memory) {
        (Some(9), true) => "the worker was killed, out of memory".to_owned(),
        (Some(9), false) => "the worker was killed (signal 9, SIGKILL)".to_owned(),
        (Some(11), _) => "the worker crashed (signal 11, SIGSEGV)".to_owned(),
        (Some(6), _) => "the worker aborted (signal 6, SIGABRT)".to_owned(),
        (Some(n), _) => format!("the worker was ended by signal {n}"),
        (None, _) => format!("the worker ended with code {}", status.code().unwrap_or(-1)),
    };
    if !last.is_empty() {
        reason.push_str(&format!("; its last lines: {}", last.join(" / ")));
    }
    reason
}
