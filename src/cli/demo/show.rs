//! What the demo prints: figures, the confusion matrix, answers, curl lines.

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use serde_json::Value;

use crate::cli::output::say;

/// The final evaluation and the confusion matrix.
pub fn metrics(metrics: &Value) -> anyhow::Result<()> {
    let evaluation = &metrics["report"]["evaluation"];
    let figure = |name: &str| evaluation[name].as_f64().unwrap_or(f64::NAN);
    say!(
        "   accuracy {:.3}, F1 {:.3} (macro), loss {:.3}; trained {:.1} s, {} of {} parameters, {} MiB at the peak",
        figure("eval_accuracy"),
        figure("eval_f1"),
        figure("eval_loss"),
        metrics["duration_seconds"].as_f64().unwrap_or(f64::NAN),
        metrics["trainable_parameters"],
        metrics["total_parameters"],
        metrics["peak_memory_bytes"].as_u64().unwrap_or(0) >> 20,
    );
    let labels: Vec<&str> = strings(&metrics["confusion_matrix"]["labels"]);
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(std::iter::once("true \\ predicted").chain(labels.iter().copied()));
    for (label, row) in labels.iter().zip(metrics["confusion_matrix"]["matrix"].as_array().into_iter().flatten()) {
        let counts = row.as_array().into_iter().flatten().map(|n| Cell::new(n).set_alignment(CellAlignment::Right));
        table.add_row(std::iter::once(Cell::new(label)).chain(counts));
    }
    say!("{table}");
    Ok(())
}

/// Each text with its label.
pub fn answers(texts: &[&str], answer: &Value) -> anyhow::Result<()> {
    for (text, one) in texts.iter().zip(answer["data"].as_array().into_iter().flatten()) {
        say!("   {:>14} {:.2}  {text}", one["label"].as_str().unwrap_or("?"), one["score"].as_f64().unwrap_or(0.0));
    }
    Ok(())
}

/// The commands that do what the demo did, under a heading, at an address.
pub fn curl((heading, url): &(String, String), job: &Value, path: &str, question: &Value) -> anyhow::Result<()> {
    let quoted = |json: &Value| json.to_string().replace('\'', "'\\''");
    say!("{heading}");
    say!("   curl {url}/v1/files -F purpose=fine-tune -F file=@train.jsonl");
    say!("   curl {url}/v1/fine_tuning/jobs -H 'content-type: application/json' -d '{}'", quoted(job));
    say!("   curl {url}{path} -H 'content-type: application/json' -d '{}'", quoted(question));
    Ok(())
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
