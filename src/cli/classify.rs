//! `tunesmith classify`: asks a classifier, or a language model with labels, from the command line, one text a line.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::{Client, ClientFlags};
use super::output::say;
use super::table::{table, text};

/// Texts of one request; the server takes up to 2,048.
const BATCH: usize = 256;

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    client: ClientFlags,
    /// The model
    #[arg(long)]
    model: String,
    /// Labels to print for each text
    #[arg(long, default_value_t = 1)]
    top_k: usize,
    /// For a language model: the labels to choose from, separated by commas
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// Print the server's JSON, one object a text
    #[arg(long)]
    json: bool,
    /// The texts; without any they are read from standard input, one a line
    texts: Vec<String>,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let texts = match args.texts.is_empty() {
        false => args.texts,
        true => {
            anyhow::ensure!(!std::io::stdin().is_terminal(), "give the texts as arguments, or pipe them in, one a line");
            std::io::stdin().lock().lines().collect::<Result<Vec<String>, _>>()?
        }
    };
    for batch in texts.chunks(BATCH) {
        let mut body = json!({"model": args.model, "input": batch, "top_k": args.top_k});
        if !args.labels.is_empty() {
            body["labels"] = json!(args.labels);
        }
        let answer = client.post("/v1/classify", &body).await?;
        print(batch, answer["data"].as_array().map_or(&[], Vec::as_slice), args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(texts: &[String], answers: &[Value], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        for answer in answers {
            say!("{answer}");
        }
        return Ok(());
    }
    let mut out = table(&["LABEL", "SCORE", "TEXT"]);
    for (asked, answer) in texts.iter().zip(answers) {
        let scores = answer["scores"].as_array().cloned().unwrap_or_default();
        for (i, score) in scores.iter().enumerate() {
            let shown = if i == 0 { asked.as_str() } else { "" };
            let number = score["score"].as_f64().map_or(String::new(), |s| format!("{s:.4}"));
            out.add_row([text(&score["label"]), number, shown.to_owned()]);
        }
    }
    say!("{out}");
    Ok(())
}
