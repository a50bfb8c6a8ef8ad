//! The table of events: every moment of every job's life, in one order.
//!
//! Appended inside the transactions of `jobs`, `actions`, `lease`, `watch`, `finish` and by
//! workers; read by pages, streams and by servers that follow. The one thing to know: `seq` comes
//! from a counter row, so it grows in the order of commits and is never reused.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::row::{Cols, to_json};
use crate::{Clock, EventId, JobId, Kind, LeaseToken, Page, PageQuery, Result, Store, StoreError, lease};

/// Rows of one INSERT: SQLite takes 32,766 parameters, PostgreSQL 65,535.
pub(crate) const ROWS_A_STATEMENT: usize = 500;

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All goes well.
    Info,
    /// Something that the user should know.
    Warn,
    /// Something failed.
    Error,
}

impl Level {
    /// The name in the API and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "info" => Ok(Level::Info),
            "warn" => Ok(Level::Warn),
            "error" => Ok(Level::Error),
            _ => Err(format!("{text:?} is no level of an event")),
        }
    }
}

/// An event to append.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// How serious it is.
    pub level: Level,
    /// OpenAI's type: `message` or `metrics`.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    /// An object for programs.
    pub data: Value,
}

impl NewEvent {
    /// A message.
    pub fn new(level: Level, message: impl Into<String>) -> Self {
        Self { level, kind: "message".to_owned(), message: message.into(), data: json!({}) }
    }

    /// A message that all goes well.
    pub fn info(message: impl Into<String>) -> Self {
        Self::new(Level::Info, message)
    }

    /// A message that the user should know.
    pub fn warn(message: impl Into<String>) -> Self {
        Self::new(Level::Warn, message)
    }

    /// Measured values: OpenAI's type `metrics`.
    pub fn metrics(message: impl Into<String>, data: Value) -> Self {
        Self { level: Level::Info, kind: "metrics".to_owned(), message: message.into(), data }
    }

    /// The same event with data.
    #[must_use]
    pub fn with(mut self, data: Value) -> Self {
        self.data = data;
        self
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Its place among all events of all jobs.
    pub seq: i64,
    /// The id.
    pub id: EventId,
    /// The job.
    pub job_id: JobId,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
    /// How serious it is.
    pub level: Level,
    /// OpenAI's type: `message` or `metrics`.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    /// An object for programs.
    pub data: Value,
}

impl EventRow {
    fn read(row: &SqliteRow) -> Result<Self> {
        let cols = Cols::new("events", row);
        Ok(Self {
            seq: cols.get("seq")?,
            id: cols.parse("id")?,
            job_id: cols.parse("job_id")?,
            created_at: cols.get("created_at")?,
            level: cols.parse("level")?,
            kind: cols.get("type")?,
            message: cols.get("message")?,
            data: cols.json("data")?,
        })
    }
}

impl Store {
    /// Appends a worker's events, all or none.
    pub async fn append_events(&self, lease: &LeaseToken, events: &[NewEvent]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        lease::hold(&mut tx, lease, self.now()).await?;
        append(&mut tx, &**self.clock(), lease.job, events).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Appends the server's own events to a job.
    pub async fn append_server_events(&self, job: JobId, events: &[NewEvent]) -> Result<()> {
        let mut writer = self.writer().await;
        let mut tx = writer.begin().await?;
        crate::jobs::load(&mut tx, job).await?;
        append(&mut tx, &**self.clock(), job, events).await?;
        tx.commit().await?;
        Ok(())
    }

    /// A page of a job's events, newest first, after (that is, older than) an event.
    pub async fn list_events(&self, job: JobId, page: &PageQuery<EventId>) -> Result<Page<EventRow>> {
        let before = match page.after {
            Some(id) => Some(self.event_seq(job, id).await?),
            None => None,
        };
        let rows =
            sqlx::query("SELECT * FROM events WHERE job_id = $1 AND (CAST($2 AS BIGINT) IS NULL OR seq < $2) ORDER BY seq DESC LIMIT $3")
                .bind(job.to_string())
                .bind(before)
                .bind(page.fetch())
                .fetch_all(self.reader())
                .await?;
        Ok(Page::cut(read_all(&rows)?, page.limit))
    }

    /// The place of a job's event, for `after` and `Last-Event-ID`.
    pub async fn event_seq(&self, job: JobId, id: EventId) -> Result<i64> {
        sqlx::query_scalar("SELECT seq FROM events WHERE id = $1 AND job_id = $2")
            .bind(id.to_string())
            .bind(job.to_string())
            .fetch_optional(self.reader())
            .await?
            .ok_or_else(|| StoreError::not_found(Kind::Event, id))
    }

    /// The place of the newest event, 0 when there was never one: where a server that follows
    /// begins.
    pub async fn last_event_seq(&self) -> Result<i64> {
        Ok(sqlx::query_scalar("SELECT value FROM counters WHERE name = 'events'").fetch_one(self.reader()).await?)
    }

    /// Events of all jobs after a place, oldest first: what servers follow.
    pub async fn events_since(&self, seq: i64, limit: u32) -> Result<Vec<EventRow>> {
        let rows = sqlx::query("SELECT * FROM events WHERE seq > $1 ORDER BY seq LIMIT $2")
            .bind(seq)
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        read_all(&rows)
    }

    /// Events of one job after a place (0 for all), oldest first: what a stream sends.
    pub async fn job_events_since(&self, job: JobId, seq: i64, limit: u32) -> Result<Vec<EventRow>> {
        let rows = sqlx::query("SELECT * FROM events WHERE job_id = $1 AND seq > $2 ORDER BY seq LIMIT $3")
            .bind(job.to_string())
            .bind(seq)
            .bind(i64::from(limit))
            .fetch_all(self.reader())
            .await?;
        read_all(&rows)
    }
}

fn read_all(rows: &[SqliteRow]) -> Result<Vec<EventRow>> {
    rows.iter().map(EventRow::read).collect()
}

/// Appends events inside the transaction of what they tell of.
pub(crate) async fn append(conn: &mut SqliteConnection, clock: &dyn Clock, job: JobId, events: &[NewEvent]) -> Result<()> {
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let last: i64 = sqlx::query_scalar("UPDATE counters SET value = value + $1 WHERE name = 'events' RETURNING value")
        .bind(count)
        .fetch_one(&mut *conn)
        .await?;
    let now = clock.now_ms();
    let mut seq = last - count;
    for part in events.chunks(ROWS_A_STATEMENT) {
        let mut rows = Vec::with_capacity(part.len());
        for event in part {
            seq += 1;
            rows.push((seq, event, to_json("events", "data", &event.data)?));
        }
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO events (seq, id, job_id, created_at, level, type, message, data) ");
        insert.push_values(rows, |mut row, (seq, event, data)| {
            row.push_bind(seq)
                .push_bind(EventId::generate(clock).to_string())
                .push_bind(job.to_string())
                .push_bind(now)
                .push_bind(event.level.as_str())
                .push_bind(event.kind.as_str())
                .push_bind(event.message.as_str())
                .push_bind(data);
        });
        insert.build().execute(&mut *conn).await?;
    }
    Ok(())
}
