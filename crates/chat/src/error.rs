//! What can be wrong with a row, a message or a tool definition: the path of the value, what stood there, and what
//! belongs there. The data crate adds the line, the HTTP layer makes `param` of the path.

use serde_json::Value;

/// A value that is not what it should be, in words that a user can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}found {found}, expected {expected}", place(path))]
pub struct RowError {
    /// Where, as `messages[2].role`; empty for the whole row.
    pub path: String,
    /// What stood there, shortened: `null`, `the number 3`, `"bot"`.
    pub found: String,
    /// What belongs there, or what to do instead.
    pub expected: String,
}

fn place(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

impl RowError {
    /// `value` stood at `path` where `expected` belongs.
    pub fn new(path: impl Into<String>, value: &Value, expected: impl Into<String>) -> Self {
        Self::said(path, describe(value), expected)
    }

    /// The same with words for what was found, for things that are not one JSON value.
    pub fn said(path: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: path.into(), found: found.into(), expected: expected.into() }
    }

    /// A field that must be there and is not.
    pub fn missing(path: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::said(path, "nothing", expected)
    }
}

/// Characters of a user's string that an error shows.
const SHOWN: usize = 40;

/// A JSON value in a few words, for an error message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => quoted(s),
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) if map.is_empty() => "an empty object".to_owned(),
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().take(6).map(|k| shortened(k)).collect();
            let more = if map.len() > keys.len() { ", …" } else { "" };
            format!("an object with {}{more}", keys.join(", "))
        }
    }
}

/// A string in quotes, shortened.
pub(crate) fn quoted(s: &str) -> String {
    format!("{:?}", shortened(s))
}

fn shortened(s: &str) -> String {
    match s.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &s[..end]),
        None => s.to_owned(),
    }
}

/// Why a chat template could not be read or did not give a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The source is longer than any real template.
    #[error("the chat template has {bytes} bytes, more than the {limit} that are read")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What is read.
        limit: usize,
    },
    /// The source is no template; found when a model is loaded.
    #[error("the chat template{named} cannot be compiled, line {line}: {message}")]
    Syntax {
        /// ` "tool_use"` where a model has several.
        named: String,
        /// Line of the source.
        line: usize,
        /// What the engine says.
        message: String,
    },
    /// A model's list of templates has none for this use.
    #[error("the model has chat templates named {present}, and none of them is {wanted}")]
    NoSuchTemplate {
        /// What was looked for.
        wanted: &'static str,
        /// What there is.
        present: String,
    },
    /// `chat_template` in the tokenizer's configuration has no form that is known.
    #[error("chat_template of the tokenizer's configuration: {0}")]
    Malformed(RowError),
    /// The template refused the conversation, in its own words (`raise_exception`).
    #[error("{0}")]
    Raised(String),
    /// The template failed: a filter that does not exist, a field of nothing.
    #[error("the chat template failed at line {line}: {message}")]
    Failed {
        /// Line of the source.
        line: usize,
        /// What the engine says.
        message: String,
    },
    /// The template used more than it may.
    #[error("the chat template was stopped: it {0}")]
    Limit(String),
    /// There is nothing to render.
    #[error("the conversation has no messages")]
    NoMessages,
    /// `continue_final_message` cannot be done here.
    #[error("continue_final_message: {0}")]
    Continue(&'static str),
    /// Where the assistant's words stand in the text could not be found.
    #[error(
        "messages[{index}]: the assistant's words cannot be found in what the chat template makes of the \
             conversation ({reason}); give the template {{% generation %}} blocks"
    )]
    Lost {
        /// Which message.
        index: usize,
        /// What went wrong in looking for it.
        reason: &'static str,
    },
}
