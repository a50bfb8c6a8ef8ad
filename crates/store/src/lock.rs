//! One server per data folder: a lock that the kernel drops when its holder dies.
//!
//! Called by `serve` before anything else, and by tools that sweep. The one thing to know: the lock
//! is the file lock, never the file's existence, so a server that was killed leaves nothing to
//! clean up.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::{Result, StoreError};

/// Proof that this process alone serves the data folder; dropped, the folder is free.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the folder, or says which process has it.
    pub fn acquire(data_dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(data_dir).map_err(|source| StoreError::io(data_dir, source))?;
        let path = data_dir.join("serve.lock");
        let io = |source| StoreError::io(&path, source);
        // Not truncated at opening: until the lock is ours the text belongs to the other server.
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let read = (&file).take(32).read_to_string(&mut text);
                let pid = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(StoreError::Locked { folder: data_dir.to_path_buf(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        // Written over and then cut, never emptied first: on a full disk the block that the file
        // has is all there is.
        let text = format!("{}\n", std::process::id());
        file.rewind().and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.set_len(text.len() as u64)).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_server_is_told_who_holds_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let first = DataLock::acquire(&data).unwrap();
        let error = DataLock::acquire(&data).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DataLock::acquire(&data).unwrap();
    }
}
