//! How columns become values, with errors that name the table and the column.
//!
//! Called by each table's file to read its rows. The one thing to know: ids, enumerations and JSON
//! are TEXT in both databases and are parsed here; a text that does not parse is
//! [`StoreError::Corrupt`].

use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::{Result, StoreError};

/// A row of one table.
pub(crate) struct Cols<'r> {
    table: &'static str,
    row: &'r SqliteRow,
}

impl<'r> Cols<'r> {
    pub(crate) fn new(table: &'static str, row: &'r SqliteRow) -> Self {
        Self { table, row }
    }

    /// A value that the database has a type for: text, integer, real, flag, or an `Option` of
    /// these.
    pub(crate) fn get<T>(&self, column: &str) -> Result<T>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        Ok(self.row.try_get(column)?)
    }

    /// A text with a grammar: an id or an enumeration.
    pub(crate) fn parse<T>(&self, column: &str) -> Result<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text: &str = self.row.try_get(column)?;
        text.parse().map_err(|error: T::Err| self.corrupt(column, error.to_string()))
    }

    /// The same where NULL is allowed.
    pub(crate) fn parse_opt<T>(&self, column: &str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text: Option<&str> = self.row.try_get(column)?;
        text.map(|text| text.parse().map_err(|error: T::Err| self.corrupt(column, error.to_string()))).transpose()
    }

    /// A JSON text.
    pub(crate) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T> {
        let text: &str = self.row.try_get(column)?;
        serde_json::from_str(text).map_err(|error| self.corrupt(column, format!("is not the JSON expected: {error}")))
    }

    /// A JSON text where NULL is allowed.
    pub(crate) fn json_opt<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>> {
        let text: Option<&str> = self.row.try_get(column)?;
        text.map(|text| serde_json::from_str(text).map_err(|error| self.corrupt(column, format!("is not the JSON expected: {error}"))))
            .transpose()
    }

    fn corrupt(&self, column: &str, reason: String) -> StoreError {
        StoreError::Corrupt { table: self.table, column: column.to_owned(), reason }
    }
}

/// JSON for a TEXT column.
pub(crate) fn to_json<T: serde::Serialize + ?Sized>(table: &'static str, column: &str, value: &T) -> Result<String> {
    // Only maps with keys that are no strings fail, which none of the stored types has.
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt {
        table,
        column: column.to_owned(),
        reason: format!("cannot be written as JSON: {error}"),
    })
}
