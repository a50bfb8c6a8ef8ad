//! What can go wrong in the store, as facts that a caller can act on.
//!
//! Returned by every function of the crate; the API maps the variants to HTTP statuses. The one
//! thing to know: a full disk is [`StoreError::DiskFull`] wherever it shows (SQL, blob or file), so
//! that it is one answer (507) and never a crash.

use std::path::{Path, PathBuf};

use crate::{JobId, JobState};

/// The crate's result.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What kind of thing an error speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An uploaded file or a result file.
    File,
    /// A fine-tuning job.
    Job,
    /// An event of a job.
    Event,
    /// A checkpoint of a job.
    Checkpoint,
    /// A model that was trained here.
    Model,
    /// An adapter that was loaded from outside.
    Adapter,
    /// An answer of `/v1/responses`.
    Response,
    /// A file or folder in the blob store.
    Blob,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::File => "file",
            Kind::Job => "fine-tuning job",
            Kind::Event => "event",
            Kind::Checkpoint => "checkpoint",
            Kind::Model => "model",
            Kind::Adapter => "adapter",
            Kind::Response => "response",
            Kind::Blob => "blob",
        })
    }
}

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no row or blob of that name.
    #[error("no {kind} named {id:?} exists")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its id or name.
        id: String,
    },
    /// A name that must be new is taken.
    #[error("a {kind} named {id:?} exists already; choose another name or remove the old one")]
    AlreadyExists {
        /// What has that name.
        kind: Kind,
        /// The name.
        id: String,
    },
    /// A text that is no id of the kind wanted.
    #[error("{given:?} is not an id: expected `{prefix}` and 32 hexadecimal digits")]
    BadId {
        /// How such ids start.
        prefix: &'static str,
        /// What was given, cut to a readable length.
        given: String,
    },
    /// An action that the job's state does not allow.
    #[error("job {id} is {state}: it cannot be {action}")]
    InvalidState {
        /// The job.
        id: JobId,
        /// What was asked, as a participle ("paused").
        action: &'static str,
        /// The state that the job is in.
        state: JobState,
    },
    /// Something that others still need.
    #[error("the {kind} {id:?} is in use by {}; finish or remove those first", by.join(", "))]
    InUse {
        /// What was to be removed.
        kind: Kind,
        /// Its id or name.
        id: String,
        /// Who needs it.
        by: Vec<String>,
    },
    /// A conversation of more answers than are read at once.
    #[error("the response {id:?} goes on from {most} others or more; send the conversation itself, without the id")]
    TooLong {
        /// Its last answer.
        id: String,
        /// The most answers of a conversation.
        most: usize,
    },
    /// A worker's write whose lease was taken away: the worker must stop at once.
    #[error("the lease on job {job} (epoch {epoch}) is no longer held; the worker must stop")]
    Fenced {
        /// The job.
        job: JobId,
        /// The epoch that the worker held.
        epoch: i64,
    },
    /// An idempotency key that came with another body before.
    #[error("the idempotency key {key:?} was used within the last 24 hours for job {job} with another body; use a new key")]
    IdempotencyConflict {
        /// The key.
        key: String,
        /// The job that the key made.
        job: JobId,
    },
    /// The disk, a quota or the database's size limit is full.
    #[error("no space is left while writing {what}; free some disk space and try again")]
    DiskFull {
        /// What was being written.
        what: String,
    },
    /// Another process held the database for longer than the time-out.
    #[error("the database was locked by another process for more than 5 s; try again")]
    Busy,
    /// The data folder was made by a newer program.
    #[error(
        "the database has schema version {found}, this program knows versions up to {known}; \
         run the newer program, or restore a copy `tunesmith.db.before-…`"
    )]
    NewerDatabase {
        /// The version in the folder.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// Another server has the data folder.
    #[error("the data folder {} is in use by the server with process id {}; stop that one or choose another --data-dir",
        folder.display(), pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string()))]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// The first server, if it could be read.
        pid: Option<u32>,
    },
    /// A row that this program cannot have written.
    #[error("the database is damaged: {table}.{column} {reason}; restore a copy of tunesmith.db")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: String,
        /// What is wrong.
        reason: String,
    },
    /// A key that is no path inside the blob store.
    #[error("{key:?} is not a valid blob key: {reason}")]
    BadKey {
        /// The key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// Any other failure of the database.
    #[error("the database failed: {0}")]
    Database(#[source] sqlx::Error),
    /// A migration that did not run.
    #[error("the database could not be migrated: {0}")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// Any other failure of the blob store.
    #[error("the blob store failed on {key:?}: {source}")]
    Blob {
        /// The key.
        key: String,
        /// The cause.
        source: object_store::Error,
    },
    /// Any other failure of the file system.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause; the message tells it, so it does not stand in the chain of sources too.
        cause: std::io::Error,
    },
}

impl StoreError {
    /// Says that there is none of that name.
    pub fn not_found(kind: Kind, id: impl ToString) -> Self {
        StoreError::NotFound { kind, id: id.to_string() }
    }

    /// An error of the file system, with the path that it happened on.
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        if is_full(&source) {
            return StoreError::DiskFull { what: path.display().to_string() };
        }
        StoreError::Io { path, cause: source }
    }

    /// An error of the object store; a full disk hides at the end of its chain of causes.
    pub(crate) fn blob(key: impl Into<String>, source: object_store::Error) -> Self {
        let key = key.into();
        if matches!(source, object_store::Error::NotFound { .. }) {
            return StoreError::NotFound { kind: Kind::Blob, id: key };
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if error.downcast_ref::<std::io::Error>().is_some_and(is_full) {
                return StoreError::DiskFull { what: format!("the blob {key:?}") };
            }
            cause = error.source();
        }
        StoreError::Blob { key, source }
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // SQLite's primary result code is the low byte of the extended one that sqlx reports.
        let code =
            error.as_database_error().and_then(|error| error.code()).and_then(|code| code.parse::<i64>().ok()).map(|code| code & 0xff);
        match code {
            Some(13) => StoreError::DiskFull { what: "the database".to_owned() },
            Some(5 | 6) => StoreError::Busy,
            _ => StoreError::Database(error),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        match error {
            sqlx::migrate::MigrateError::Execute(error) | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => {
                match StoreError::from(error) {
                    StoreError::Database(error) => StoreError::Migrate(sqlx::migrate::MigrateError::Execute(error)),
                    known => known,
                }
            }
            error => StoreError::Migrate(error),
        }
    }
}
