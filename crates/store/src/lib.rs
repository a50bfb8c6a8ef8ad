//! Everything durable: rows through SQL, folders and files through an object store, the state
//! machine of jobs.
//!
//! Called by the HTTP API, the workers and the serving registry. The one thing to know: this is the
//! only crate with SQL, every write of a worker names its lease ([`LeaseToken`]), and a write whose
//! lease was lost is [`StoreError::Fenced`].
#![forbid(unsafe_code)]

mod actions;
mod adapters;
mod blobs;
mod checkpoints;
mod clock;
mod db;
mod error;
mod events;
mod files;
mod finish;
mod ids;
mod jobs;
mod keys;
mod lease;
mod list;
mod lock;
mod metrics;
mod migrate;
mod models;
mod page;
mod queue;
mod responses;
mod retention;
mod row;
mod state;
mod sweep;
mod watch;

pub use adapters::{AdapterRow, NewAdapter};
pub use blobs::{BlobStream, BlobUsage, Blobs, Staging};
pub use checkpoints::{CheckpointLookup, CheckpointRow, NewCheckpoint};
pub use clock::{Clock, SystemClock, TestClock};
pub use db::{Options, Store, WrapBlobs};
pub use error::{Kind, Result, StoreError};
pub use events::{EventRow, Level, NewEvent};
pub use files::{FileRow, NewFile};
pub use finish::{Finished, NewModel};
pub use ids::{CheckpointId, EventId, FileId, JobId, checkpoint_name, model_name, split_checkpoint_name};
pub use jobs::{Created, Idempotency, JobRow, NewJob};
pub use keys::Keys;
pub use lease::{Control, LeaseToken, Progress};
pub use list::{JobCounts, JobFilter};
pub use lock::DataLock;
pub use metrics::{JobReport, MetricEntry, NewMetric};
pub use models::{ModelKind, ModelRow};
pub use page::{Order, Page, PageQuery};
pub use queue::{Claim, QueuePlace};
pub use responses::ResponseRow;
pub use state::{JobError, JobState};
pub use sweep::SweepReport;
pub use watch::{LEASE_TIMEOUT, LeaseWatcher, LostLease, MAX_ATTEMPTS, SilentLease};
