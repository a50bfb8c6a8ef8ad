//! How busy serving is, on a page of memory that the server shares with the workers of its machine.
//!
//! The server counts its passes there; a training job looks between its micro-batches and takes fewer threads while it is asked
//! (`tunesmith::worker::share` has the rule). Nobody waits for anybody, and a worker that finds no page trains on all its threads.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the file: a page, of which two words are used.
const PAGE: u64 = 4096;
/// Passes that run now.
const RUNNING: usize = 0;
/// Passes that were ever begun.
const BEGUN: usize = 1;

/// The page, mapped.
pub struct LoadPage {
    map: MmapRaw,
}

/// What the page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Passes that run now; after a server that was killed it may stay above zero.
    pub running: u64,
    /// Passes that were ever begun.
    pub begun: u64,
}

/// A pass that runs until this is dropped.
pub struct Pass<'a>(&'a LoadPage);

impl LoadPage {
    /// Maps the page in the file `path`, which is made if it is not there.
    ///
    /// # Errors
    /// If the file cannot be made, filled or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < PAGE {
            // Written, and no hole: on a full disk this is an error, where the first write to a mapped hole would be a signal.
            file.write_all(&[0; PAGE as usize])?;
        }
        Ok(Self { map: MmapOptions::new().len(PAGE as usize).map_raw(&file)? })
    }

    /// Forgets the passes of a server before this one.
    pub fn clear(&self) {
        self.word(RUNNING).store(0, Ordering::Relaxed);
    }

    /// Counts a pass.
    pub fn pass(&self) -> Pass<'_> {
        self.word(RUNNING).fetch_add(1, Ordering::Relaxed);
        self.word(BEGUN).fetch_add(1, Ordering::Relaxed);
        Pass(self)
    }

    /// What the page says now.
    pub fn read(&self) -> Load {
        Load { running: self.word(RUNNING).load(Ordering::Relaxed), begun: self.word(BEGUN).load(Ordering::Relaxed) }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the map is PAGE bytes long, aligned to a page, writable, and lives as long as `self`; every process reads and
        // writes these words as atomics only. The file is ours and is never shortened.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.word(RUNNING).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_disk_is_an_error() {
        // The device that has no room.
        let full = Path::new("/dev/full");
        if full.exists() {
            assert!(LoadPage::open(full).is_err());
        }
    }

    #[test]
    fn two_maps_of_a_page_see_each_other() {
        let path = std::env::temp_dir().join(format!("tunesmith-ops-load-{}", std::process::id()));
        let (server, worker) = (LoadPage::open(&path).unwrap(), LoadPage::open(&path).unwrap());
        assert_eq!(worker.read(), Load { running: 0, begun: 0 });
        let (first, second) = (server.pass(), server.pass());
        assert_eq!(worker.read(), Load { running: 2, begun: 2 });
        drop(first);
        assert_eq!(worker.read(), Load { running: 1, begun: 2 });
        // A server that was killed takes nothing back.
        std::mem::forget(second);
        LoadPage::open(&path).unwrap().clear();
        assert_eq!(worker.read(), Load { running: 0, begun: 2 });
        std::fs::remove_file(&path).unwrap();
    }
}
