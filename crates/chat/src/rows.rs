//! Rows of instruction data sets, in the forms that people have them, as conversations.
//!
//! The worker detects the form from a row's columns and reads every row by it; what is wrong is told with its path.

use serde_json::{Map, Value};

use crate::error::RowError;
use crate::message::{Message, Role};
use crate::read_message::{check_results, read_messages};
use crate::tools::check_tools;

/// A conversation to learn, with the tools that its assistant may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// What is said, in order.
    pub messages: Vec<Message>,
    /// Definitions of tools.
    pub tools: Vec<Value>,
}

/// The form of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// OpenAI's `messages`, and perhaps `tools`.
    Messages,
    /// `prompt` and `completion`: texts, or messages as TRL has them.
    PromptCompletion,
    /// `instruction`, perhaps `input`, and `output` (Taori et al. 2023, Alpaca).
    Alpaca,
    /// `conversations` of `{"from", "value"}`, or of OpenAI's `{"role", "content"}`.
    ShareGpt,
}

/// The form that columns have, or nothing if they have none of these.
pub fn detect(columns: &[&str]) -> Option<RowFormat> {
    let has = |name: &str| columns.contains(&name);
    match () {
        () if has("messages") => Some(RowFormat::Messages),
        () if has("conversations") => Some(RowFormat::ShareGpt),
        () if has("prompt") && has("completion") => Some(RowFormat::PromptCompletion),
        () if has("instruction") && (has("output") || has("response")) => Some(RowFormat::Alpaca),
        () => None,
    }
}

/// Reads a row of a known form.
///
/// # Errors
/// With the path of what is wrong: a missing or empty text, a role that is not known, no answer to learn.
pub fn parse_row(format: RowFormat, row: &Map<String, Value>) -> Result<Conversation, RowError> {
    let mut conversation = match format {
        RowFormat::Messages => {
            let messages = read_messages(value(row, "messages")?, "messages")?;
            check_results(&messages, "messages")?;
            Conversation { messages, tools: tools(row)? }
        }
        RowFormat::ShareGpt => Conversation { messages: share_gpt(value(row, "conversations")?)?, tools: tools(row)? },
        RowFormat::PromptCompletion => {
            let mut messages = side(row, "prompt", Role::User)?;
            // What is learned is the completion, whoever speaks in the prompt.
            for message in messages.iter_mut().filter(|message| message.role == Role::Assistant) {
                message.weight = Some(0.0);
            }
            messages.extend(side(row, "completion", Role::Assistant)?);
            Conversation { messages, tools: tools(row)? }
        }
        RowFormat::Alpaca => alpaca(row)?,
    };
    begin_with_system(row, &mut conversation.messages)?;
    check_learned(&conversation.messages, format)?;
    Ok(conversation)
}

fn value<'r>(row: &'r Map<String, Value>, name: &str) -> Result<&'r Value, RowError> {
    row.get(name).ok_or_else(|| RowError::missing(name, "a value in every row"))
}

fn text(row: &Map<String, Value>, name: &str) -> Result<String, RowError> {
    match value(row, name)? {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        other => Err(RowError::new(name, other, "a text that is not empty")),
    }
}

fn tools(row: &Map<String, Value>) -> Result<Vec<Value>, RowError> {
    match row.get("tools") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(tools)) => {
            check_tools(tools).map_err(|e| RowError { path: format!("tools{}", e.path), ..e })?;
            Ok(tools.clone())
        }
        Some(other) => Err(RowError::new("tools", other, "a list of tools")),
    }
}

/// A column `system` beside a conversation begins it, unless the conversation has a system message of its own there.
fn begin_with_system(row: &Map<String, Value>, messages: &mut Vec<Message>) -> Result<(), RowError> {
    match row.get("system") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(text)) => {
            if !text.trim().is_empty() && messages.first().is_none_or(|m| m.role != Role::System) {
                messages.insert(0, Message::new(Role::System, text.as_str()));
            }
            Ok(())
        }
        Some(other) => Err(RowError::new("system", other, "a text")),
    }
}

/// Half of a row with prompt and completion: a text, or messages.
fn side(row: &Map<String, Value>, name: &str, role: Role) -> Result<Vec<Message>, RowError> {
    match value(row, name)? {
        list @ Value::Array(_) => read_messages(list, name),
        _ => Ok(vec![Message::new(role, text(row, name)?)]),
    }
}

/// Alpaca's prompt is the instruction, with the input behind an empty line where there is one.
fn alpaca(row: &Map<String, Value>) -> Result<Conversation, RowError> {
    let answer = if row.contains_key("output") { "output" } else { "response" };
    let mut prompt = text(row, "instruction")?;
    match row.get("input") {
        None | Some(Value::Null) => {}
        Some(Value::String(input)) if input.trim().is_empty() => {}
        Some(Value::String(input)) => {
            prompt.push_str("\n\n");
            prompt.push_str(input);
        }
        Some(other) => return Err(RowError::new("input", other, "a text")),
    }
    let messages = vec![Message::new(Role::User, prompt), Message::new(Role::Assistant, text(row, answer)?)];
    Ok(Conversation { messages, tools: Vec::new() })
}

fn share_gpt(list: &Value) -> Result<Vec<Message>, RowError> {
    let Value::Array(turns) = list else {
        return Err(RowError::new("conversations", list, "a list of {\"from\", \"value\"}"));
    };
    if turns.is_empty() {
        return Err(RowError::new("conversations", list, "at least one turn"));
    }
    // OpenAI's messages under ShareGPT's column.
    if turns[0].get("role").is_some() && turns[0].get("from").is_none() {
        let messages = read_messages(list, "conversations")?;
        check_results(&messages, "conversations")?;
        return Ok(messages);
    }
    let turn = |(i, turn): (usize, &Value)| {
        let path = |name: &str| format!("conversations[{i}].{name}");
        let from = turn.get("from").unwrap_or(&Value::Null);
        let role = match from.as_str() {
            Some("human" | "user") => Role::User,
            Some("gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard") => Role::Assistant,
            Some("system") => Role::System,
            Some("tool" | "observation" | "function_response") => Role::Tool,
            _ => return Err(RowError::new(path("from"), from, "one of human, gpt, system, tool")),
        };
        match turn.get("value").unwrap_or(&Value::Null) {
            Value::String(text) => Ok(Message::new(role, text.as_str())),
            other => Err(RowError::new(path("value"), other, "a text")),
        }
    };
    turns.iter().enumerate().map(turn).collect()
}

/// A row from which nothing is learned is a mistake: nobody would notice it in training.
fn check_learned(messages: &[Message], format: RowFormat) -> Result<(), RowError> {
    let path = match format {
        RowFormat::Messages => "messages",
        RowFormat::ShareGpt => "conversations",
        RowFormat::PromptCompletion => "completion",
        RowFormat::Alpaca => "output",
    };
    let answers = messages.iter().filter(|m| m.role == Role::Assistant).count();
    if answers == 0 {
        return Err(RowError::said(path, "no message of an assistant", "at least one, since that is what is learned"));
    }
    if messages.last().is_some_and(|m| m.role != Role::Assistant) {
        return Err(RowError::said(path, "a last message that is not an assistant's", "an assistant's message at the end"));
    }
    if !messages.iter().any(Message::is_learned) {
        return Err(RowError::said(path, "weight 0 for every message of the assistant", "at least one with weight 1"));
    }
    Ok(())
}

/// The columns that a prompt template names, in the order in which they stand; `{{` and `}}` are braces.
///
/// # Errors
/// If a brace is not closed, or nothing stands between two.
pub fn template_columns(template: &str) -> Result<Vec<String>, RowError> {
    Ok(parse_template(template)?.into_iter().filter_map(|p| if let Part::Column(name) = p { Some(name) } else { None }).collect())
}

/// A prompt template with a row's values in place of `{column}`, and the labels in place of `{labels}`.
///
/// # Errors
/// If the template is malformed, or names a column that the row does not have.
pub fn fill_template(template: &str, row: &Map<String, Value>, labels: &[String]) -> Result<String, RowError> {
    let mut out = String::new();
    for part in parse_template(template)? {
        match part {
            Part::Text(text) => out.push_str(&text),
            Part::Column(name) if name == "labels" && !row.contains_key("labels") => out.push_str(&labels.join(", ")),
            Part::Column(name) => match row.get(&name) {
                Some(Value::String(text)) => out.push_str(text),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => out.push_str(&value.to_string()),
                Some(other) => return Err(RowError::new(name, other, "a text or a number")),
                None => return Err(RowError::missing(name, "the column that data.prompt_template names")),
            },
        }
    }
    Ok(out)
}

enum Part {
    Text(String),
    Column(String),
}

fn parse_template(template: &str) -> Result<Vec<Part>, RowError> {
    let wrong = |found: &str, expected: &str| RowError::said("data.prompt_template", found, expected);
    let (mut parts, mut text) = (Vec::new(), String::new());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
        } else if brace == "}" {
            return Err(wrong("a } that closes nothing", "{column}, or }} for a brace"));
        } else {
            let Some((name, after)) = rest.split_once('}') else {
                return Err(wrong("a { that is not closed", "{column}, or {{ for a brace"));
            };
            if name.trim().is_empty() {
                return Err(wrong("{}", "the name of a column between the braces"));
            }
            parts.push(Part::Text(std::mem::take(&mut text)));
            parts.push(Part::Column(name.trim().to_owned()));
            rest = after;
        }
    }
    parts.push(Part::Text(text + rest));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn row(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn read(value: Value) -> Result<Vec<(Role, String)>, RowError> {
        let row = row(value);
        let columns: Vec<&str> = row.keys().map(String::as_str).collect();
        let conversation = parse_row(detect(&columns).unwrap(), &row)?;
        Ok(conversation.messages.into_iter().map(|m| (m.role, m.text())).collect())
    }

    #[test]
    fn every_form_becomes_the_same_conversation() {
        let expected = vec![(Role::User, "hi".to_owned()), (Role::Assistant, "hello".to_owned())];
        for value in [
            json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}),
            json!({"prompt": "hi", "completion": "hello"}),
            json!({"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "hello"}]}),
            json!({"instruction": "hi", "input": "", "output": "hello"}),
            json!({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
            json!({"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}),
        ] {
            assert_eq!(read(value.clone()).unwrap(), expected, "{value}");
        }
        assert_eq!(read(json!({"instruction": "add", "input": "1 2", "output": "3"})).unwrap()[0].1, "add\n\n1 2");
        assert_eq!(detect(&["text", "label"]), None);
    }

    #[test]
    fn a_row_that_teaches_nothing_is_refused_by_name() {
        for (value, path) in [
            (json!({"messages": [{"role": "user", "content": "hi"}]}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "bot", "content": "hi"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}), "messages"),
            (json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}), "messages"),
            (json!({"prompt": "hi", "completion": " "}), "completion"),
            (json!({"prompt": null, "completion": "x"}), "prompt"),
            (json!({"instruction": "x", "output": 3}), "output"),
            (json!({"conversations": [{"from": "alien", "value": "hi"}]}), "conversations[0].from"),
            (json!({"conversations": [{"role": "alien", "content": "hi"}]}), "conversations[0].role"),
            (json!({"prompt": "hi", "completion": "x", "system": 3}), "system"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().path, path, "{value}");
        }
    }

    #[test]
    fn a_system_column_begins_the_conversation_in_every_form() {
        let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]);
        let turns = json!([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]);
        for value in [
            json!({"system": "S", "messages": messages}),
            json!({"system": "S", "conversations": turns}),
            json!({"system": "S", "prompt": "hi", "completion": "hello"}),
            json!({"system": "S", "instruction": "hi", "output": "hello"}),
        ] {
            let talk = read(value.clone()).unwrap();
            assert_eq!((talk.len(), &talk[0]), (3, &(Role::System, "S".to_owned())), "{value}");
        }
        // What the conversation itself says first wins, and an empty column says nothing.
        let own = json!([{"from": "system", "value": "own"}, {"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]);
        assert_eq!(read(json!({"system": "S", "conversations": own})).unwrap()[0].1, "own");
        for empty in [json!(null), json!(" ")] {
            assert_eq!(read(json!({"system": empty, "prompt": "hi", "completion": "hello"})).unwrap().len(), 2);
        }
    }

    #[test]
    fn results_and_tools_that_fit_nothing_are_refused_by_name() {
        let talk = |id: &str, tools: Value| {
            json!({"tools": tools, "messages": [
                {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": id, "content": "1"}, {"role": "assistant", "content": "One."}]})
        };
        let f = json!({"type": "function", "function": {"name": "f"}});
        let place = |value: Value| parse_row(RowFormat::Messages, &row(value)).map(|_| ()).map_err(|e| e.path);
        assert_eq!(place(talk("c1", json!([f]))), Ok(()));
        assert_eq!(place(talk("c2", json!([f]))), Err("messages[1].tool_call_id".to_owned()));
        assert_eq!(place(talk("c1", json!([f, f]))), Err("tools[1].function.name".to_owned()));
        // Where the calls have no ids, there is nothing to compare.
        let mut value = talk("c2", json!([f]));
        value["messages"][0]["tool_calls"][0].as_object_mut().map(|call| call.remove("id"));
        assert_eq!(place(value), Ok(()));
    }

    #[test]
    fn arguments_that_are_no_json_object_are_refused_by_name() {
        let read = |arguments: Value| {
            let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
            let row = row(json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]}));
            parse_row(RowFormat::Messages, &row).map(|c| c.messages[1].tool_calls[0].arguments.clone()).map_err(|e| e.path)
        };
        for wrong in [json!("{bad"), json!("5"), json!("[]"), json!("null"), json!("{} {}"), json!(5)] {
            assert_eq!(read(wrong.clone()), Err("messages[1].tool_calls[0].function.arguments".to_owned()), "{wrong}");
        }
        assert_eq!(read(json!("{\"a\": 1}")), Ok("{\"a\": 1}".to_owned()));
        // Calls of functions that take nothing.
        for nothing in [json!(""), json!(null), json!({})] {
            assert_eq!(read(nothing), Ok("{}".to_owned()));
        }
    }

    #[test]
    fn of_prompt_and_completion_only_the_completion_is_learned() {
        let row = row(json!({
            "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            "completion": [{"role": "assistant", "content": "d"}]
        }));
        let conversation = parse_row(RowFormat::PromptCompletion, &row).unwrap();
        let learned: Vec<String> = conversation.messages.iter().filter(|m| m.is_learned()).map(Message::text).collect();
        assert_eq!(learned, ["d"]);
    }

    #[test]
    fn templates_are_filled_and_faults_are_named() {
        let row = row(json!({"text": "Rain.", "n": 3}));
        let labels = ["sports".to_owned(), "weather".to_owned()];
        assert_eq!(fill_template("{{{text}}} of {labels}: {n}", &row, &labels).unwrap(), "{Rain.} of sports, weather: 3");
        assert_eq!(template_columns("a {text} {labels}").unwrap(), ["text", "labels"]);
        for wrong in ["{", "a } b", "{}", "{text"] {
            assert!(template_columns(wrong).is_err(), "{wrong}");
        }
        assert_eq!(fill_template("{none}", &row, &labels).unwrap_err().path, "none");
    }
}
