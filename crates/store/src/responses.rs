//! The table of answers that `/v1/responses` keeps, so that a later request can go on from one.
//!
//! Called by the responses API. The one thing to know: an answer in the background is written twice, and its second writing
//! does nothing if it was cancelled or deleted in between.

use serde_json::Value;
use sqlx::sqlite::SqliteRow;

use crate::row::{Cols, to_json};
use crate::{Kind, Result, Store, StoreError};

/// How long answers are kept: 30 days, as OpenAI does.
const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

/// The longest conversation, in answers.
const LONGEST_CHAIN: usize = 1000;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseRow {
    /// Its id.
    pub id: String,
    /// The answer that it goes on from.
    pub previous_id: Option<String>,
    /// Whether it is still being made.
    pub unfinished: bool,
    /// The items that its own request brought.
    pub input: Value,
    /// The answer as it is told.
    pub body: Value,
    /// In which pieces its items were told; the caller's own.
    pub pieces: Value,
}

impl ResponseRow {
    fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("responses", row);
        Ok(Self {
            id: cols.get("id")?,
            previous_id: cols.get("previous_id")?,
            unfinished: cols.get("unfinished")?,
            input: cols.json("input")?,
            body: cols.json("body")?,
            pieces: cols.json("pieces")?,
        })
    }
}

impl Store {
    /// Keeps an answer, and lets those go that are too old.
    pub async fn insert_response(&self, new: &ResponseRow) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let now = self.now();
        sqlx::query("DELETE FROM responses WHERE created_at < $1").bind(now - KEPT_MS).execute(&mut *tx).await?;
        let row =
            "INSERT INTO responses (id, created_at, previous_id, unfinished, input, body, pieces) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        sqlx::query(row)
            .bind(&new.id)
            .bind(now)
            .bind(&new.previous_id)
            .bind(new.unfinished)
            .bind(to_json("responses", "input", &new.input)?)
            .bind(to_json("responses", "body", &new.body)?)
            .bind(to_json("responses", "pieces", &new.pieces)?)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes how an answer ended; false if it had ended before, or is gone.
    pub async fn finish_response(&self, id: &str, body: &Value, pieces: &Value) -> Result<bool> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let done = sqlx::query("UPDATE responses SET unfinished = FALSE, body = $2, pieces = $3 WHERE id = $1 AND unfinished")
            .bind(id)
            .bind(to_json("responses", "body", body)?)
            .bind(to_json("responses", "pieces", pieces)?)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// An answer by its id.
    pub async fn response(&self, id: &str) -> Result<ResponseRow> {
        let row = sqlx::query("SELECT * FROM responses WHERE id = $1")
            .bind(id)
            .fetch_optional(self.reader())
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::Response, id))?;
        ResponseRow::read(&row)
    }

    /// An answer and those that it goes on from, the first one first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the first that is gone, [`StoreError::TooLong`] for more than a thousand.
    pub async fn response_chain(&self, id: &str) -> Result<Vec<ResponseRow>> {
        let rows = sqlx::query(
            "WITH RECURSIVE chain (id, previous_id, depth) AS (\
             SELECT id, previous_id, 1 FROM responses WHERE id = $1 \
             UNION ALL SELECT r.id, r.previous_id, depth + 1 FROM responses r JOIN chain c ON r.id = c.previous_id WHERE depth <= $2) \
             SELECT r.* FROM responses r JOIN chain c ON r.id = c.id ORDER BY c.depth DESC",
        )
        .bind(id)
        .bind(LONGEST_CHAIN as i64)
        .fetch_all(self.reader())
        .await?;
        if rows.len() > LONGEST_CHAIN {
            return Err(StoreError::TooLong { id: id.to_owned(), most: LONGEST_CHAIN });
        }
        let rows = rows.iter().map(ResponseRow::read).collect::<Result<Vec<_>>>()?;
        match rows.first() {
            None => Err(StoreError::not_found(Kind::Response, id)),
            Some(ResponseRow { previous_id: Some(gone), .. }) => Err(StoreError::not_found(Kind::Response, gone)),
            Some(_) => Ok(rows),
        }
    }

    /// Forgets an answer.
    pub async fn delete_response(&self, id: &str) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        let done = sqlx::query("DELETE FROM responses WHERE id = $1").bind(id).execute(&mut *tx).await?;
        tx.commit().await?;
        match done.rows_affected() {
            0 => Err(StoreError::not_found(Kind::Response, id)),
            _ => Ok(()),
        }
    }

    /// Answers that are still being made: at a server's start those that its predecessor left.
    pub async fn unfinished_responses(&self) -> Result<Vec<ResponseRow>> {
        let rows = sqlx::query("SELECT * FROM responses WHERE unfinished").fetch_all(self.reader()).await?;
        rows.iter().map(ResponseRow::read).collect()
    }
}
