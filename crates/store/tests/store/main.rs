//! Black-box tests of the store: what a caller can rely on, each on a folder and a database of its
//! own.
//!
//! The one thing to know: time is a `TestClock` that the tests move, and a second process is a
//! second `Store` on the same folder.
#![allow(clippy::unwrap_used)]

mod bench;
mod blobs;
mod checkpoints;
mod crashes;
mod deleting;
mod events;
mod fencing;
mod full_disk;
mod idempotency;
mod leases;
mod load;
mod paging;
mod queue;
mod responses;
mod states;
