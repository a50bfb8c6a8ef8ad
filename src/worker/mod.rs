//! Training, apart from the server: worker processes, who starts them, and what one does with a job.
//!
//! `serve` supervises workers as child processes; `tunesmith worker` runs one by hand. Both share nothing but the store.

mod card;
mod data;
mod failure;
mod finish;
mod job;
mod plan;
mod reporter;
mod run;
mod share;
mod supervise;
mod texts;

pub use failure::Failure;
pub use plan::plan;
pub use run::{Args, run};
pub use supervise::Supervisor;

/// Owners of leases that a server's own workers hold begin with this; a new server takes such leases back at once.
pub const SUPERVISED: &str = "serve:";
