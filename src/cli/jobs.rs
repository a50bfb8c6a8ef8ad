//! `tunesmith jobs`: list, show, follow, cancel, pause, resume, delete.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::client::{Client, ClientFlags, all_pages, segment};
use super::output::say;
use super::table::{table, text, time};
use super::watch;

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    client: ClientFlags,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the newest jobs (the default)
    List {
        /// Most jobs to list
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Print a job as JSON
    Show {
        /// The job's id
        id: String,
    },
    /// Follow a job with a progress bar
    Watch {
        /// The job's id
        id: String,
    },
    /// End a job
    Cancel {
        /// The job's id
        id: String,
    },
    /// Stop a job, to be resumed
    Pause {
        /// The job's id
        id: String,
    },
    /// Go on with a paused or failed job
    Resume {
        /// The job's id
        id: String,
    },
    /// Delete a finished job; its model stays
    Delete {
        /// The job's id
        id: String,
    },
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = |id: &str| format!("/v1/fine_tuning/jobs/{}", segment(id));
    let act =
        async |id: &str, action: &str| client.post(&format!("{}/{action}", path(id)), &json!({})).await.and_then(|job| print_state(&job));
    match args.action.unwrap_or(Action::List { limit: 20 }) {
        Action::List { limit } => print_list(&all_pages(&client, "/v1/fine_tuning/jobs", limit).await?)?,
        Action::Show { id } => say!("{:#}", client.get(&path(&id)).await?),
        Action::Watch { id } => {
            let job = watch::follow(&client, &id).await?;
            print_state(&job)?;
            return Ok(watch::exit_code(&job));
        }
        Action::Cancel { id } => act(&id, "cancel").await?,
        Action::Pause { id } => act(&id, "pause").await?,
        Action::Resume { id } => act(&id, "resume").await?,
        Action::Delete { id } => {
            client.delete(&path(&id)).await?;
            say!("{id} deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line for a job: its state, and what came of it.
pub fn print_state(job: &Value) -> anyhow::Result<()> {
    let id = text(&job["id"]);
    let state = text(&job["status"]);
    let pausing = if job["pausing"] == true { ", pausing" } else { "" };
    match (job["fine_tuned_model"].as_str(), job["error"]["message"].as_str()) {
        (Some(model), _) => say!("{id} {state}: {model}"),
        (None, Some(error)) => say!("{id} {state}: {error}"),
        (None, None) => say!("{id} {state}{pausing}"),
    }
    Ok(())
}

fn print_list(jobs: &[Value]) -> anyhow::Result<()> {
    let mut out = table(&["ID", "STATUS", "STEP", "BASE", "CREATED", "MODEL"]);
    for job in jobs {
        let progress = &job["progress"];
        let total = progress["total_steps"].as_i64().map_or("?".to_owned(), |t| t.to_string());
        out.add_row([
            text(&job["id"]),
            text(&job["status"]),
            format!("{}/{total}", text(&progress["step"])),
            text(&job["model"]),
            time(&job["created_at"]),
            text(&job["fine_tuned_model"]),
        ]);
    }
    say!("{out}");
    Ok(())
}
