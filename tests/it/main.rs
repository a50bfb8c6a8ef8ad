//! Black-box tests: the real binary on a free port, an own data folder for each test.
//!
//! One binary for all of them, so that linking happens once. A module holds one capability.
#![allow(clippy::unwrap_used)]

mod harness;
mod tensor_file;
mod trainer;

mod adapters;
mod auth;
mod bad_training;
mod cli;
mod crowd;
mod decisions;
mod description;
mod events;
mod files;
mod http;
mod idempotency;
mod inference;
mod job_actions;
mod job_requests;
mod language_jobs;
mod life_of_a_job;
mod memory_budget;
mod models;
mod reloaded_adapters;
mod responses;
mod server_deaths;
mod serving;
mod stalled_workers;
mod steering;
mod text;
mod text_streams;
mod training;
mod worker_deaths;
mod worker_pool;
