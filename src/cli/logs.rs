//! `tunesmith logs`: what happened to a job, oldest first.

use std::process::ExitCode;

use super::client::{Client, ClientFlags, all_pages, segment};
use super::output::say;
use super::table::{text, time};

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    client: ClientFlags,
    /// The job's id
    id: String,
    /// Most events to print; the newest are kept
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = format!("/v1/fine_tuning/jobs/{}/events", segment(&args.id));
    let mut events = all_pages(&client, &path, args.limit).await?;
    events.reverse();
    for event in events {
        say!("{} {:5} {}", time(&event["created_at"]), text(&event["level"]), text(&event["message"]));
    }
    Ok(ExitCode::SUCCESS)
}
