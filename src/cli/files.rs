//! `tunesmith files`: list, upload, show, print, delete.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use futures::StreamExt;
use serde_json::Value;

use super::client::{Client, ClientFlags, segment};
use super::output::{say, write_bytes};
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
    /// List the files (the default)
    List,
    /// Upload a data set, or a zip with an adapter
    Upload {
        /// The file
        path: PathBuf,
        /// What it is for
        #[arg(long, default_value = "fine-tune")]
        purpose: String,
    },
    /// Print what parsing found, as JSON
    Show {
        /// The file's id
        id: String,
    },
    /// Print a file's bytes
    Content {
        /// The file's id
        id: String,
    },
    /// Delete a file
    Delete {
        /// The file's id
        id: String,
    },
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let path = |id: &str| format!("/v1/files/{}", segment(id));
    match args.action.unwrap_or(Action::List) {
        Action::List => print_list(&client.get("/v1/files").await?)?,
        Action::Upload { path, purpose } => {
            let file = client.upload(&path, &purpose).await?;
            say!("{} {} rows", text(&file["id"]), text(&file["summary"]["rows"]));
        }
        Action::Show { id } => say!("{:#}", client.get(&path(&id)).await?),
        Action::Content { id } => {
            let mut bytes = client.get_raw(&format!("{}/content", path(&id))).await?.bytes_stream();
            while let Some(piece) = bytes.next().await {
                write_bytes(&piece?)?;
            }
        }
        Action::Delete { id } => {
            client.delete(&path(&id)).await?;
            say!("{id} deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_list(list: &Value) -> anyhow::Result<()> {
    let mut out = table(&["ID", "PURPOSE", "SIZE", "ROWS", "CREATED", "NAME"]);
    for file in list["data"].as_array().into_iter().flatten() {
        out.add_row([
            text(&file["id"]),
            text(&file["purpose"]),
            size(file["bytes"].as_u64().unwrap_or(0)),
            text(&file["summary"]["rows"]),
            time(&file["created_at"]),
            text(&file["filename"]),
        ]);
    }
    say!("{out}");
    Ok(())
}
