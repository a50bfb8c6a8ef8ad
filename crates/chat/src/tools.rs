//! Tools: definitions in requests, and calls in what a model writes, in the spellings of the families that call them.

use serde_json::{Value, json};

use crate::error::RowError;
use crate::message::{Message, ToolCall};

/// How a family spells calls of tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name", "arguments"}</tool_call>`: Hermes, Qwen, SmolLM.
    Hermes,
    /// `[TOOL_CALLS] [{"name", "arguments"}]`: Mistral.
    Mistral,
    /// The whole answer is `{"name", "parameters"}`: Llama 3.
    Llama,
}

impl ToolFormat {
    /// The spelling that a chat template teaches, or nothing if it knows of no tools.
    pub fn of_template(source: &str) -> Option<Self> {
        match () {
            () if !source.contains("tools") => None,
            () if source.contains("<tool_call>") => Some(Self::Hermes),
            () if source.contains("[TOOL_CALLS]") => Some(Self::Mistral),
            () if source.contains("\"parameters\"") || source.contains("<|python_tag|>") => Some(Self::Llama),
            () => None,
        }
    }

    /// How a call of one of these functions is spelled, definitions as requests have them; of `several` where the family writes
    /// them as one list. Arguments keep to their function's schema where `strictly`, or where its definition asks for it; else
    /// they are some JSON object.
    pub fn call_form(self, functions: &[Value], strictly: bool, several: bool) -> CallForm {
        let arguments = if self == Self::Llama { "parameters" } else { "arguments" };
        let list = if self == Self::Mistral { "/items" } else { "" };
        let call = |(i, tool): (usize, &Value)| {
            let function = &tool["function"];
            let choice = if functions.len() == 1 { String::new() } else { format!("/anyOf/{i}") };
            let parameters = match &function["parameters"] {
                schema @ Value::Object(_) if strictly || function["strict"] == true => {
                    moved(schema, &format!("{list}{choice}/properties/{arguments}"))
                }
                _ => json!({"type": "object"}),
            };
            json!({
                "type": "object",
                "properties": {"name": {"const": function["name"]}, arguments: parameters},
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        };
        let mut calls: Vec<Value> = functions.iter().enumerate().map(call).collect();
        let mut schema = if calls.len() == 1 { calls.remove(0) } else { json!({"anyOf": calls}) };
        if self == Self::Mistral {
            schema = json!({"type": "array", "items": schema, "minItems": 1});
            if !several {
                schema["maxItems"] = json!(1);
            }
        }
        let (open, close) = self.marks();
        CallForm { open, schema, close }
    }

    /// What begins a call, and what ends it; an end of nothing is the end of the answer.
    fn marks(self) -> (&'static str, &'static str) {
        match self {
            Self::Hermes => ("<tool_call>", "</tool_call>"),
            Self::Mistral => ("[TOOL_CALLS]", ""),
            Self::Llama => ("", ""),
        }
    }
}

/// How a call is spelled.
#[derive(Debug, Clone, PartialEq)]
pub struct CallForm {
    /// The mark before it; empty where a call is the whole answer.
    pub open: &'static str,
    /// The JSON schema of the call.
    pub schema: Value,
    /// The mark behind it; empty where that is the answer's end.
    pub close: &'static str,
}

/// A schema as a part of another one, at `place`: what it refers to in itself has moved with it.
fn moved(schema: &Value, place: &str) -> Value {
    match schema {
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                let own = value.as_str().and_then(|v| v.strip_prefix('#')).filter(|_| key == "$ref");
                let value = own.map_or_else(|| moved(value, place), |rest| Value::from(format!("#{place}{rest}")));
                (key.clone(), value)
            };
            Value::Object(map.iter().map(entry).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| moved(item, place)).collect()),
        other => other.clone(),
    }
}

/// Checks definitions of tools.
///
/// # Errors
/// With the path of what is wrong, such as `[0].function.name`.
pub fn check_tools(tools: &[Value]) -> Result<(), RowError> {
    for (i, tool) in tools.iter().enumerate() {
        let kind = tool.get("type").unwrap_or(&Value::Null);
        if kind != "function" {
            return Err(RowError::new(format!("[{i}].type"), kind, "\"function\": a local model has no tools of its own"));
        }
        let function = tool.get("function").unwrap_or(&Value::Null);
        let name = function.get("name").unwrap_or(&Value::Null);
        let plain = |n: &str| (1..=64).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if !name.as_str().is_some_and(plain) {
            return Err(RowError::new(format!("[{i}].function.name"), name, "1 to 64 letters, digits, _ and -"));
        }
        if tools[..i].iter().any(|other| &other["function"]["name"] == name) {
            return Err(RowError::new(format!("[{i}].function.name"), name, "a name that no other tool has"));
        }
        let at = |key: &str| format!("[{i}].function.{key}");
        for (key, value) in function.as_object().into_iter().flatten() {
            match (key.as_str(), value) {
                ("name", _) | ("description" | "strict" | "parameters", Value::Null) | ("description", Value::String(_)) => {}
                ("strict", Value::Bool(_)) => {}
                ("parameters", Value::Object(schema)) => match schema.get("type") {
                    None => {}
                    Some(kind) if kind == "object" => {}
                    Some(other) => return Err(RowError::new(at("parameters.type"), other, "\"object\": arguments have names")),
                },
                ("description", other) => return Err(RowError::new(at(key), other, "a string")),
                ("strict", other) => return Err(RowError::new(at(key), other, "true or false")),
                ("parameters", other) => return Err(RowError::new(at(key), other, "a JSON schema of type object")),
                (_, other) => {
                    let expected = "no such field; a function has name, description, parameters, strict";
                    return Err(RowError::new(at(key), other, expected));
                }
            }
        }
    }
    Ok(())
}

/// The first message whose calls do not stand in `rendered`, what a template made of a conversation: as in transformers, a template
/// that knows no calls leaves them out without a word, and a model would read an answer to a question that it never asked.
pub fn left_out_call(messages: &[Message], rendered: &str) -> Option<usize> {
    messages.iter().position(|message| !message.tool_calls.iter().all(|call| rendered.contains(&call.name)))
}

/// A call, if the text is one.
fn call(text: &str) -> Option<ToolCall> {
    call_of(&serde_json::from_str(text.trim()).ok()?)
}

fn call_of(value: &Value) -> Option<ToolCall> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
    let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
    Some(ToolCall { id: value.get("id").and_then(Value::as_str).map(str::to_owned), name, arguments })
}

/// The calls in a whole answer, and the text around them. What looks like a call and is none stays text.
pub fn parse_tool_calls(format: ToolFormat, answer: &str) -> (String, Vec<ToolCall>) {
    let mut stream = ToolStream::new(format);
    let mut pieces = stream.push(answer);
    pieces.extend(stream.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            StreamPiece::Text(t) => text.push_str(&t),
            StreamPiece::Call(c) => calls.push(c),
        }
    }
    if !calls.is_empty() {
        text = text.trim().to_owned();
    }
    (text, calls)
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamPiece {
    /// Text that is certainly no part of a call.
    Text(String),
    /// A whole call.
    Call(ToolCall),
}

/// Tells text and calls apart while an answer comes in; nothing of it is lost.
pub struct ToolStream {
    format: ToolFormat,
    held: String,
    /// Whether anything came out as text already.
    began: bool,
}

impl ToolStream {
    /// A stream at its beginning.
    pub fn new(format: ToolFormat) -> Self {
        Self { format, held: String::new(), began: false }
    }

    /// Takes more of the answer.
    pub fn push(&mut self, text: &str) -> Vec<StreamPiece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        match self.format {
            ToolFormat::Hermes => self.push_marked(&mut out),
            ToolFormat::Mistral => {
                if !self.held.contains("[TOOL_CALLS]") {
                    self.release(self.held.len() - beginning_of("[TOOL_CALLS]", &self.held), &mut out);
                }
            }
            // A call is the whole answer, so an answer that does not begin like one is text.
            ToolFormat::Llama => {
                let start = self.held.trim_start();
                let open = start.is_empty()
                    || start.starts_with('{')
                    || "<|python_tag|>".starts_with(start)
                    || start.starts_with("<|python_tag|>");
                if self.began || !open {
                    self.release(self.held.len(), &mut out);
                }
            }
        }
        out
    }

    fn push_marked(&mut self, out: &mut Vec<StreamPiece>) {
        let (open, close) = self.format.marks();
        loop {
            let Some(at) = self.held.find(open) else {
                let keep = beginning_of(open, &self.held);
                return self.release(self.held.len() - keep, out);
            };
            self.release(at, out);
            let Some(end) = self.held.find(close) else { return };
            let whole: String = self.held.drain(..end + close.len()).collect();
            match call(&whole[open.len()..end]) {
                Some(call) => out.push(StreamPiece::Call(call)),
                None => self.text(whole, out),
            }
        }
    }

    /// Lets the first `n` bytes go as text.
    fn release(&mut self, n: usize, out: &mut Vec<StreamPiece>) {
        let text: String = self.held.drain(..n).collect();
        self.text(text, out);
    }

    fn text(&mut self, text: String, out: &mut Vec<StreamPiece>) {
        if !text.is_empty() {
            self.began = true;
            out.push(StreamPiece::Text(text));
        }
    }

    /// The answer has ended: what is left.
    pub fn finish(&mut self) -> Vec<StreamPiece> {
        let mut out = Vec::new();
        let held = std::mem::take(&mut self.held);
        let calls = match self.format {
            // A model that stops at its end token may leave out the last mark.
            ToolFormat::Hermes => held.strip_prefix("<tool_call>").and_then(call).map(|c| vec![c]),
            ToolFormat::Mistral => held.split_once("[TOOL_CALLS]").and_then(|(before, list)| {
                let calls = list_of(list)?;
                self.text(before.to_owned(), &mut out);
                Some(calls)
            }),
            ToolFormat::Llama => {
                let plain = held.trim().trim_start_matches("<|python_tag|>");
                call(plain).map(|c| vec![c]).or_else(|| list_of(plain))
            }
        };
        match calls {
            Some(calls) => out.extend(calls.into_iter().map(StreamPiece::Call)),
            None => self.text(held, &mut out),
        }
        out
    }
}

/// A list of calls, if the text is one.
fn list_of(text: &str) -> Option<Vec<ToolCall>> {
    let list: Vec<Value> = serde_json::from_str(text.trim()).ok()?;
    (!list.is_empty()).then(|| list.iter().map(call_of).collect())?
}

/// How many bytes at the end of `text` may be the beginning of `mark`.
fn beginning_of(mark: &str, text: &str) -> usize {
    (1..mark.len()).rev().find(|n| mark.is_char_boundary(*n) && text.ends_with(&mark[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer in pieces of every size gives the same.
    fn parts(format: ToolFormat, answer: &str) -> (String, Vec<(String, String)>) {
        let mut all = Vec::new();
        for size in [1, 2, 3, 7, answer.len().max(1)] {
            let mut stream = ToolStream::new(format);
            let (mut text, mut calls) = (String::new(), Vec::new());
            let chars: Vec<char> = answer.chars().collect();
            let mut pieces: Vec<StreamPiece> = chars.chunks(size).flat_map(|c| stream.push(&c.iter().collect::<String>())).collect();
            pieces.extend(stream.finish());
            for piece in pieces {
                match piece {
                    StreamPiece::Text(t) => text.push_str(&t),
                    StreamPiece::Call(c) => calls.push((c.name, c.arguments)),
                }
            }
            all.push((text, calls));
        }
        assert!(all.windows(2).all(|w| w[0] == w[1]), "{all:?}");
        all.remove(0)
    }

    fn f() -> (String, String) {
        ("f".to_owned(), r#"{"x":1}"#.to_owned())
    }

    #[test]
    fn calls_are_told_from_text_in_every_spelling() {
        let hermes = r#"Let me see. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#;
        assert_eq!(parts(ToolFormat::Hermes, hermes), ("Let me see. \n".to_owned(), vec![f(), f()]));
        assert_eq!(parts(ToolFormat::Mistral, r#"[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]"#), (String::new(), vec![f()]));
        assert_eq!(parts(ToolFormat::Llama, r#"{"name": "f", "parameters": {"x": 1}}"#), (String::new(), vec![f()]));
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama] {
            for text in ["a < b", "<tool_call>not json</tool_call> x", "<tool", "{\"a\": 1}", "[TOOL_CALLS] nothing", "", "ends with <"] {
                assert_eq!(parts(format, text), (text.to_owned(), Vec::new()), "{format:?}");
            }
        }
    }

    #[test]
    fn the_format_follows_from_the_template() {
        assert_eq!(ToolFormat::of_template("{% if tools %}<tool_call>{% endif %}"), Some(ToolFormat::Hermes));
        assert_eq!(ToolFormat::of_template("{{ messages }}"), None);
    }

    #[test]
    fn a_wrong_definition_is_named() {
        let path = |tools: Value| check_tools(tools.as_array().map_or(&[], Vec::as_slice)).map_err(|e| e.path);
        assert_eq!(path(json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])), Ok(()));
        assert_eq!(path(json!([{"type": "web_search"}])), Err("[0].type".to_owned()));
        let function =
            |function: Value| path(json!([{"type": "function", "function": {"name": "g"}}, {"type": "function", "function": function}]));
        for (wrong, at) in [
            (json!({"name": "a b"}), "name"),
            (json!({"name": "g"}), "name"),
            (json!({"name": "f", "parameters": []}), "parameters"),
            (json!({"name": "f", "parameters": {"type": "string"}}), "parameters.type"),
            (json!({"name": "f", "strict": "yes"}), "strict"),
            (json!({"name": "f", "params": {}}), "params"),
        ] {
            assert_eq!(function(wrong), Err(format!("[1].function.{at}")));
        }
    }
}
