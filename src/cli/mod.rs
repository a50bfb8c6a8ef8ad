//! The command line: one file a command.
//!
//! `serve` and `worker` run the service; the others are clients of a server over HTTP, or look at this machine.

mod classify;
mod client;
mod demo;
mod doctor;
mod files;
mod gc;
mod jobs;
mod logs;
mod models;
mod openapi;
mod output;
mod pull;
mod serve;
mod submit;
mod table;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fine-tune language models and serve the result.
#[derive(Debug, Parser)]
#[command(name = "tunesmith", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP API and train what it is asked to
    Serve(serve::Args),
    /// Train jobs of a data folder, beside `serve --workers 0` or as its child
    Worker(crate::worker::Args),
    /// Train on real text, here and now, and query the result
    Demo(demo::Args),
    /// Download a model or data set, or list what the catalogue has
    Pull(pull::Args),
    /// File a fine-tuning job
    Submit(submit::Args),
    /// List, follow and steer fine-tuning jobs
    Jobs(jobs::Args),
    /// Ask a classifier
    Classify(classify::Args),
    /// List, show, download and delete models
    Models(models::Args),
    /// List, upload, show and delete files
    Files(files::Args),
    /// Print what happened to a job
    Logs(logs::Args),
    /// Show what takes disk space and what may go
    Gc(gc::Args),
    /// Show what this machine offers and what is missing
    Doctor(doctor::Args),
    /// Print the API's description
    Openapi(openapi::Args),
}

/// Runs the program; an error is one line (and its causes) on standard error.
pub fn main() -> ExitCode {
    // Before any HTTP client is built, which panics without a provider.
    tunesmith_hub::install_tls();
    let cli = Cli::parse();
    if matches!(cli.command, Command::Serve(_) | Command::Worker(_)) {
        crate::program::keep_freed_pages();
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if error.is::<output::ReaderLeft>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Worker(args) => crate::worker::run(&args),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Pull(args) => block_on(pull::run(args)),
        Command::Submit(args) => block_on(submit::run(args)),
        Command::Jobs(args) => block_on(jobs::run(args)),
        Command::Classify(args) => block_on(classify::run(args)),
        Command::Models(args) => block_on(models::run(args)),
        Command::Files(args) => block_on(files::run(args)),
        Command::Logs(args) => block_on(logs::run(args)),
        Command::Gc(args) => block_on(gc::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Openapi(args) => openapi::run(&args),
    }
}

/// Runs a client's command on this thread.
fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
