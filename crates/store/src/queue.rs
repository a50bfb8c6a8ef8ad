//! The queue: which job a worker gets next, and what a waiting job is told.
//!
//! Called by workers (claim) and by the API (place). The one thing to know: choosing, the memory
//! budget and taking are one SQL statement, so any number of claimers in any number of processes
//! get each job once.

use crate::{JobId, JobRow, LeaseToken, Result, Store};

/// A worker that asks for a job.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The worker's name, unique among all workers; the server's own ones share a prefix.
    pub owner: String,
    /// The memory for all jobs together, `None` for no limit. What leased jobs were estimated at is
    /// subtracted in the statement.
    pub memory_budget: Option<i64>,
}

/// Where a job stands in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// 1 for the next one.
    pub position: i64,
    /// How many wait in all, this one included.
    pub waiting: i64,
}

impl Store {
    /// Takes the first job in order of priority, then age, that fits into memory.
    pub async fn claim(&self, claim: &Claim) -> Result<Option<(LeaseToken, JobRow)>> {
        // Idle workers ask all the time: a read keeps them off the write lock.
        let waiting: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM jobs WHERE state IN ('validating_files', 'queued') AND lease_owner IS NULL")
                .fetch_one(self.reader())
                .await?;
        if waiting == 0 {
            return Ok(None);
        }
        let budget = claim.memory_budget.unwrap_or(i64::MAX);
        let now = self.now();
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let row = sqlx::query(
            "UPDATE jobs SET lease_owner = $1, lease_epoch = lease_epoch + 1, lease_beat = 0, control = 'none', \
             wait_reason = NULL, updated_at = $2 \
             WHERE id = (SELECT id FROM jobs \
                 WHERE state IN ('validating_files', 'queued') AND lease_owner IS NULL \
                 AND estimate_bytes <= $3 - (SELECT CAST(COALESCE(SUM(estimate_bytes), 0) AS BIGINT) FROM jobs \
                     WHERE lease_owner IS NOT NULL) \
                 ORDER BY priority DESC, created_at, id LIMIT 1) \
             AND state IN ('validating_files', 'queued') AND lease_owner IS NULL RETURNING *",
        )
        .bind(&claim.owner)
        .bind(now)
        .bind(budget)
        .fetch_optional(&mut *tx)
        .await?;
        if claim.memory_budget.is_some() {
            // Whoever does not fit now is told why it waits, and whoever fits again no longer is.
            sqlx::query(
                "UPDATE jobs SET wait_reason = $1 \
                 WHERE state IN ('validating_files', 'queued') AND lease_owner IS NULL AND wait_reason IS NULL \
                 AND estimate_bytes > $2 - (SELECT CAST(COALESCE(SUM(estimate_bytes), 0) AS BIGINT) FROM jobs \
                     WHERE lease_owner IS NOT NULL)",
            )
            .bind(MEMORY)
            .bind(budget)
            .execute(&mut *tx)
            .await?;
            sqlx::query(
                "UPDATE jobs SET wait_reason = NULL \
                 WHERE state IN ('validating_files', 'queued') AND lease_owner IS NULL AND wait_reason IS NOT NULL \
                 AND estimate_bytes <= $1 - (SELECT CAST(COALESCE(SUM(estimate_bytes), 0) AS BIGINT) FROM jobs \
                     WHERE lease_owner IS NOT NULL)",
            )
            .bind(budget)
            .execute(&mut *tx)
            .await?;
        }
        let taken = row.as_ref().map(JobRow::read).transpose()?;
        tx.commit().await?;
        Ok(taken.map(|job| {
            let lease = LeaseToken { job: job.id, epoch: job.lease_epoch, owner: claim.owner.clone() };
            (lease, job)
        }))
    }

    /// The place of a waiting job; `None` for one that does not wait for a worker.
    pub async fn queue_position(&self, id: JobId) -> Result<Option<QueuePlace>> {
        let place: Option<(i64, i64)> = sqlx::query_as(
            "SELECT (SELECT COUNT(*) FROM jobs w WHERE w.state IN ('validating_files', 'queued') \
                 AND w.lease_owner IS NULL AND (w.priority > me.priority OR (w.priority = me.priority \
                     AND (w.created_at, w.id) < (me.created_at, me.id)))), \
                 (SELECT COUNT(*) FROM jobs w WHERE w.state IN ('validating_files', 'queued') AND w.lease_owner IS NULL) \
             FROM jobs me WHERE me.id = $1 AND me.state IN ('validating_files', 'queued') AND me.lease_owner IS NULL",
        )
        .bind(id.to_string())
        .fetch_optional(self.reader())
        .await?;
        Ok(place.map(|(before, waiting)| QueuePlace { position: before + 1, waiting }))
    }
}

/// Without numbers, so that it is written once and not whenever the free memory changes.
const MEMORY: &str = "waiting for memory: the job's estimate does not fit into what running jobs and loaded models leave";
