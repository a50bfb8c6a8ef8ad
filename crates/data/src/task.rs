//! Which task a data set is made for, from the names of its columns. The API asks when a job request names no task.

use crate::summary::Summary;

/// The task that the columns of a file suggest; `None` if they suggest none, and the request must name it.
pub fn infer_task(summary: &Summary) -> Option<&'static str> {
    let has = |name: &str| summary.column(name).is_some();
    let either = |names: &[&str]| names.iter().any(|name| has(name));
    if has("question") && has("context") {
        Some("extractive_qa")
    } else if has("tokens") && either(&["tags", "ner_tags", "pos_tags", "labels"]) {
        Some("token_classification")
    } else if has("text") && has("label") {
        Some("classification")
    } else if either(&["messages", "conversations"])
        || (has("prompt") && has("completion"))
        || (has("instruction") && either(&["output", "response"]))
    {
        Some("instruction")
    } else if has("text") {
        Some("causal_lm")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::summary::ColumnSummary;

    fn task_of(columns: &[&str]) -> Option<&'static str> {
        let column = |name: &&str| ColumnSummary { name: (*name).to_owned(), ..ColumnSummary::default() };
        infer_task(&Summary {
            format: Format::Jsonl,
            gzip: false,
            rows: 1,
            columns: columns.iter().map(column).collect(),
            sha256: String::new(),
            duplicates: 0,
            duplicates_capped: false,
            conversation_faults: None,
        })
    }

    #[test]
    fn the_task_follows_from_the_columns() {
        for (columns, task) in [
            (["id", "text", "label"].as_slice(), Some("classification")),
            (&["messages"], Some("instruction")),
            (&["prompt", "completion"], Some("instruction")),
            (&["id", "conversations"], Some("instruction")),
            (&["instruction", "input", "output"], Some("instruction")),
            (&["text"], Some("causal_lm")),
            (&["tokens", "ner_tags"], Some("token_classification")),
            (&["id", "question", "context", "answers"], Some("extractive_qa")),
            (&["prompt", "chosen", "rejected"], None),
            (&["sentence", "label"], None),
        ] {
            assert_eq!(task_of(columns), task, "{columns:?}");
        }
    }
}
