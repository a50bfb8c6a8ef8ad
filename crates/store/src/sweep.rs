//! Repairs at start-up what a crash left: blobs without rows, half-written files, forgotten staging
//! folders, old keys.
//!
//! Called by `serve` before it listens and by the tool that collects garbage. The one thing to
//! know: it needs the [`DataLock`], since an upload under way looks like garbage, and it spares
//! whatever names a job that a worker has right now.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use crate::blobs::blocking;
use crate::jobs::IDEMPOTENCY_MS;
use crate::{CheckpointRow, DataLock, Result, Store, StoreError};

/// What a sweep found and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Blobs that no row speaks of.
    pub orphan_blobs: u64,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Files under temporary names, which a crash left half written.
    pub half_written: u64,
    /// Staging folders of processes that are gone.
    pub staging_folders: u64,
    /// Idempotency keys older than 24 hours.
    pub expired_keys: u64,
    /// Blob keys that rows speak of and that are not there: not repaired, but worth a warning.
    pub missing: Vec<String>,
}

/// What the rows speak of.
struct Known {
    /// Keys of single blobs.
    blobs: BTreeSet<String>,
    /// Keys of folders.
    folders: BTreeSet<String>,
    /// The ids of jobs that a worker has.
    leased: HashSet<String>,
}

impl Known {
    fn is_spared(&self, path: &str) -> bool {
        self.leased.iter().any(|job| path.contains(job.as_str()))
    }

    fn has(&self, key: &str) -> bool {
        let in_folder = key.match_indices('/').any(|(at, _)| self.folders.contains(&key[..at]));
        in_folder || self.blobs.contains(key)
    }
}

impl Store {
    /// See the file's head.
    pub async fn sweep(&self, _lock: &DataLock) -> Result<SweepReport> {
        let mut report = SweepReport { expired_keys: self.expire_idempotency_keys().await?, ..Default::default() };
        // Blobs are listed before rows are read, so one that gets its row in between is seen with
        // it.
        let found = self.blobs().list_sizes("").await?;
        let known = self.known().await?;
        for (key, size) in &found {
            if !known.has(key) && !known.is_spared(key) {
                self.blobs().delete(key).await?;
                report.orphan_blobs += 1;
                report.orphan_bytes += size;
            }
        }
        report.missing.extend(known.blobs.iter().filter(|key| !found.contains_key(*key)).cloned());
        let full: BTreeSet<&str> = found.keys().flat_map(|key| key.match_indices('/').map(|(at, _)| &key[..at])).collect();
        report.missing.extend(known.folders.iter().filter(|folder| !full.contains(folder.as_str())).cloned());
        for row in self.all_checkpoints().await? {
            if !known.is_spared(&row.folder_key) {
                self.remove_expired_files(&row).await?;
            }
        }
        let root = self.blobs().root().to_path_buf();
        let staging = self.blobs().staging_root().to_path_buf();
        let (half_written, staging_folders) = blocking(&root.clone(), move || {
            let half_written = remove_half_written(&root, &known)?;
            Ok((half_written, remove_staging(&staging, &known)?))
        })
        .await?;
        Ok(SweepReport { half_written, staging_folders, ..report })
    }

    async fn expire_idempotency_keys(&self) -> Result<u64> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let done =
            sqlx::query("DELETE FROM idempotency WHERE created_at <= $1").bind(self.now() - IDEMPOTENCY_MS).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    async fn known(&self) -> Result<Known> {
        let blobs: Vec<String> = sqlx::query_scalar(
            "SELECT blob_key FROM files UNION SELECT predictions_key FROM job_reports WHERE predictions_key IS NOT NULL",
        )
        .fetch_all(self.reader())
        .await?;
        let folders: Vec<String> = sqlx::query_scalar(
            "SELECT folder_key FROM models UNION SELECT folder_key FROM adapters WHERE folder_key IS NOT NULL \
             UNION SELECT folder_key FROM checkpoints WHERE has_model OR has_state",
        )
        .fetch_all(self.reader())
        .await?;
        let leased: Vec<String> = sqlx::query_scalar("SELECT id FROM jobs WHERE lease_owner IS NOT NULL").fetch_all(self.reader()).await?;
        Ok(Known { blobs: blobs.into_iter().collect(), folders: folders.into_iter().collect(), leased: leased.into_iter().collect() })
    }

    async fn all_checkpoints(&self) -> Result<Vec<CheckpointRow>> {
        let rows = sqlx::query("SELECT * FROM checkpoints WHERE NOT (has_model AND has_state) AND (has_model OR has_state)")
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(CheckpointRow::read).collect()
    }
}

/// The object store writes `name#1` and renames it to `name`.
fn is_half_written(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Removes half-written files, and folders that are empty by now.
fn remove_half_written(root: &Path, known: &Known) -> Result<u64> {
    let mut removed = 0;
    let mut folders: Vec<PathBuf> = vec![root.to_path_buf()];
    let mut next = 0;
    while next < folders.len() {
        let folder = folders[next].clone();
        next += 1;
        for entry in std::fs::read_dir(&folder).map_err(|source| StoreError::io(&folder, source))? {
            let entry = entry.map_err(|source| StoreError::io(&folder, source))?;
            let path = entry.path();
            if known.is_spared(&path.to_string_lossy()) {
                continue;
            }
            let kind = entry.file_type().map_err(|source| StoreError::io(&path, source))?;
            if kind.is_dir() {
                folders.push(path);
            } else if is_half_written(&entry.file_name().to_string_lossy()) {
                std::fs::remove_file(&path).map_err(|source| StoreError::io(&path, source))?;
                removed += 1;
            }
        }
    }
    // Deepest first. A folder that is not empty refuses, which is the test.
    for folder in folders.iter().skip(1).rev() {
        if let Err(source) = std::fs::remove_dir(folder)
            && source.kind() != std::io::ErrorKind::DirectoryNotEmpty
        {
            return Err(StoreError::io(folder, source));
        }
    }
    Ok(removed)
}

fn remove_staging(staging: &Path, known: &Known) -> Result<u64> {
    let mut removed = 0;
    for entry in std::fs::read_dir(staging).map_err(|source| StoreError::io(staging, source))? {
        let path = entry.map_err(|source| StoreError::io(staging, source))?.path();
        if known.is_spared(&path.to_string_lossy()) {
            continue;
        }
        let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        gone.map_err(|source| StoreError::io(&path, source))?;
        removed += 1;
    }
    Ok(removed)
}
