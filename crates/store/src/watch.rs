//! Lost workers: who notices, and what becomes of their jobs.
//!
//! Called by the server's supervisor: [`LeaseWatcher::tick`] every second, [`Store::owner_died`]
//! when a child ends, and [`Store::release_all_of`] at start. The one thing to know: a worker is
//! judged by whether its beat changes while the watcher's own monotonic clock runs; no wall time is
//! compared.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use crate::row::to_json;
use crate::{JobError, JobId, JobRow, JobState, Level, NewEvent, Result, Store, events, jobs, lease};

/// A beat that does not change for so long is a dead worker's.
pub const LEASE_TIMEOUT: Duration = Duration::from_secs(15);

/// After so many lost workers a job fails.
pub const MAX_ATTEMPTS: i64 = 3;

/// The most that one tick counts: a watcher that slept itself (a stopped process, a suspended
/// machine) saw nothing of the beats in that time and must not condemn the workers, which may have
/// slept with it.
const LONGEST_TICK: Duration = Duration::from_secs(5);

/// A lease that the watcher took away.
#[derive(Debug, Clone, PartialEq)]
pub struct LostLease {
    /// The job as it stands now: queued, paused or failed.
    pub job: JobRow,
    /// The worker that had it.
    pub owner: String,
}

/// A lease whose worker gives no sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilentLease {
    /// The job.
    pub job: JobId,
    /// The epoch of the hold.
    pub epoch: i64,
    /// The worker.
    pub owner: String,
}

/// Watches the beats of all leases in memory.
#[derive(Debug)]
pub struct LeaseWatcher {
    store: Store,
    timeout: Duration,
    last_tick: Option<Duration>,
    seen: HashMap<JobId, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    epoch: i64,
    beat: i64,
    silent: Duration,
}

impl LeaseWatcher {
    /// A watcher that has seen nothing yet: every lease has the full time from its first tick on.
    pub fn new(store: Store) -> Self {
        Self { store, timeout: LEASE_TIMEOUT, last_tick: None, seen: HashMap::new() }
    }

    /// The same with another patience than [`LEASE_TIMEOUT`].
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Looks at every lease once and takes away those that were silent for too long.
    pub async fn tick(&mut self) -> Result<Vec<LostLease>> {
        let mut taken = Vec::new();
        for silent in self.silent().await? {
            taken.extend(self.take(silent).await?);
        }
        Ok(taken)
    }

    /// The leases that were silent for too long. Only reads: a worker that stands still inside a transaction holds the one
    /// write lock, and must be found all the same.
    pub async fn silent(&mut self) -> Result<Vec<SilentLease>> {
        let rows: Vec<(String, i64, i64, String)> =
            sqlx::query_as("SELECT id, lease_epoch, lease_beat, lease_owner FROM jobs WHERE lease_owner IS NOT NULL ORDER BY id")
                .fetch_all(self.store.reader())
                .await?;
        let now = self.store.clock().monotonic();
        let passed = self.last_tick.map_or(Duration::ZERO, |last| now.saturating_sub(last)).min(LONGEST_TICK);
        self.last_tick = Some(now);

        let mut still = HashMap::with_capacity(rows.len());
        let mut found = Vec::new();
        for (id, epoch, beat, owner) in rows {
            let job: JobId = id.parse()?;
            let silent = match self.seen.get(&job) {
                Some(seen) if seen.epoch == epoch && seen.beat == beat => seen.silent + passed,
                _ => Duration::ZERO,
            };
            if silent >= self.timeout {
                found.push(SilentLease { job, epoch, owner });
            }
            still.insert(job, Seen { epoch, beat, silent });
        }
        self.seen = still;
        Ok(found)
    }

    /// Takes a silent lease away; `None` when it had changed hands meanwhile.
    pub async fn take(&self, silent: SilentLease) -> Result<Option<LostLease>> {
        let SilentLease { job, epoch, owner } = silent;
        let reason = format!("the worker {owner} gave no sign of life for {} s", self.timeout.as_secs());
        let job = self.store.lease_lost(job, epoch, &reason).await?;
        Ok(job.map(|job| LostLease { job, owner }))
    }
}

impl Store {
    /// Takes a lease from a worker that is gone: back in line, and failed after the third time.
    /// `None` when the lease had changed hands already.
    pub async fn lease_lost(&self, id: JobId, epoch: i64, reason: &str) -> Result<Option<JobRow>> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = jobs::load(&mut tx, id).await?;
        if job.lease_epoch != epoch || job.lease_owner.is_none() {
            return Ok(None);
        }
        let job = self.lose(&mut tx, &job, reason).await?;
        tx.commit().await?;
        Ok(Some(job))
    }

    /// The same for whatever a worker had, when its process is known to have ended; the reason says
    /// how.
    pub async fn owner_died(&self, owner: &str, reason: &str) -> Result<Vec<JobRow>> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let rows = sqlx::query("SELECT * FROM jobs WHERE lease_owner = $1 ORDER BY id").bind(owner).fetch_all(&mut *tx).await?;
        let mut lost = Vec::new();
        for row in &rows {
            let job = JobRow::read(row)?;
            lost.push(self.lose(&mut tx, &job, reason).await?);
        }
        tx.commit().await?;
        Ok(lost)
    }

    /// At the server's start: its former workers ended with it, which was no fault of their jobs.
    pub async fn release_all_of(&self, owner_prefix: &str) -> Result<Vec<JobRow>> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        // Not LIKE: it ignores case on SQLite alone, and a prefix may contain its wildcards.
        let rows = sqlx::query("SELECT * FROM jobs WHERE lease_owner IS NOT NULL AND substr(lease_owner, 1, length($1)) = $1 ORDER BY id")
            .bind(owner_prefix)
            .fetch_all(&mut *tx)
            .await?;
        let mut released = Vec::new();
        for row in &rows {
            let job = JobRow::read(row)?;
            let to = lease::state_without_worker(&job);
            released.push(lease::end_lease(&mut tx, &job, to, None, now).await?);
            let event = NewEvent::warn("The server was restarted; the job continues from its last checkpoint").with(json!({"state": to}));
            events::append(&mut tx, &**self.clock(), job.id, &[event]).await?;
        }
        tx.commit().await?;
        Ok(released)
    }

    async fn lose(&self, tx: &mut crate::db::Tx<'_>, job: &JobRow, reason: &str) -> Result<JobRow> {
        let mut reasons = job.attempt_reasons.clone();
        reasons.push(reason.to_owned());
        let attempts = job.attempts + 1;
        let error =
            (attempts >= MAX_ATTEMPTS).then(|| JobError { code: "worker_lost".to_owned(), message: all_reasons(&reasons), param: None });
        let to = if error.is_some() { JobState::Failed } else { lease::state_without_worker(job) };
        sqlx::query("UPDATE jobs SET attempts = $1, attempt_reasons = $2 WHERE id = $3")
            .bind(attempts)
            .bind(to_json("jobs", "attempt_reasons", &reasons)?)
            .bind(job.id.to_string())
            .execute(&mut **tx)
            .await?;
        let ended = lease::end_lease(tx, job, to, error.as_ref(), self.now()).await?;
        let data = json!({"state": to, "attempt": attempts, "reason": reason});
        let event = match &error {
            Some(error) => NewEvent::new(Level::Error, format!("Job failed: {}", error.message)),
            None => NewEvent::warn(format!(
                "The worker was lost (attempt {attempts} of {MAX_ATTEMPTS}): {reason}. The job continues from its last checkpoint"
            )),
        };
        events::append(tx, &**self.clock(), job.id, &[event.with(data)]).await?;
        Ok(ended)
    }
}

fn all_reasons(reasons: &[String]) -> String {
    let list: Vec<String> = reasons.iter().enumerate().map(|(i, reason)| format!("{}. {reason}", i + 1)).collect();
    format!("the worker was lost {} times: {}", reasons.len(), list.join("; "))
}
