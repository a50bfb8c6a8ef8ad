//! The service: configuration, command line, HTTP API, worker processes and serving.
//!
//! The binary hands over to [`cli::main`]. What the service is made of below HTTP lies in the workspace's other crates.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod config;
pub mod logging;
pub mod machine;
pub mod program;
pub mod serve;
pub mod worker;
