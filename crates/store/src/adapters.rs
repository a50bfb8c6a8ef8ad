//! The table of adapters that were loaded from outside.
//!
//! Called by the adapters API and the serving registry. The one thing to know: adapters and models
//! share one space of names, since a request names either in the same field.

use serde_json::Value;
use sqlx::sqlite::SqliteRow;

use crate::row::{Cols, to_json};
use crate::{Kind, Result, Store, StoreError};

/// An adapter to record.
#[derive(Debug, Clone)]
pub struct NewAdapter {
    /// Its name in requests.
    pub name: String,
    /// The base model's name.
    pub base_model: String,
    /// The folder in the blob store, for one that was uploaded.
    pub folder_key: Option<String>,
    /// Where it came from otherwise: a hub id, or a path relative to the model folder.
    pub source: Option<String>,
    /// What its files say.
    pub info: Value,
}

/// An adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterRow {
    /// Its name in requests.
    pub name: String,
    /// The base model's name.
    pub base_model: String,
    /// The folder in the blob store, for one that was uploaded.
    pub folder_key: Option<String>,
    /// Where it came from otherwise.
    pub source: Option<String>,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
    /// What its files say.
    pub info: Value,
}

impl AdapterRow {
    fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("adapters", row);
        Ok(Self {
            name: cols.get("name")?,
            base_model: cols.get("base_model")?,
            folder_key: cols.get("folder_key")?,
            source: cols.get("source")?,
            created_at: cols.get("created_at")?,
            info: cols.json("info")?,
        })
    }
}

impl Store {
    /// Records an adapter under a new name.
    pub async fn insert_adapter(&self, new: &NewAdapter) -> Result<AdapterRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let taken: i64 =
            sqlx::query_scalar("SELECT (SELECT COUNT(*) FROM adapters WHERE name = $1) + (SELECT COUNT(*) FROM models WHERE name = $1)")
                .bind(&new.name)
                .fetch_one(&mut *tx)
                .await?;
        if taken > 0 {
            return Err(StoreError::AlreadyExists { kind: Kind::Adapter, id: new.name.clone() });
        }
        let row = sqlx::query(
            "INSERT INTO adapters (name, base_model, folder_key, source, created_at, info) \
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING *",
        )
        .bind(&new.name)
        .bind(&new.base_model)
        .bind(&new.folder_key)
        .bind(&new.source)
        .bind(self.now())
        .bind(to_json("adapters", "info", &new.info)?)
        .fetch_one(&mut *tx)
        .await?;
        let row = AdapterRow::read(&row)?;
        tx.commit().await?;
        Ok(row)
    }

    /// An adapter by its name.
    pub async fn adapter(&self, name: &str) -> Result<AdapterRow> {
        let row = sqlx::query("SELECT * FROM adapters WHERE name = $1")
            .bind(name)
            .fetch_optional(self.reader())
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::Adapter, name))?;
        AdapterRow::read(&row)
    }

    /// All adapters, newest first.
    pub async fn list_adapters(&self) -> Result<Vec<AdapterRow>> {
        let rows = sqlx::query("SELECT * FROM adapters ORDER BY created_at DESC, name").fetch_all(self.reader()).await?;
        rows.iter().map(AdapterRow::read).collect()
    }

    /// Forgets an adapter and removes its folder, if it has one here.
    pub async fn delete_adapter(&self, name: &str) -> Result<AdapterRow> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let row = sqlx::query("DELETE FROM adapters WHERE name = $1 RETURNING *")
            .bind(name)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::Adapter, name))?;
        let adapter = AdapterRow::read(&row)?;
        tx.commit().await?;
        drop(writer);
        if let Some(folder) = &adapter.folder_key {
            self.blobs().delete_prefix(folder).await?;
        }
        Ok(adapter)
    }
}
