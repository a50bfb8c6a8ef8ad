//! What training measured: the history of logged entries, and one report per job at its end.
//!
//! Written by workers, read by `…/metrics`. The one thing to know: a resumed job calls
//! [`Store::truncate_metrics_after`] with its checkpoint's step first, so that steps which are
//! trained again do not stand twice.

use serde_json::Value;
use sqlx::{QueryBuilder, Sqlite};

use crate::row::{Cols, to_json};
use crate::{JobId, LeaseToken, Result, Store, events, lease};

/// An entry to append.
#[derive(Debug, Clone)]
pub struct NewMetric {
    /// The optimiser step.
    pub step: i64,
    /// The object, with the names of `trainer_state.json`.
    pub entry: Value,
}

/// An entry of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricEntry {
    /// Its place in the job's history.
    pub seq: i64,
    /// The optimiser step.
    pub step: i64,
    /// The object, with the names of `trainer_state.json`.
    pub entry: Value,
}

/// What is known at a job's end.
#[derive(Debug, Clone, PartialEq)]
pub struct JobReport {
    /// Confusion matrix, peak memory, counts of parameters, …
    pub report: Value,
    /// The blob of the evaluation's rows with their predictions.
    pub predictions_key: Option<String>,
}

impl Store {
    /// Appends entries, all or none.
    pub async fn append_metrics(&self, lease: &LeaseToken, entries: &[NewMetric]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        lease::hold(&mut tx, lease, self.now()).await?;
        let mut seq: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM metrics WHERE job_id = $1")
            .bind(lease.job.to_string())
            .fetch_one(&mut *tx)
            .await?;
        for part in entries.chunks(events::ROWS_A_STATEMENT) {
            let mut rows = Vec::with_capacity(part.len());
            for entry in part {
                seq += 1;
                rows.push((seq, entry.step, to_json("metrics", "entry", &entry.entry)?));
            }
            let mut insert: QueryBuilder<Sqlite> = QueryBuilder::new("INSERT INTO metrics (job_id, seq, step, entry) ");
            insert.push_values(rows, |mut row, (seq, step, entry)| {
                row.push_bind(lease.job.to_string()).push_bind(seq).push_bind(step).push_bind(entry);
            });
            insert.build().execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Removes the entries of steps after `step`, which a resumed job trains again.
    pub async fn truncate_metrics_after(&self, lease: &LeaseToken, step: i64) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        lease::hold(&mut tx, lease, self.now()).await?;
        sqlx::query("DELETE FROM metrics WHERE job_id = $1 AND step > $2").bind(lease.job.to_string()).bind(step).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// A job's history, oldest first.
    pub async fn metrics(&self, job: JobId) -> Result<Vec<MetricEntry>> {
        let rows = sqlx::query("SELECT seq, step, entry FROM metrics WHERE job_id = $1 ORDER BY seq")
            .bind(job.to_string())
            .fetch_all(self.reader())
            .await?;
        rows.iter()
            .map(|row| {
                let cols = Cols::new("metrics", row);
                Ok(MetricEntry { seq: cols.get("seq")?, step: cols.get("step")?, entry: cols.json("entry")? })
            })
            .collect()
    }

    /// Stores the report; a later one replaces it.
    pub async fn set_report(&self, lease: &LeaseToken, report: &JobReport) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        lease::hold(&mut tx, lease, self.now()).await?;
        write_report(&mut tx, lease.job, report).await?;
        tx.commit().await?;
        Ok(())
    }

    /// A job's report, once it has one.
    pub async fn report(&self, job: JobId) -> Result<Option<JobReport>> {
        let row = sqlx::query("SELECT report, predictions_key FROM job_reports WHERE job_id = $1")
            .bind(job.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.map(|row| {
            let cols = Cols::new("job_reports", &row);
            Ok(JobReport { report: cols.json("report")?, predictions_key: cols.get("predictions_key")? })
        })
        .transpose()
    }
}

pub(crate) async fn write_report(conn: &mut sqlx::SqliteConnection, job: JobId, report: &JobReport) -> Result<()> {
    sqlx::query(
        "INSERT INTO job_reports (job_id, report, predictions_key) VALUES ($1, $2, $3) \
         ON CONFLICT (job_id) DO UPDATE SET report = excluded.report, predictions_key = excluded.predictions_key",
    )
    .bind(job.to_string())
    .bind(to_json("job_reports", "report", &report.report)?)
    .bind(&report.predictions_key)
    .execute(conn)
    .await?;
    Ok(())
}
