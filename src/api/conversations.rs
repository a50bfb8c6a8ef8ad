//! Conversations in uploaded files: each row is read as training will read it, so that what is wrong is told with line and field
//! before a job exists.
//!
//! Called by `upload.rs`. Lists of messages can be nothing else, nor can their columns alone, so their faults refuse the file. Other
//! columns of a conversation's form (`prompt` and `completion`, say) may be meant for another task; their faults are kept in the file's
//! summary, and refuse the job that reads them as conversations.

use serde_json::Value;
use tunesmith_chat::{RowFormat, detect, parse_row};
use tunesmith_data::{Problem, Row, listing};

/// Problems that are listed; the rest is counted.
const LISTED: usize = 20;

/// Reads rows as conversations, if the first one has such a form.
#[derive(Default)]
pub struct Conversations {
    began: bool,
    format: Option<RowFormat>,
    /// Whether the rows can be nothing but conversations.
    certain: bool,
    problems: Vec<Problem>,
    total: u64,
}

impl Conversations {
    /// Looks at the next row; answers what is wrong with it if that refuses the file.
    pub fn check(&mut self, row: &Row) -> Vec<Problem> {
        if !self.began {
            self.begin(row);
        }
        let Some(format) = self.format else { return Vec::new() };
        let Err(fault) = parse_row(format, &row.values) else { return Vec::new() };
        let problem = Problem::of_field(row.line, &fault.path, format!("is {}", fault.found), fault.expected);
        if self.certain {
            return vec![problem];
        }
        self.total += 1;
        if self.problems.len() < LISTED {
            self.problems.push(problem);
        }
        Vec::new()
    }

    fn begin(&mut self, row: &Row) {
        self.began = true;
        let columns: Vec<&str> = row.values.keys().map(String::as_str).collect();
        self.format = detect(&columns);
        let list = match self.format {
            Some(RowFormat::Messages) => "messages",
            Some(RowFormat::ShareGpt) => "conversations",
            _ => return,
        };
        // Texts beside a column of labels are perhaps to be classified; nothing, numbers and objects are not, nor are texts alone.
        let is_text = row.values.get(list).is_some_and(Value::is_string);
        self.certain = !is_text || columns.iter().all(|name| [list, "tools", "system"].contains(name));
    }

    /// What is wrong with rows that only might be conversations.
    pub fn faults(self) -> Option<String> {
        (self.total > 0).then(|| listing(&self.problems, self.total))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn check(rows: &[Value]) -> (Vec<Problem>, Option<String>) {
        let mut all = Conversations::default();
        let row = |(i, v): (usize, &Value)| Row { line: i as u64 + 1, values: v.as_object().unwrap().clone() };
        let refused = rows.iter().enumerate().flat_map(|r| all.check(&row(r))).collect();
        (refused, all.faults())
    }

    #[test]
    fn lists_of_messages_are_refused_and_texts_that_may_be_labels_are_remembered() {
        let good = json!({"messages": [{"role": "assistant", "content": "a"}]});
        let (refused, faults) = check(&[good, json!({"messages": [{"role": "bot", "content": "a"}]})]);
        assert_eq!((refused[0].line, refused[0].field.as_deref(), faults), (2, Some("messages[0].role"), None));
        for wrong in [json!({"messages": "x"}), json!({"messages": null}), json!({"messages": {"role": "user"}, "label": "a"})] {
            assert_eq!(check(std::slice::from_ref(&wrong)).0[0].field.as_deref(), Some("messages"), "{wrong}");
        }
        let (refused, faults) = check(&[json!({"messages": "Win a prize!", "label": "spam"})]);
        assert!(refused.is_empty() && faults.is_some());
        let (refused, faults) = check(&[json!({"prompt": "good", "completion": 1}), json!({"prompt": "bad", "completion": "x"})]);
        assert!(refused.is_empty() && faults.unwrap().contains("line 1: field \"completion\""));
        assert_eq!(check(&[json!({"text": "a", "label": 3})]), (Vec::new(), None));
    }
}
