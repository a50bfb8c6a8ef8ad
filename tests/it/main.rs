//! Black-box tests: the real binary on a free port, an own data folder for each test.
//!
//! One binary for all of them, so that linking happens once. A module holds one capability.
#![allow(clippy::unwrap_used)]

mod harness;

mod adapters;
mod auth;
mod cli;
mod description;
mod events;
mod files;
mod http;
mod idempotency;
mod inference;
mod job_actions;
mod job_requests;
mod models;
mod serving;
mod training;
