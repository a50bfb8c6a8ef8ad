//! How far a pull has come, as the CLI's progress bar and a job's events show it.
//!
//! Sent by every source; the receiver must be quick, since it is called between two pieces of a download.

use std::sync::Arc;

/// One file's state. Files download side by side, so reports of several interleave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file's path in its repository, or `package==version`.
    pub file: String,
    /// Bytes on this machine, those of an earlier attempt included.
    pub done: u64,
    /// Bytes in all; packages do not say before they are there.
    pub total: Option<u64>,
}

pub(crate) type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// Thins the reports of one file to one per mebibyte, and the last.
pub(crate) struct Meter<'a> {
    report: &'a Report,
    file: &'a str,
    reported: Option<u64>,
}

const STEP: u64 = 1 << 20;

impl<'a> Meter<'a> {
    pub(crate) fn new(report: &'a Report, file: &'a str) -> Self {
        Self { report, file, reported: None }
    }

    pub(crate) fn at(&mut self, done: u64, total: Option<u64>) {
        let is_last = total == Some(done);
        // A restart from zero lowers `done`, which is worth a report as well.
        let moved = self.reported.is_none_or(|last| done.abs_diff(last) >= STEP || (is_last && done != last));
        if moved {
            self.reported = Some(done);
            (self.report)(Progress { file: self.file.to_owned(), done, total });
        }
    }
}
