//! How busy serving is, on a page of memory that the server shares with the workers of its machine.
//!
//! The server counts its passes there and adds up the time that they took; a training job looks between its micro-batches and takes
//! fewer threads while the server is busy (`tunesmith::worker::share` has the rule). Nobody waits for anybody, and a worker that finds no
//! page trains on all its threads.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of the file: a page, of which three words are used.
const PAGE: u64 = 4096;
/// Passes that run now.
const RUNNING: usize = 0;
/// Passes that were ever begun.
const BEGUN: usize = 1;
/// Microseconds that all finished passes took together.
const TAKEN: usize = 2;

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
    /// What all finished passes took together; those that run at a time count each for itself.
    pub taken: Duration,
}

/// A pass that runs until this is dropped.
pub struct Pass<'a> {
    page: &'a LoadPage,
    start: Instant,
}

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
        Pass { page: self, start: Instant::now() }
    }

    /// What the page says now.
    pub fn read(&self) -> Load {
        let read = |index| self.word(index).load(Ordering::Relaxed);
        Load { running: read(RUNNING), begun: read(BEGUN), taken: Duration::from_micros(read(TAKEN)) }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the map is PAGE bytes long, aligned to a page, writable, and lives as long as `self`; every process reads and
        // writes these words as atomics only. The file is ours and is never shortened.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(index)) }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.page.word(TAKEN).fetch_add(self.start.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.page.word(RUNNING).fetch_sub(1, Ordering::Relaxed);
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
        let counts = || {
            let Load { running, begun, .. } = worker.read();
            (running, begun)
        };
        assert_eq!(worker.read(), Load::default());
        let (first, second) = (server.pass(), server.pass());
        assert_eq!(counts(), (2, 2));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(worker.read().taken, Duration::ZERO);
        drop(first);
        assert_eq!(counts(), (1, 2));
        assert!(worker.read().taken >= Duration::from_millis(2));
        // A server that was killed takes nothing back.
        std::mem::forget(second);
        LoadPage::open(&path).unwrap().clear();
        assert_eq!(counts(), (0, 2));
        std::fs::remove_file(&path).unwrap();
    }
}
