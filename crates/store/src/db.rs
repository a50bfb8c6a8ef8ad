//! The store's handle: one writer, a pool of readers, a connection for heartbeats, the blobs, the
//! clock.
//!
//! Opened once by each process (server, worker, tool) and cloned freely. The one thing to know:
//! every write goes through [`Store::writer`], one at a time, in a transaction that begins as a
//! writer, so two writers never deadlock.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::{Mutex, MutexGuard};

use crate::{Blobs, Clock, Result, StoreError, migrate};

/// A write transaction.
pub(crate) type Tx<'c> = Transaction<'c, Sqlite>;

/// How long a connection waits for another process's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Wraps the object store that holds the blobs, for tests that make it fail.
pub type WrapBlobs = Arc<dyn Fn(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> + Send + Sync>;

/// What differs from the defaults, mostly in tests.
#[derive(Clone)]
pub struct Options {
    /// The number of connections that read.
    pub readers: u32,
    /// A limit to the database in pages of 4 KiB: beyond it writes fail as on a full disk.
    pub max_page_count: Option<u32>,
    /// Stands between the store and the folder of blobs.
    pub wrap_blobs: Option<WrapBlobs>,
}

impl Default for Options {
    fn default() -> Self {
        Self { readers: 8, max_page_count: None, wrap_blobs: None }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("readers", &self.readers)
            .field("max_page_count", &self.max_page_count)
            .field("wrap_blobs", &self.wrap_blobs.is_some())
            .finish()
    }
}

/// Everything durable. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    data_dir: PathBuf,
    clock: Arc<dyn Clock>,
    write: Mutex<SqliteConnection>,
    write_options: SqliteConnectOptions,
    beat: Mutex<SqliteConnection>,
    read: SqlitePool,
    blobs: Blobs,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("data_dir", &self.inner.data_dir).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a data folder, creating or upgrading it where needed.
    pub async fn open(data_dir: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_with(data_dir, clock, Options::default()).await
    }

    /// [`Store::open`] with options.
    pub async fn open_with(data_dir: &Path, clock: Arc<dyn Clock>, options: Options) -> Result<Self> {
        Self::open_at_version(data_dir, clock, options, &migrate::MIGRATIONS).await
    }

    pub(crate) async fn open_at_version(
        data_dir: &Path,
        clock: Arc<dyn Clock>,
        options: Options,
        migrations: &sqlx::migrate::Migrator,
    ) -> Result<Self> {
        std::fs::create_dir_all(data_dir).map_err(|source| StoreError::io(data_dir, source))?;
        let blobs = Blobs::open(data_dir, options.wrap_blobs.as_ref())?;
        let database = data_dir.join("tunesmith.db");
        let base = SqliteConnectOptions::new()
            .filename(&database)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .optimize_on_close(false, None);
        // Migrating before any other connection exists: a schema that changes under a prepared
        // statement is one worry less.
        migrate::run(data_dir, &base, migrations).await?;

        let limited = match options.max_page_count {
            Some(pages) => base.clone().pragma("max_page_count", pages.to_string()),
            None => base.clone(),
        };
        // FULL: what the API has answered with 200 must survive a power cut. A beat is worth no
        // fsync.
        let write_options = limited.clone().synchronous(SqliteSynchronous::Full);
        let write = write_options.connect().await?;
        let beat = limited.synchronous(SqliteSynchronous::Normal).connect().await?;
        let read = SqlitePoolOptions::new()
            .max_connections(options.readers.max(1))
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(base.synchronous(SqliteSynchronous::Normal).pragma("query_only", "ON"))
            .await?;
        let inner =
            Inner { data_dir: data_dir.to_path_buf(), clock, write: Mutex::new(write), write_options, beat: Mutex::new(beat), read, blobs };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.inner.data_dir
    }

    /// Files and folders.
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// The clock that stamps rows.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// Closes the read connections and waits for the writer to be free, so that nothing is left
    /// half done.
    pub async fn close(&self) {
        self.inner.read.close().await;
        let mut write = self.inner.write.lock().await;
        // Empties the write-ahead log into the database; when others still read, a later close does
        // it.
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *write).await {
            tracing::warn!(%error, "the write-ahead log stays for the next start");
        }
    }

    /// Whether the database answers, for `/readyz`.
    pub async fn ping(&self) -> Result<()> {
        let _: i64 = sqlx::query_scalar("SELECT 1").fetch_one(self.reader()).await?;
        Ok(())
    }

    pub(crate) fn now(&self) -> i64 {
        self.inner.clock.now_ms()
    }

    pub(crate) fn reader(&self) -> &SqlitePool {
        &self.inner.read
    }

    /// The one writer of this process; waiters are served in order.
    pub(crate) async fn writer(&self) -> Writer<'_> {
        Writer { connection: self.inner.write.lock().await, options: &self.inner.write_options }
    }

    /// The connection for heartbeats, which never wait behind this process's other work.
    pub(crate) async fn beater(&self) -> MutexGuard<'_, SqliteConnection> {
        self.inner.beat.lock().await
    }
}

/// The write connection, held.
pub(crate) struct Writer<'s> {
    connection: MutexGuard<'s, SqliteConnection>,
    options: &'s SqliteConnectOptions,
}

impl Writer<'_> {
    /// Begins as a writer. A transaction that begins as a reader and then writes fails at once when
    /// another process has written in between, time-out or not.
    pub(crate) async fn begin(&mut self) -> Result<Tx<'_>> {
        // A full disk makes SQLite roll back by itself; sqlx then fails to roll back what is gone
        // and counts the transaction as open for ever. The count belongs to the connection, so a
        // new one is the cure. (The ping waits for a rollback that a dropped transaction has
        // queued.)
        self.connection.ping().await?;
        if self.connection.is_in_transaction() {
            *self.connection = self.options.connect().await?;
        }
        Ok(self.connection.begin_with("BEGIN IMMEDIATE").await?)
    }
}
