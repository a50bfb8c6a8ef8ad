//! What a worker may do to the job that it holds: beat, report, let go, fail.
//!
//! Called by workers only. The one thing to know: every statement says `lease_epoch = …` and the
//! owner, so a worker that lost its lease (stalled, cancelled, replaced) changes nothing and learns
//! it as [`StoreError::Fenced`].

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::SqliteConnection;

use crate::row::to_json;
use crate::{JobError, JobId, JobRow, JobState, NewEvent, Result, Store, StoreError, events};

/// A worker's hold on a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseToken {
    /// The job.
    pub job: JobId,
    /// The epoch of this hold.
    pub epoch: i64,
    /// The worker.
    pub owner: String,
}

/// What the job's user asks of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    None,
    /// Write a checkpoint, then call [`Store::paused`].
    Pause,
}

/// How far a job is. What is `None` stays as it was.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// What the worker does just now, in a few words.
    pub phase: Option<String>,
    /// Optimiser steps done.
    pub step: Option<i64>,
    /// Optimiser steps in all.
    pub total_steps: Option<i64>,
    /// Epochs done, as a fraction.
    pub epoch: Option<f64>,
    /// The time still needed.
    pub eta_ms: Option<i64>,
    /// Tokens trained on so far, repeated ones included.
    pub trained_tokens: Option<i64>,
}

impl Store {
    /// Shows that the worker lives; call it every second, on its own task. Uses a connection of its
    /// own.
    pub async fn heartbeat(&self, lease: &LeaseToken) -> Result<Control> {
        let mut conn = self.beater().await;
        let control: Option<String> = sqlx::query_scalar(
            "UPDATE jobs SET lease_beat = lease_beat + 1 \
             WHERE id = $1 AND lease_epoch = $2 AND lease_owner = $3 RETURNING control",
        )
        .bind(lease.job.to_string())
        .bind(lease.epoch)
        .bind(&lease.owner)
        .fetch_optional(&mut *conn)
        .await?;
        read_control(control, lease)
    }

    /// Whether the worker may go on; cheap enough for every 100 ms.
    pub async fn control(&self, lease: &LeaseToken) -> Result<Control> {
        let control: Option<String> =
            sqlx::query_scalar("SELECT control FROM jobs WHERE id = $1 AND lease_epoch = $2 AND lease_owner = $3")
                .bind(lease.job.to_string())
                .bind(lease.epoch)
                .bind(&lease.owner)
                .fetch_optional(self.reader())
                .await?;
        read_control(control, lease)
    }

    /// Reports how far the job is.
    pub async fn progress(&self, lease: &LeaseToken, progress: &Progress) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let done = sqlx::query(
            "UPDATE jobs SET phase = COALESCE($1, phase), step = COALESCE($2, step), \
             total_steps = COALESCE($3, total_steps), epoch = COALESCE($4, epoch), eta_ms = COALESCE($5, eta_ms), \
             trained_tokens = COALESCE($6, trained_tokens), updated_at = $7 \
             WHERE id = $8 AND lease_epoch = $9 AND lease_owner = $10",
        )
        .bind(&progress.phase)
        .bind(progress.step)
        .bind(progress.total_steps)
        .bind(progress.epoch)
        .bind(progress.eta_ms)
        .bind(progress.trained_tokens)
        .bind(self.now())
        .bind(lease.job.to_string())
        .bind(lease.epoch)
        .bind(&lease.owner)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(fenced(lease));
        }
        tx.commit().await?;
        Ok(())
    }

    /// Stores what the worker resolved with the model at hand, so that the job's object shows it.
    pub async fn update_spec(&self, lease: &LeaseToken, spec: &Value, estimate_bytes: Option<i64>) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        hold(&mut tx, lease, self.now()).await?;
        sqlx::query("UPDATE jobs SET spec = $1, estimate_bytes = COALESCE($2, estimate_bytes) WHERE id = $3")
            .bind(to_json("jobs", "spec", spec)?)
            .bind(estimate_bytes)
            .bind(lease.job.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// The data is valid and training begins (or goes on).
    pub async fn mark_running(&self, lease: &LeaseToken) -> Result<JobRow> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = hold(&mut tx, lease, now).await?;
        if job.state == JobState::Running {
            return Ok(job);
        }
        sqlx::query("UPDATE jobs SET state = 'running', started_at = COALESCE(started_at, $1) WHERE id = $2")
            .bind(now)
            .bind(lease.job.to_string())
            .execute(&mut *tx)
            .await?;
        let mut told = Vec::new();
        if job.state == JobState::ValidatingFiles {
            told.push(NewEvent::info("Files validated, moving job to queued state").with(json!({"state": "queued"})));
        }
        let data = json!({"state": "running", "worker": lease.owner, "from_step": job.step});
        told.push(NewEvent::info("Fine-tuning job started").with(data));
        events::append(&mut tx, &**self.clock(), lease.job, &told).await?;
        let job = crate::jobs::load(&mut tx, lease.job).await?;
        tx.commit().await?;
        Ok(job)
    }

    /// The worker wrote its checkpoint and stops, as its user asked.
    pub async fn paused(&self, lease: &LeaseToken) -> Result<JobRow> {
        let event =
            |job: &JobRow| NewEvent::info(format!("Job paused at step {}", job.step)).with(json!({"state": "paused", "step": job.step}));
        self.let_go(lease, |_| JobState::Paused, None, event).await
    }

    /// The worker must end (SIGTERM): the job waits for the next one, and this was no failed
    /// attempt.
    pub async fn release(&self, lease: &LeaseToken) -> Result<JobRow> {
        let event = |job: &JobRow| {
            let message = format!("The worker stops; the job continues from step {} with the next one", job.step);
            NewEvent::info(message).with(json!({"state": state_without_worker(job), "step": job.step}))
        };
        self.let_go(lease, state_without_worker, None, event).await
    }

    /// The job cannot go on; trying again would end the same way.
    pub async fn fail(&self, lease: &LeaseToken, error: &JobError) -> Result<JobRow> {
        let event = |_: &JobRow| {
            let mut event = NewEvent::info(format!("Job failed: {}", error.message));
            event.level = events::Level::Error;
            event.with(json!({"state": "failed", "error": error}))
        };
        self.let_go(lease, |_| JobState::Failed, Some(error), event).await
    }

    async fn let_go(
        &self,
        lease: &LeaseToken,
        to: impl Fn(&JobRow) -> JobState,
        error: Option<&JobError>,
        event: impl Fn(&JobRow) -> NewEvent,
    ) -> Result<JobRow> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = hold(&mut tx, lease, now).await?;
        let ended = end_lease(&mut tx, &job, to(&job), error, now).await?;
        events::append(&mut tx, &**self.clock(), lease.job, &[event(&job)]).await?;
        tx.commit().await?;
        Ok(ended)
    }
}

fn fenced(lease: &LeaseToken) -> StoreError {
    StoreError::Fenced { job: lease.job, epoch: lease.epoch }
}

fn read_control(control: Option<String>, lease: &LeaseToken) -> Result<Control> {
    match control.as_deref() {
        None => Err(fenced(lease)),
        Some("pause") => Ok(Control::Pause),
        Some(_) => Ok(Control::None),
    }
}

/// Where a job goes that loses its worker: back in line, or to rest if its user had asked for a
/// pause meanwhile.
pub(crate) fn state_without_worker(job: &JobRow) -> JobState {
    match job.state {
        _ if job.pausing => JobState::Paused,
        JobState::ValidatingFiles => JobState::ValidatingFiles,
        _ => JobState::Queued,
    }
}

/// The fence inside a transaction: locks and reads the job if the lease holds.
pub(crate) async fn hold(conn: &mut SqliteConnection, lease: &LeaseToken, now: i64) -> Result<JobRow> {
    let row = sqlx::query("UPDATE jobs SET updated_at = $1 WHERE id = $2 AND lease_epoch = $3 AND lease_owner = $4 RETURNING *")
        .bind(now)
        .bind(lease.job.to_string())
        .bind(lease.epoch)
        .bind(&lease.owner)
        .fetch_optional(conn)
        .await?
        .ok_or_else(|| fenced(lease))?;
    JobRow::read(&row)
}

/// Takes the lease away and puts the job into another state; the epoch grows, so the worker is
/// fenced from here on.
pub(crate) async fn end_lease(
    conn: &mut SqliteConnection,
    job: &JobRow,
    to: JobState,
    error: Option<&JobError>,
    now: i64,
) -> Result<JobRow> {
    let row = sqlx::query(
        "UPDATE jobs SET state = $1, lease_owner = NULL, lease_epoch = lease_epoch + 1, lease_beat = 0, control = 'none', \
         error = $2, finished_at = $3, wait_reason = NULL, phase = NULL, eta_ms = NULL, updated_at = $4 \
         WHERE id = $5 RETURNING *",
    )
    .bind(to.as_str())
    .bind(error.map(|error| to_json("jobs", "error", error)).transpose()?)
    .bind(to.is_final().then_some(now))
    .bind(now)
    .bind(job.id.to_string())
    .fetch_one(conn)
    .await?;
    JobRow::read(&row)
}
