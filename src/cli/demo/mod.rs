//! `tunesmith demo`: the whole way on real weights and real text, by the HTTP API alone.
//!
//! Each demo pulls a model and sentences of four kinds, starts a server as a user would, trains a LoRA adapter, shows what came of
//! it, and prints the curl lines that do the same.

mod chat;
mod kinds;
mod sentences;
mod show;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tunesmith_hub::{Hub, HubConfig};

use super::client::{Client, ClientFlags};
use super::output::say;
use super::{pull, watch};

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to train
    #[arg(value_enum, default_value_t)]
    what: What,
    /// Where the demo's server keeps its files
    #[arg(long, value_name = "FOLDER", default_value = "tunesmith-data")]
    data_dir: PathBuf,
    /// Port of the demo's server; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Leave the server running at the end, until Ctrl-C
    #[arg(long)]
    serve: bool,
}

/// The demos.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum What {
    /// An encoder that tells four kinds of sentence apart
    #[default]
    Kinds,
    /// A small chat model that learns to answer in one way, asked before and after
    Chat,
}

/// Runs the demo.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    say!("1. Real weights and real text");
    let hub = Hub::new(HubConfig::from_env())?;
    let model = match args.what {
        What::Kinds => kinds::MODEL,
        What::Chat => chat::MODEL,
    };
    pull::fetch(&hub, model).await?;
    let archive = pull::fetch(&hub, sentences::DATA_SET).await?;
    let sentences = sentences::read(&archive.folder)?;

    say!("2. A server");
    let mut server = Server::start(&args).await?;
    say!("   {} (data in {})", server.url, args.data_dir.display());
    let (heading, url) = match args.serve {
        true => ("6. The same with curl".to_owned(), server.url.clone()),
        false => {
            (format!("6. The same with curl, beside `tunesmith serve --data-dir {}`", args.data_dir.display()), DEFAULT_URL.to_owned())
        }
    };
    let stage = Stage {
        client: Client::new(&ClientFlags { url: server.url.clone(), api_key: None })?,
        work: tempfile::tempdir()?,
        curl: (heading, url),
    };
    let done = match args.what {
        What::Kinds => kinds::run(&stage, &sentences).await,
        What::Chat => chat::run(&stage, &sentences).await,
    };
    if done.is_err() {
        server.stop().await?;
        done?;
    }
    say!("\nAll of it took {:.0} s.", started.elapsed().as_secs_f64());
    if args.serve {
        say!("The server goes on at {} until Ctrl-C.", server.url);
        server.child.wait().await?;
    } else {
        say!("The model stays: `tunesmith serve --data-dir {}` serves it again.", args.data_dir.display());
        server.stop().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a server listens that was started without flags.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// What a demo works with.
struct Stage {
    client: Client,
    work: tempfile::TempDir,
    /// A heading, and the address for the curl lines.
    curl: (String, String),
}

impl Stage {
    /// Uploads rows as a JSONL file and answers its id.
    async fn upload(&self, name: &str, rows: &[Value]) -> anyhow::Result<String> {
        let path = self.work.path().join(name);
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        tokio::fs::write(&path, text).await?;
        let file = self.client.upload(&path, "fine-tune").await?;
        Ok(file["id"].as_str().context("the server's answer has no id")?.to_owned())
    }

    /// Files a job and follows it; answers its id and its model's name.
    async fn train(&self, request: &Value) -> anyhow::Result<(String, String)> {
        let job = self.client.post("/v1/fine_tuning/jobs", request).await?;
        let id = job["id"].as_str().context("the server's answer has no id")?;
        let job = watch::follow(&self.client, id).await?;
        if job["status"] != "succeeded" {
            bail!("the job is {}: {}", job["status"], job["error"]["message"]);
        }
        Ok((id.to_owned(), job["fine_tuned_model"].as_str().context("the job has no model")?.to_owned()))
    }
}

/// The demo's server: this binary, as a user would start it.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    async fn start(args: &Args) -> anyhow::Result<Self> {
        let mut child = Command::new(crate::program::own_file()?)
            .arg("serve")
            .arg("--data-dir")
            .arg(&args.data_dir)
            .args(["--host", "127.0.0.1", "--port", &args.port.to_string(), "--log-level", "error"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("the server has no output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let url = line.as_deref().and_then(|l| l.rsplit(' ').next()).filter(|u| u.starts_with("http"));
        match url {
            Some(url) => Ok(Self { child, url: url.to_owned() }),
            None => bail!("the server did not start; the lines above say why"),
        }
    }

    /// Ends it as Ctrl-C would, and waits.
    async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        self.child.wait().await?;
        Ok(())
    }
}
