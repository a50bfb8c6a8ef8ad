//! The history of a job as CSV: a column for each figure that any entry has.
//!
//! The metrics route answers it, and the worker writes the same as the job's result file.

use serde_json::Value;

/// Writes entries as rows; `step` and `epoch` come first, then the figures in the order of their first appearance.
pub fn write(history: &[Value]) -> String {
    let columns = columns(history);
    let mut csv = columns.iter().map(|c| cell(c)).collect::<Vec<_>>().join(",");
    csv.push('\n');
    for entry in history {
        let cells: Vec<String> = columns.iter().map(|c| figure(entry.get(c.as_str()))).collect();
        csv.push_str(&cells.join(","));
        csv.push('\n');
    }
    csv
}

fn columns(history: &[Value]) -> Vec<String> {
    let mut columns = vec!["step".to_owned(), "epoch".to_owned()];
    for (name, value) in history.iter().filter_map(Value::as_object).flatten() {
        // Figures of single classes are nested; the JSON form has them.
        if !value.is_object() && !value.is_array() && !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    columns
}

fn figure(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => cell(text),
        Some(other) => other.to_string(),
    }
}

fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_of_different_kinds_share_one_table() {
        let history = [
            json!({"epoch": 0.5, "loss": 0.7, "step": 10}),
            json!({"step": 20, "eval_loss": 0.5, "eval_per_class": {"a": 1}, "note": "a,\"b\""}),
        ];
        assert_eq!(write(&history), "step,epoch,loss,eval_loss,note\n10,0.5,0.7,,\n20,,,0.5,\"a,\"\"b\"\"\"\n");
    }

    #[test]
    fn an_empty_history_is_a_header() {
        assert_eq!(write(&[]), "step,epoch\n");
    }
}
