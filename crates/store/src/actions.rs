//! What users do to jobs: pause, resume, cancel.
//!
//! Called by the jobs API. The one thing to know: an action that leads to the state that the job is
//! in already is answered with the job; any other that the state does not allow is
//! [`StoreError::InvalidState`] and changes nothing.

use serde_json::json;

use crate::{JobId, JobRow, JobState, NewEvent, Result, Store, StoreError, events, files, jobs, lease};

impl Store {
    /// A waiting job rests at once; one that a worker has is `pausing` until the worker wrote a
    /// checkpoint.
    pub async fn pause(&self, id: JobId) -> Result<JobRow> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = jobs::load(&mut tx, id).await?;
        let (job, event) = match (job.state, &job.lease_owner) {
            (JobState::Paused, _) => return Ok(job),
            (JobState::ValidatingFiles | JobState::Queued, None) => {
                let paused = lease::end_lease(&mut tx, &job, JobState::Paused, None, now).await?;
                (paused, NewEvent::info("Job paused").with(json!({"state": "paused", "step": job.step})))
            }
            (JobState::ValidatingFiles | JobState::Queued | JobState::Running, _) => {
                if job.pausing {
                    return Ok(job);
                }
                sqlx::query("UPDATE jobs SET control = 'pause', updated_at = $1 WHERE id = $2")
                    .bind(now)
                    .bind(id.to_string())
                    .execute(&mut *tx)
                    .await?;
                let event = NewEvent::info("Pause requested; the worker writes a checkpoint first")
                    .with(json!({"state": job.state, "pausing": true}));
                (jobs::load(&mut tx, id).await?, event)
            }
            (JobState::Succeeded | JobState::Failed | JobState::Cancelled, _) => {
                return Err(StoreError::InvalidState { id, action: "paused", state: job.state });
            }
        };
        events::append(&mut tx, &**self.clock(), id, &[event]).await?;
        tx.commit().await?;
        Ok(job)
    }

    /// A paused or failed job waits again, with three new attempts, and goes on from its last
    /// checkpoint.
    pub async fn resume(&self, id: JobId) -> Result<JobRow> {
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = jobs::load(&mut tx, id).await?;
        match job.state {
            JobState::Queued => return Ok(job),
            JobState::Paused | JobState::Failed => {}
            state => {
                return Err(StoreError::InvalidState { id, action: "resumed", state });
            }
        }
        // A failed job does not keep its files from being deleted.
        for file in [Some(job.training_file), job.validation_file].into_iter().flatten() {
            files::load(&mut tx, file).await?;
        }
        lease::end_lease(&mut tx, &job, JobState::Queued, None, now).await?;
        sqlx::query("UPDATE jobs SET attempts = 0, attempt_reasons = '[]' WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
        let event = NewEvent::info(format!("Job resumed from step {}", job.step)).with(json!({"state": "queued", "step": job.step}));
        events::append(&mut tx, &**self.clock(), id, &[event]).await?;
        let job = jobs::load(&mut tx, id).await?;
        tx.commit().await?;
        Ok(job)
    }

    /// Ends an unfinished job at once; a worker that has it is fenced and stops within a step.
    pub async fn cancel(&self, id: JobId) -> Result<JobRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let job = jobs::load(&mut tx, id).await?;
        match job.state {
            JobState::Cancelled => return Ok(job),
            JobState::Succeeded | JobState::Failed => {
                return Err(StoreError::InvalidState { id, action: "cancelled", state: job.state });
            }
            JobState::ValidatingFiles | JobState::Queued | JobState::Running | JobState::Paused => {}
        }
        let cancelled = lease::end_lease(&mut tx, &job, JobState::Cancelled, None, self.now()).await?;
        let event = NewEvent::info(format!("Job cancelled at step {}", job.step)).with(json!({"state": "cancelled", "step": job.step}));
        events::append(&mut tx, &**self.clock(), id, &[event]).await?;
        tx.commit().await?;
        Ok(cancelled)
    }
}
