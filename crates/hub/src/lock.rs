//! One download at a time per repository or package, across processes.
//!
//! The lock is the operating system's (`flock` on Linux, as Python's `filelock` uses), so a killed process frees it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use crate::error::HubError;

/// How often a waiting process looks again. Polling keeps the wait cancellable, which a blocking lock is not.
const POLL: Duration = Duration::from_millis(50);

/// Waits for the lock at `path`, making the file and its folders. Freed when the answer is dropped.
pub(crate) async fn acquire(path: &Path) -> Result<File, HubError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(HubError::io(path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(POLL).await,
            // Some network file systems have no locks. Two pulls at once then cost bytes, not correctness: every
            // file is checked before it gets its name.
            Err(TryLockError::Error(why)) => {
                tracing::warn!(path = %path.display(), %why, "no file locks here");
                return Ok(file);
            }
        }
    }
}
