//! Brings a database to this program's schema: refuse a newer one, copy an older one, then migrate.
//!
//! Called by `Store::open_with` before any other connection exists. The one thing to know: server
//! and workers may open a folder at the same time, so all of this happens under a file lock.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::{Result, StoreError};

/// The numbered files in `migrations/`.
pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// See the file's head.
pub(crate) async fn run(data_dir: &Path, options: &SqliteConnectOptions, migrations: &Migrator) -> Result<()> {
    let lock = lock(data_dir).await?;
    let mut database = options.clone().connect().await?;
    let found = version(&mut database).await?;
    let known = migrations.iter().map(|migration| migration.version).max().unwrap_or(0);
    if found > known {
        return Err(StoreError::NewerDatabase { found, known });
    }
    if found < known {
        if found > 0 {
            copy(data_dir, &mut database, known).await?;
        }
        migrations.run_direct(None, &mut database, false).await?;
    }
    database.close().await?;
    drop(lock);
    Ok(())
}

/// The newest migration that the database has, 0 for an empty one.
async fn version(database: &mut SqliteConnection) -> Result<i64> {
    let tables: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'")
        .fetch_one(&mut *database)
        .await?;
    if tables == 0 {
        return Ok(0);
    }
    let newest: Option<i64> = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(database).await?;
    Ok(newest.unwrap_or(0))
}

/// Copies the database to `tunesmith.db.before-<version>`, complete or not at all.
async fn copy(data_dir: &Path, database: &mut SqliteConnection, version: i64) -> Result<()> {
    let path = data_dir.join(format!("tunesmith.db.before-{version}"));
    let half = data_dir.join(format!("tunesmith.db.before-{version}.half"));
    match std::fs::remove_file(&half) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::io(half, source));
        }
        _ => {}
    }
    let target = half
        .to_str()
        .ok_or_else(|| StoreError::io(&half, std::io::Error::new(std::io::ErrorKind::InvalidFilename, "the path is not UTF-8")))?;
    // Unlike a copy of the file this includes what still lies in the write-ahead log.
    sqlx::query("VACUUM INTO $1").bind(target).execute(database).await?;
    let io = |source| StoreError::io(&half, source);
    std::fs::File::open(&half).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&half, &path).map_err(io)?;
    tracing::info!(copy = %path.display(), version, "copied the database before migrating it");
    Ok(())
}

async fn lock(data_dir: &Path) -> Result<std::fs::File> {
    let path = data_dir.join("migrate.lock");
    let locked = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            let file = std::fs::File::options().write(true).create(true).truncate(false).open(path)?;
            file.lock()?;
            Ok(file)
        }
    })
    .await;
    match locked {
        Ok(result) => result.map_err(|source| StoreError::io(path, source)),
        Err(error) => Err(StoreError::io(path, std::io::Error::other(error))),
    }
}

/// The version that this program brings databases to.
#[cfg(test)]
fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// A migrator with one more migration than the real one, for tests of upgrades.
#[cfg(test)]
pub(crate) fn with_next_migration() -> Migrator {
    use std::borrow::Cow;

    let mut all: Vec<_> = MIGRATIONS.iter().cloned().collect();
    let version = newest() + 1;
    all.push(sqlx::migrate::Migration::new(
        version,
        Cow::Borrowed("next"),
        sqlx::migrate::MigrationType::Simple,
        sqlx::SqlStr::from_static("CREATE TABLE added_later (id TEXT PRIMARY KEY)"),
        false,
    ));
    Migrator::with_migrations(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::{Options, Store, TestClock};

    async fn open(folder: &Path, migrations: &Migrator) -> Result<Store> {
        let clock = Arc::new(TestClock::at(1_780_000_000_000));
        Store::open_at_version(folder, clock, Options::default(), migrations).await
    }

    async fn table_names(database: &Path) -> Vec<String> {
        let mut database = SqliteConnectOptions::new().filename(database).connect().await.unwrap();
        sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'").fetch_all(&mut database).await.unwrap()
    }

    #[tokio::test]
    async fn an_upgrade_copies_the_database_first() {
        let folder = tempfile::tempdir().unwrap();
        let old = open(folder.path(), &MIGRATIONS).await.unwrap();
        let blobs = old.blobs().clone();
        let id = crate::FileId::generate(&**old.clock());
        let file = crate::NewFile {
            id,
            filename: "kept.csv".to_owned(),
            purpose: "fine-tune".to_owned(),
            bytes: 0,
            sha256: String::new(),
            blob_key: crate::Keys::file(id),
            summary: serde_json::Value::Null,
        };
        blobs.put_bytes(&file.blob_key, "").await.unwrap();
        old.insert_file(file).await.unwrap();
        // Not closed: the row may still be in the write-ahead log alone.
        let copy = folder.path().join(format!("tunesmith.db.before-{}", newest() + 1));
        std::fs::write(copy.with_added_extension("half"), "an upgrade that was cut off").unwrap();
        assert!(!copy.exists());

        let new = open(folder.path(), &with_next_migration()).await.unwrap();
        assert_eq!(new.file(id).await.unwrap().filename, "kept.csv");
        assert!(table_names(&folder.path().join("tunesmith.db")).await.contains(&"added_later".to_owned()));
        assert!(!table_names(&copy).await.contains(&"added_later".to_owned()));

        // The copy is a whole data base: the old program runs on it.
        let restored = tempfile::tempdir().unwrap();
        std::fs::copy(&copy, restored.path().join("tunesmith.db")).unwrap();
        let restored = open(restored.path(), &MIGRATIONS).await.unwrap();
        assert_eq!(restored.file(id).await.unwrap().filename, "kept.csv");
    }

    #[tokio::test]
    async fn a_newer_database_is_refused_with_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), &with_next_migration()).await.unwrap().close().await;
        let error = open(folder.path(), &MIGRATIONS).await.unwrap_err();
        let (old, new) = (newest(), newest() + 1);
        assert!(matches!(error, StoreError::NewerDatabase { found, known } if (found, known) == (new, old)), "{error}");
        assert!(error.to_string().contains(&new.to_string()) && error.to_string().contains(&old.to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_first_start_and_a_second_start_copy_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            open(folder.path(), &MIGRATIONS).await.unwrap();
        }
        let copies = std::fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("before"));
        assert_eq!(copies.count(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn processes_that_start_together_migrate_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut starts = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let folder = folder.path().to_path_buf();
            starts.spawn(async move { open(&folder, &MIGRATIONS).await.map(drop) });
        }
        for started in starts.join_all().await {
            started.unwrap();
        }
    }
}
