//! The training loop: curves against PyTorch, its reports, resumption, objectives, precision and threads.

#[path = "../reference/jobs.rs"]
mod jobs;
#[path = "../reference/mod.rs"]
mod reference;

mod curve;
mod faults;
mod objectives;
mod precision;
mod resume;
mod run;
mod selection;
