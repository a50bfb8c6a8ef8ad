//! `tunesmith demo`: the whole way on real weights and real text, by the HTTP API alone.
//!
//! It pulls an encoder and 4,000 sentences of four kinds, starts a server as a user would, trains a LoRA adapter, shows
//! what came of it, and prints the curl lines that do the same.

mod sentences;
mod show;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tunesmith_hub::{Hub, HubConfig};

use super::client::{Client, ClientFlags, segment};
use super::output::say;
use super::{pull, watch};

/// The encoder.
const MODEL: &str = "all-minilm-l6-v2";

/// Sentences that nobody has trained on, to try the model with.
const NEW_TEXTS: [&str; 4] = [
    "omg cant believe its friday already, who's up for pizza tonite?? :)",
    "The cinematography is gorgeous, but the plot collapses in the final act.",
    "Battery lasts two days and the screen is sharp; the case scratches easily though.",
    "The Senate should reject the bill, which would weaken protections for tenants across the state.",
];

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
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

/// Runs the demo.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    say!("1. Real weights and real text");
    let hub = Hub::new(HubConfig::from_env())?;
    pull::fetch(&hub, MODEL).await?;
    let archive = pull::fetch(&hub, sentences::DATA_SET).await?;
    let work = tempfile::tempdir()?;
    let data = sentences::write(&archive.folder, work.path())?;
    say!("   {} sentences to train on, {} to evaluate on: {}", data.train_rows, data.eval_rows, data.labels.join(", "));

    say!("2. A server");
    let mut server = Server::start(&args).await?;
    say!("   {} (data in {})", server.url, args.data_dir.display());
    let client = Client::new(&ClientFlags { url: server.url.clone(), api_key: None })?;

    say!("3. A fine-tuning job");
    let (heading, url) = match args.serve {
        true => ("6. The same with curl".to_owned(), server.url.as_str()),
        false => {
            (format!("6. The same with curl, beside `tunesmith serve --data-dir {}`", args.data_dir.display()), "http://127.0.0.1:8080")
        }
    };
    let result = train_and_ask(&client, &data, &heading, url).await;
    match result {
        Ok(code) => {
            say!("\nAll of it took {:.0} s.", started.elapsed().as_secs_f64());
            if args.serve {
                say!("The server goes on at {} until Ctrl-C.", server.url);
                server.child.wait().await?;
            } else {
                say!("The model stays: `tunesmith serve --data-dir {}` serves it again.", args.data_dir.display());
                server.stop().await?;
            }
            Ok(code)
        }
        Err(error) => {
            server.stop().await?;
            Err(error)
        }
    }
}

async fn train_and_ask(client: &Client, data: &sentences::Data, heading: &str, url: &str) -> anyhow::Result<ExitCode> {
    let train = upload(client, &data.train).await?;
    let eval = upload(client, &data.eval).await?;
    let request = request(&train, &eval);
    let job = client.post("/v1/fine_tuning/jobs", &request).await?;
    let id = job["id"].as_str().context("the server's answer has no id")?;
    let job = watch::follow(client, id).await?;
    if job["status"] != "succeeded" {
        bail!("the job is {}: {}", job["status"], job["error"]["message"]);
    }
    let model = job["fine_tuned_model"].as_str().context("the job has no model")?;

    say!("\n4. What came of it: {model}");
    let metrics = client.get(&format!("/v1/fine_tuning/jobs/{}/metrics", segment(id))).await?;
    show::metrics(&metrics)?;

    say!("5. Sentences that it has never seen");
    let answer = client.post("/v1/classify", &json!({"model": model, "input": NEW_TEXTS})).await?;
    show::answers(&NEW_TEXTS, &answer)?;

    say!("{heading}");
    show::curl(url, &request, model, NEW_TEXTS[0])?;
    Ok(ExitCode::SUCCESS)
}

fn request(train: &str, eval: &str) -> Value {
    json!({
        "model": MODEL, "training_file": train, "validation_file": eval, "suffix": "kinds-of-text", "seed": 0,
        "tuning": {"type": "lora", "r": 8, "lora_alpha": 16},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-3, "max_length": 128},
    })
}

async fn upload(client: &Client, path: &std::path::Path) -> anyhow::Result<String> {
    let file = client.upload(path, "fine-tune").await?;
    Ok(file["id"].as_str().context("the server's answer has no id")?.to_owned())
}

/// The demo's server: this binary, as a user would start it.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    async fn start(args: &Args) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
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
