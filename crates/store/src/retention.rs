//! Which checkpoints are kept: state for the last two and the best, model files for the last
//! `save_total_limit` and the best.
//!
//! Called by workers after each checkpoint. The one thing to know: rows are marked first and files
//! removed after, so what a crash leaves between is unmarked files, which the sweep removes, never
//! a row that promises files that are gone.

use std::collections::HashSet;

use crate::{CheckpointId, CheckpointRow, Keys, LeaseToken, Result, Store, lease};

/// For how many of the last checkpoints the optimiser's state is kept.
const STATES_KEPT: usize = 2;

impl Store {
    /// Expires what is no longer kept and answers the rows that changed.
    pub async fn retain_checkpoints(&self, lease: &LeaseToken, save_total_limit: usize) -> Result<Vec<CheckpointRow>> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        lease::hold(&mut tx, lease, self.now()).await?;
        let rows = sqlx::query("SELECT * FROM checkpoints WHERE job_id = $1 ORDER BY step")
            .bind(lease.job.to_string())
            .fetch_all(&mut *tx)
            .await?;
        let rows = rows.iter().map(CheckpointRow::read).collect::<Result<Vec<_>>>()?;
        let mut changed = Vec::new();
        for row in expire(&rows, save_total_limit) {
            sqlx::query("UPDATE checkpoints SET has_model = $1, has_state = $2 WHERE id = $3")
                .bind(row.has_model)
                .bind(row.has_state)
                .bind(row.id.to_string())
                .execute(&mut *tx)
                .await?;
            changed.push(row);
        }
        tx.commit().await?;
        drop(writer);
        for row in &changed {
            self.remove_expired_files(row).await?;
        }
        Ok(changed)
    }

    /// Removes the files that a row no longer promises; the sweep calls it too.
    pub(crate) async fn remove_expired_files(&self, row: &CheckpointRow) -> Result<()> {
        if !row.has_model && !row.has_state {
            self.blobs().delete_prefix(&row.folder_key).await?;
            return Ok(());
        }
        for key in self.blobs().list(&row.folder_key).await? {
            let name = key.rsplit('/').next().unwrap_or(&key);
            let kept = if Keys::STATE_FILES.contains(&name) { row.has_state } else { row.has_model };
            if !kept {
                self.blobs().delete(&key).await?;
            }
        }
        Ok(())
    }
}

/// The rows (ordered by step) whose flags change, with their new flags.
fn expire(rows: &[CheckpointRow], save_total_limit: usize) -> Vec<CheckpointRow> {
    let last = |count: usize| -> HashSet<CheckpointId> {
        let best = rows.iter().filter(|row| row.is_best);
        rows.iter().rev().take(count).chain(best).map(|row| row.id).collect()
    };
    let states = last(STATES_KEPT);
    // The newest one stays whole whatever the limit, or a job could not resume.
    let models = last(save_total_limit.max(1));
    let mut changed = Vec::new();
    for row in rows {
        let has_model = row.has_model && models.contains(&row.id);
        let has_state = row.has_state && states.contains(&row.id);
        if (has_model, has_state) != (row.has_model, row.has_state) {
            changed.push(CheckpointRow { has_model, has_state, ..row.clone() });
        }
    }
    changed
}
