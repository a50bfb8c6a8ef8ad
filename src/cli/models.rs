//! `tunesmith models`: list, show, download, delete.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use futures::StreamExt;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::client::{Client, ClientFlags, segment};
use super::output::say;
use super::table::{size, table, text, time};

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
    /// List the models (the default)
    List,
    /// Print a model's card as JSON
    Show {
        /// The model's name
        name: String,
    },
    /// Save a model's folder as a zip
    Download {
        /// The model's name
        name: String,
        /// Where to [default: NAME.zip in the current folder]
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Delete a model that was trained here
    Delete {
        /// The model's name
        name: String,
    },
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = |name: &str| format!("/v1/models/{}", segment(name));
    match args.action.unwrap_or(Action::List) {
        Action::List => print_list(&client.get("/v1/models").await?)?,
        Action::Show { name } => say!("{:#}", client.get(&path(&name)).await?),
        Action::Download { name, output } => download(&client, &name, output).await?,
        Action::Delete { name } => {
            client.delete(&path(&name)).await?;
            say!("{name} deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_list(list: &Value) -> anyhow::Result<()> {
    let mut out = table(&["NAME", "KIND", "TASK", "BASE", "CREATED"]);
    for model in list["data"].as_array().into_iter().flatten() {
        out.add_row([text(&model["id"]), text(&model["kind"]), text(&model["task"]), text(&model["base_model"]), time(&model["created"])]);
    }
    say!("{out}");
    Ok(())
}

/// Under a temporary name first, so that a broken download never looks like a whole one.
async fn download(client: &Client, name: &str, output: Option<PathBuf>) -> anyhow::Result<()> {
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{}.zip", name.replace([':', '/', '\\'], "-"))));
    let response = client.get_raw(&format!("/v1/models/{}/download", segment(name))).await?;
    let mut partial = output.clone().into_os_string();
    partial.push(".partial");
    let mut file = tokio::fs::File::create(&partial).await.with_context(|| format!("cannot write {}", output.display()))?;
    let mut bytes = response.bytes_stream();
    let mut total = 0;
    while let Some(piece) = bytes.next().await {
        let piece = piece.context("the download broke off")?;
        total += piece.len() as u64;
        file.write_all(&piece).await?;
    }
    file.sync_all().await?;
    tokio::fs::rename(&partial, &output).await?;
    say!("{} ({})", output.display(), size(total));
    Ok(())
}
