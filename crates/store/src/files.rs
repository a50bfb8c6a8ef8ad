//! The table of files: what was uploaded, and results that jobs wrote.
//!
//! Called by the files API and by jobs that look up their data. The one thing to know: the blob is
//! written before the row and removed after it, so a row always has its blob; what a crash leaves
//! between is a blob without a row, which the sweep removes.

use serde_json::Value;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use crate::row::{Cols, to_json};
use crate::{FileId, Kind, Order, Page, PageQuery, Result, Store, StoreError};

/// A file to record; its blob is written already.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// The id, which the blob's key contains.
    pub id: FileId,
    /// The name that its sender gave it.
    pub filename: String,
    /// OpenAI's purpose: `fine-tune`, `fine-tune-results`, `adapter`, …
    pub purpose: String,
    /// Its size.
    pub bytes: i64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Where its bytes are.
    pub blob_key: String,
    /// What parsing found; null for a file that is not parsed.
    pub summary: Value,
}

/// A file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileRow {
    /// The id.
    pub id: FileId,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
    /// The name that its sender gave it.
    pub filename: String,
    /// OpenAI's purpose.
    pub purpose: String,
    /// Its size.
    pub bytes: i64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// Where its bytes are.
    pub blob_key: String,
    /// What parsing found; null for a file that is not parsed.
    pub summary: Value,
    /// OpenAI's status; always `processed`, since a file that fails is not stored.
    pub status: String,
}

impl FileRow {
    pub(crate) fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("files", row);
        Ok(Self {
            id: cols.parse("id")?,
            created_at: cols.get("created_at")?,
            filename: cols.get("filename")?,
            purpose: cols.get("purpose")?,
            bytes: cols.get("bytes")?,
            sha256: cols.get("sha256")?,
            blob_key: cols.get("blob_key")?,
            summary: cols.json("summary")?,
            status: cols.get("status")?,
        })
    }
}

impl Store {
    /// Records a file whose blob is written.
    pub async fn insert_file(&self, file: NewFile) -> Result<FileRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let row = insert(&mut tx, &file, self.now()).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// A file by its id.
    pub async fn file(&self, id: FileId) -> Result<FileRow> {
        let row = sqlx::query("SELECT * FROM files WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(self.reader())
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::File, id))?;
        FileRow::read(&row)
    }

    /// A page of files, all or those of one purpose.
    pub async fn list_files(&self, page: &PageQuery<FileId>, purpose: Option<&str>) -> Result<Page<FileRow>> {
        let sql = match page.order {
            Order::Desc => {
                "SELECT * FROM files WHERE (CAST($1 AS TEXT) IS NULL OR id < $1) AND (CAST($2 AS TEXT) IS NULL OR purpose = $2) \
                 ORDER BY id DESC LIMIT $3"
            }
            Order::Asc => {
                "SELECT * FROM files WHERE (CAST($1 AS TEXT) IS NULL OR id > $1) AND (CAST($2 AS TEXT) IS NULL OR purpose = $2) \
                 ORDER BY id LIMIT $3"
            }
        };
        let rows =
            sqlx::query(sql).bind(page.after.map(|id| id.to_string())).bind(purpose).bind(page.fetch()).fetch_all(self.reader()).await?;
        Ok(Page::cut(rows.iter().map(FileRow::read).collect::<Result<_>>()?, page.limit))
    }

    /// Removes a file, row first and then blob; refused while an unfinished job needs it.
    pub async fn delete_file(&self, id: FileId) -> Result<FileRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let file = load(&mut tx, id).await?;
        let by: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE (training_file = $1 OR validation_file = $1) \
             AND state IN ('validating_files', 'queued', 'running', 'paused') ORDER BY id LIMIT 5",
        )
        .bind(id.to_string())
        .fetch_all(&mut *tx)
        .await?;
        if !by.is_empty() {
            return Err(StoreError::InUse { kind: Kind::File, id: id.to_string(), by });
        }
        sqlx::query("DELETE FROM files WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await?;
        tx.commit().await?;
        drop(writer);
        self.blobs().delete(&file.blob_key).await?;
        Ok(file)
    }
}

pub(crate) async fn load(conn: &mut SqliteConnection, id: FileId) -> Result<FileRow> {
    let row = sqlx::query("SELECT * FROM files WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(conn)
        .await?
        .ok_or_else(|| StoreError::not_found(Kind::File, id))?;
    FileRow::read(&row)
}

pub(crate) async fn insert(conn: &mut SqliteConnection, file: &NewFile, now: i64) -> Result<FileRow> {
    let row = sqlx::query(
        "INSERT INTO files (id, created_at, filename, purpose, bytes, sha256, blob_key, summary, status) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'processed') RETURNING *",
    )
    .bind(file.id.to_string())
    .bind(now)
    .bind(&file.filename)
    .bind(&file.purpose)
    .bind(file.bytes)
    .bind(&file.sha256)
    .bind(&file.blob_key)
    .bind(to_json("files", "summary", &file.summary)?)
    .fetch_one(conn)
    .await?;
    FileRow::read(&row)
}
