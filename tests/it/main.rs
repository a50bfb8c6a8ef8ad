//! Black-box tests: the real binary on a free port, an own data folder for each test.
//!
//! One binary for all of them, so that linking happens once. A module holds one capability.
#![allow(clippy::unwrap_used)]

#[path = "../../crates/gguf/tests/writer/mod.rs"]
mod gguf_writer;
mod harness;
mod tensor_file;
mod trainer;
mod variants;

mod adapter_configs;
mod adapters;
mod answers;
mod auth;
mod bad_training;
mod cli;
mod conversation_files;
mod crowd;
mod decisions;
mod description;
mod embeddings;
mod events;
mod files;
mod forced_calls;
mod http;
mod idempotency;
mod inference;
mod job_actions;
mod job_fit;
mod job_requests;
mod job_settings;
mod language_adapters;
mod language_jobs;
mod language_losses;
mod life_of_a_job;
mod memory_budget;
mod model_files;
mod models;
mod reloaded_adapters;
mod response_streams;
mod responses;
mod server_deaths;
mod serving;
mod stalled_workers;
mod steering;
mod text;
mod text_faults;
mod text_streams;
mod training;
mod worker_deaths;
mod worker_pool;
