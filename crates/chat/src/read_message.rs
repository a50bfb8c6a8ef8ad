//! JSON → [`Message`], by hand instead of derived so that every error names its path (`messages[2].role`), what was
//! found and what belongs there. Used by the readers of rows, by the HTTP layer's requests, and by `Deserialize`.

use serde_json::{Map, Value};

use crate::error::{RowError, quoted};
use crate::message::{Content, Message, Role, ToolCall};

/// Reads a list of messages that stands at `path`; an empty list is an error.
pub fn read_messages(value: &Value, path: &str) -> Result<Vec<Message>, RowError> {
    let Value::Array(items) = value else {
        return Err(RowError::new(path, value, "a list of messages"));
    };
    if items.is_empty() {
        return Err(RowError::new(path, value, "at least one message"));
    }
    items.iter().enumerate().map(|(i, item)| read_message(item, &format!("{path}[{i}]"))).collect()
}

/// Refuses a tool's message whose `tool_call_id` is that of no call before it: a template that looks for the call would find
/// nothing. Data sets often leave out the ids, of calls or of results, and then there is nothing to compare.
pub fn check_results(messages: &[Message], path: &str) -> Result<(), RowError> {
    for (i, message) in messages.iter().enumerate() {
        let Some(id) = message.tool_call_id.as_deref().filter(|_| message.role == Role::Tool) else { continue };
        let made: Vec<_> = messages[..i].iter().flat_map(|m| &m.tool_calls).collect();
        if made.iter().any(|call| call.id.as_deref() == Some(id)) || made.iter().any(|call| call.id.is_none()) {
            continue;
        }
        let expected = match made.last().and_then(|call| call.id.as_deref()) {
            None => "a message of the assistant before it whose tool_calls have that id".to_owned(),
            Some(last) => format!("the id of a call that was made before it, such as {}", quoted(last)),
        };
        return Err(RowError::said(format!("{path}[{i}].tool_call_id"), quoted(id), expected));
    }
    Ok(())
}

/// Reads one message that stands at `path`.
pub fn read_message(value: &Value, path: &str) -> Result<Message, RowError> {
    let Value::Object(map) = value else {
        return Err(RowError::new(path, value, r#"a message such as {"role": "user", "content": "…"}"#));
    };
    let role = read_role(map, path)?;
    refuse_unknown(map, path)?;
    let text = |key: &str| read_string(map, key, path);
    let message = Message {
        role,
        content: read_content(map, path)?,
        reasoning: match text("reasoning_content")? {
            Some(reasoning) => Some(reasoning),
            None => match text("thinking")? {
                Some(reasoning) => Some(reasoning),
                None => text("reasoning")?,
            },
        },
        tool_calls: read_tool_calls(map, path)?,
        tool_call_id: text("tool_call_id")?,
        name: text("name")?,
        weight: read_weight(map, path)?,
    };
    check_together(&message, map, path)?;
    Ok(message)
}

fn read_role(map: &Map<String, Value>, path: &str) -> Result<Role, RowError> {
    const ROLES: &str = "one of system, developer, user, assistant, tool";
    let at = join(path, "role");
    match map.get("role") {
        None => Err(RowError::missing(at, ROLES)),
        Some(Value::String(name)) if name == "function" => {
            Err(RowError::said(at, quoted(name), "role \"tool\": functions are the form that tools replaced"))
        }
        Some(Value::String(name)) => Role::of(name).ok_or_else(|| RowError::said(at, quoted(name), ROLES)),
        Some(other) => Err(RowError::new(at, other, ROLES)),
    }
}

/// What a message may hold: OpenAI's fields, and the names that data sets use for reasoning.
fn refuse_unknown(map: &Map<String, Value>, path: &str) -> Result<(), RowError> {
    for (key, value) in map {
        let at = || join(path, key);
        match key.as_str() {
            "role" | "content" | "name" | "tool_calls" | "tool_call_id" | "weight" | "reasoning_content" | "reasoning" | "thinking" => {}
            // A client sends back what an answer held; empty, these say nothing.
            "refusal" | "audio" | "function_call" | "annotations" if is_empty(value) => {}
            "function_call" => {
                return Err(RowError::new(at(), value, "tool_calls: function_call is the form that it replaced"));
            }
            "audio" | "refusal" | "annotations" => {
                return Err(RowError::new(at(), value, "text only: nothing in this field"));
            }
            _ => {
                return Err(RowError::new(
                    at(),
                    value,
                    "no such field; a message has role, content, name, tool_calls, tool_call_id, weight, \
                     reasoning_content",
                ));
            }
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn read_content(map: &Map<String, Value>, path: &str) -> Result<Option<Content>, RowError> {
    let at = join(path, "content");
    match map.get("content") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(Content::Text(text.clone()))),
        Some(Value::Array(parts)) if !parts.is_empty() => {
            let texts: Result<Vec<String>, RowError> =
                parts.iter().enumerate().map(|(i, part)| read_part(part, &format!("{at}[{i}]"))).collect();
            Ok(Some(Content::Parts(texts?)))
        }
        Some(other) => Err(RowError::new(at, other, r#"a string, or a list of {"type": "text", "text": "…"}"#)),
    }
}

fn read_part(part: &Value, path: &str) -> Result<String, RowError> {
    const PART: &str = r#"a part such as {"type": "text", "text": "…"}"#;
    let Value::Object(map) = part else {
        return Err(RowError::new(path, part, PART));
    };
    match map.get("type") {
        Some(Value::String(kind)) if kind == "text" => {}
        Some(kind) => {
            return Err(RowError::new(
                join(path, "type"),
                kind,
                "\"text\": parts of other types cannot be read by a language model of text",
            ));
        }
        None => return Err(RowError::missing(join(path, "type"), PART)),
    }
    if let Some((key, value)) = map.iter().find(|(key, _)| *key != "type" && *key != "text") {
        return Err(RowError::new(join(path, key), value, "no such field; a text part has type and text"));
    }
    match map.get("text") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(RowError::new(join(path, "text"), other, "a string")),
        None => Err(RowError::missing(join(path, "text"), "a string")),
    }
}

fn read_tool_calls(map: &Map<String, Value>, path: &str) -> Result<Vec<ToolCall>, RowError> {
    let at = join(path, "tool_calls");
    match map.get("tool_calls") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(calls)) => calls.iter().enumerate().map(|(i, call)| read_tool_call(call, &format!("{at}[{i}]"))).collect(),
        Some(other) => Err(RowError::new(at, other, "a list of tool calls")),
    }
}

/// OpenAI's `{"id", "type", "function": {"name", "arguments"}}`; data sets also write `{"name", "arguments"}` alone
/// and arguments as an object.
fn read_tool_call(call: &Value, path: &str) -> Result<ToolCall, RowError> {
    const CALL: &str = r#"{"id": "…", "type": "function", "function": {"name": "…", "arguments": "{…}"}}"#;
    let Value::Object(map) = call else {
        return Err(RowError::new(path, call, CALL));
    };
    if let Some(kind) = map.get("type")
        && kind != "function"
    {
        return Err(RowError::new(join(path, "type"), kind, "\"function\""));
    }
    let (function, inner) = match map.get("function") {
        Some(Value::Object(function)) => (function, join(path, "function")),
        Some(other) => {
            return Err(RowError::new(join(path, "function"), other, "an object with name and arguments"));
        }
        None if map.contains_key("name") => (map, path.to_owned()),
        None => return Err(RowError::missing(join(path, "function"), CALL)),
    };
    let name = match read_string(function, "name", &inner)? {
        Some(name) if !name.is_empty() => name,
        _ => return Err(RowError::missing(join(&inner, "name"), "the function's name")),
    };
    let arguments = match function.get("arguments") {
        // Calls of functions that take nothing.
        Some(Value::Null) | None => "{}".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
        // A template may print the text as it stands, and a model would learn to write what nobody can parse.
        Some(Value::String(text)) if serde_json::from_str::<Map<String, Value>>(text).is_ok() => text.clone(),
        Some(Value::String(text)) => {
            return Err(RowError::said(join(&inner, "arguments"), quoted(text), "the text of a JSON object, such as \"{}\""));
        }
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(other) => {
            return Err(RowError::new(join(&inner, "arguments"), other, "JSON text, or an object"));
        }
    };
    Ok(ToolCall { id: read_string(map, "id", path)?, name, arguments })
}

fn read_weight(map: &Map<String, Value>, path: &str) -> Result<Option<f32>, RowError> {
    match map.get("weight") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(weight) if weight == 0.0 || weight == 1.0 => Ok(Some(weight as f32)),
            _ => Err(RowError::new(join(path, "weight"), value, "0 or 1")),
        },
    }
}

/// Rules that need more than one field.
fn check_together(message: &Message, map: &Map<String, Value>, path: &str) -> Result<(), RowError> {
    let assistant = message.role == Role::Assistant;
    if message.content.is_none() && (!assistant || message.tool_calls.is_empty()) {
        let expected = if assistant { "a string; content may be null only beside tool_calls" } else { "a string" };
        let at = join(path, "content");
        return Err(match map.get("content") {
            Some(value) => RowError::new(at, value, expected),
            None => RowError::missing(at, expected),
        });
    }
    if assistant {
        return Ok(());
    }
    let only_assistant = [("tool_calls", !message.tool_calls.is_empty()), ("weight", message.weight.is_some())];
    for (key, present) in only_assistant {
        if present {
            return Err(RowError::said(
                join(path, key),
                format!("it in a message of role {}", message.role.as_str()),
                "it in messages of the assistant only",
            ));
        }
    }
    Ok(())
}

fn read_string(map: &Map<String, Value>, key: &str, path: &str) -> Result<Option<String>, RowError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(RowError::new(join(path, key), other, "a string")),
    }
}

/// `path.key`, or `key` at the top.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
