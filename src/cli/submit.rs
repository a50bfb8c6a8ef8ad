//! `tunesmith submit`: files a fine-tuning job from the command line.
//!
//! Files are uploaded first where a path is given; every field of the request can be set by its path, as in
//! `--set training.learning_rate=1e-3`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::client::{Client, ClientFlags};
use super::output::say;
use super::{jobs, watch};

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    client: ClientFlags,
    /// The base model
    #[arg(long)]
    model: String,
    /// File to train on: a path, or the id of an uploaded file
    #[arg(long, value_name = "FILE")]
    training_file: String,
    /// File to evaluate on: a path, or an id
    #[arg(long, value_name = "FILE")]
    validation_file: Option<String>,
    /// Part of the new model's name
    #[arg(long)]
    suffix: Option<String>,
    /// Seed of everything that is drawn
    #[arg(long)]
    seed: Option<u64>,
    /// full, lora or head
    #[arg(long, value_name = "TYPE")]
    tuning: Option<String>,
    /// Any field of the request, for example training.num_train_epochs=2
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Files one job, however often the command is repeated with this key
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Follow the job with a progress bar
    #[arg(long)]
    watch: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let mut uploaded = Vec::new();
    let answer = file_job(&client, &args, &mut uploaded).await;
    // Without a job nobody would know of them; a job that was filed after all keeps its files.
    let filed = answer.as_ref().is_ok_and(|job| job["dry_run"] != true);
    if !filed {
        for id in uploaded {
            client.delete(&format!("/v1/files/{id}")).await.ok();
        }
    }
    let job = answer?;
    if !filed {
        say!("{job:#}");
        return Ok(ExitCode::SUCCESS);
    }
    jobs::print_state(&job)?;
    if !args.watch {
        return Ok(ExitCode::SUCCESS);
    }
    let id = job["id"].as_str().context("the server's answer has no id")?;
    let job = watch::follow(&client, id).await?;
    jobs::print_state(&job)?;
    Ok(watch::exit_code(&job))
}

/// Uploads what has to be, and files the job; the answer is the job, or what a dry run found.
async fn file_job(client: &Client, args: &Args, uploaded: &mut Vec<String>) -> anyhow::Result<Value> {
    let mut request = json!({"model": args.model});
    let simple = [
        ("suffix", args.suffix.clone().map(Value::from)),
        ("seed", args.seed.map(Value::from)),
        ("tuning", args.tuning.as_ref().map(|t| json!({"type": t}))),
    ];
    for (name, value) in simple {
        if let Some(value) = value {
            request[name] = value;
        }
    }
    for assignment in &args.set {
        set(&mut request, assignment)?;
    }
    request["training_file"] = file_id(client, &args.training_file, uploaded).await?.into();
    if let Some(file) = &args.validation_file {
        request["validation_file"] = file_id(client, file, uploaded).await?.into();
    }
    client.post_once("/v1/fine_tuning/jobs", &request, args.idempotency_key.as_deref()).await
}
/// Uploads what is a path, and notes its id; anything else is an id.
async fn file_id(client: &Client, file: &str, uploaded: &mut Vec<String>) -> anyhow::Result<String> {
    if !Path::new(file).exists() {
        anyhow::ensure!(file.starts_with("file-"), "{file} is neither a file here nor the id of an uploaded one");
        return Ok(file.to_owned());
    }
    let answer = client.upload(Path::new(file), "fine-tune").await.with_context(|| format!("uploading {file}"))?;
    let id = answer["id"].as_str().context("the server's answer has no id")?;
    uploaded.push(id.to_owned());
    Ok(id.to_owned())
}

/// Puts `a.b=value` into the request; the value is JSON if it can be read so, else text.
fn set(request: &mut Value, assignment: &str) -> anyhow::Result<()> {
    let (path, text) = assignment.split_once('=').with_context(|| format!("--set {assignment}: write it as path=value"))?;
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let mut place = request;
    for name in path.split('.') {
        anyhow::ensure!(!name.is_empty(), "--set {assignment}: the path has an empty part");
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let object =
            place.as_object_mut().with_context(|| format!("--set {assignment}: {name} stands below something that is no section"))?;
        place = object.entry(name).or_insert(Value::Null);
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn any_field_can_be_set_by_its_path() {
        let mut request = json!({"model": "m"});
        set(&mut request, "training.learning_rate=1e-3").unwrap();
        set(&mut request, "training.dtype=f32").unwrap();
        set(&mut request, "data.labels=[\"a\",\"b\"]").unwrap();
        assert_eq!(request, json!({"model": "m", "training": {"learning_rate": 1e-3, "dtype": "f32"}, "data": {"labels": ["a", "b"]}}));
        assert!(set(&mut request, "model.x=1").is_err());
        assert!(set(&mut request, "novalue").is_err());
    }
}
