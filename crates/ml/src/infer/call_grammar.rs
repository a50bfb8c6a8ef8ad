//! The grammar of an answer that may call functions: text as the model likes, and calls that are whole. What stands between
//! a call's marks keeps to a schema from the mark on, so a small model calls no function that does not exist.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::constraint::Grammar;

/// White space between a mark and the call.
const GAP: &str = r"GAP: /[ \n]{0,2}/";

/// Any text.
const TEXT: &str = r"TEXT: /(.|\n)*/";

/// What begins like a call that has no mark: a text that begins so is no text but a call.
const LIKE_A_CALL: &str = r#"/[ \n]*\{[ \n]*"name"(.|\n)*/"#;

/// A mark that some models write before a call that needs none.
const PYTHON_TAG: &str = "<|python_tag|>";

/// How calls stand in an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct CallGrammar {
    /// The mark before a call; empty where a call is the whole answer. One that is a special token of the tokenizer is that token.
    pub open: &'static str,
    /// The JSON schema of what stands between the marks.
    pub schema: Value,
    /// The mark behind a call; empty where that is the answer's end.
    pub close: &'static str,
    /// What else may be said.
    pub beside: Beside,
    /// Whether there may be calls after the first.
    pub several: bool,
}

/// What an answer may say that is no call.
#[derive(Debug, Clone, PartialEq)]
pub enum Beside {
    /// Nothing: the answer is calls alone.
    Nothing,
    /// Any text.
    Text,
    /// What keeps to this, instead of calls.
    Format(Box<Grammar>),
}

impl CallGrammar {
    /// The grammar in llguidance's spelling of Lark. `special` has the special tokens by their text; `call` and `told` are the right
    /// sides of the rules for a call and for what [`Beside::Format`] asks for.
    pub(super) fn lark(&self, special: &BTreeMap<String, usize>, call: &str, told: &str) -> String {
        let mark = |text: &str| match special.get(text) {
            Some(id) => format!("<[{id}]>"),
            None => Value::from(text).to_string(),
        };
        let close = if self.close.is_empty() { String::new() } else { mark(self.close) };
        let several = self.several && !self.close.is_empty();
        let mut rules = vec![format!("value: GAP {call} GAP"), GAP.to_owned()];
        let by_token = special.contains_key(self.open);
        if self.beside != Beside::Text || by_token || self.open.is_empty() {
            let open = if self.open.is_empty() { String::new() } else { mark(self.open) };
            rules.push(format!("call: {open} value {close}"));
        } else {
            // The mark is found wherever text writes it.
            rules.push(format!("call: opened value {close}\nopened[lazy]: /(.|\\n)*/ {}", mark(self.open)));
        }
        let others: Vec<usize> = special.iter().filter(|(text, _)| **text != self.open).map(|(_, id)| *id).collect();
        let others = ranges(&others);
        let calls = if several { "call (GAP call)*" } else { "call" };
        let start = match &self.beside {
            Beside::Nothing => calls.to_owned(),
            Beside::Format(_) => {
                rules.push(format!("told: {told}"));
                format!("told | {calls}")
            }
            Beside::Text => {
                rules.push(TEXT.to_owned());
                let text = if others.is_empty() { "TEXT".to_owned() } else { format!("TEXT (<[{others}]> TEXT)*") };
                match (self.open.is_empty(), by_token, several) {
                    (true, ..) => {
                        let python = special.get(PYTHON_TAG).map_or_else(String::new, |id| format!("<[{id}]>?"));
                        rules.push(format!("FIRST: TEXT & ~{LIKE_A_CALL}"));
                        format!("FIRST | {python} call")
                    }
                    (false, true, true) => format!("{text} (call {text})*"),
                    (false, true, false) => format!("{text} call?"),
                    (false, false, true) => format!("call* {text}"),
                    (false, false, false) => format!("call | {text}"),
                }
            }
        };
        let mut lark = format!("start: {start}\n");
        for rule in rules {
            // A string takes any text.
            let _ = writeln!(lark, "{rule}");
        }
        lark
    }
}

/// Numbers as `1-4,7`.
fn ranges(ids: &[usize]) -> String {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    let mut out: Vec<(usize, usize)> = Vec::new();
    for id in ids {
        match out.last_mut() {
            Some((_, end)) if *end + 1 == id => *end = id,
            _ => out.push((id, id)),
        }
    }
    let one = |(from, to): &(usize, usize)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    out.iter().map(one).collect::<Vec<_>>().join(",")
}
