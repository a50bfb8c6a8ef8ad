//! The items that a response's input consists of, and the messages that a chat template makes of them.
//!
//! Each item is read into OpenAI's own shape with an id, kept like that, and turned into messages when it is needed.

use serde_json::{Map, Value, json};
use tunesmith_chat::{Content, Message, Role, ToolCall};

use crate::api::error::{ApiError, shorten};

/// An id of this kind.
pub fn new_id(kind: &str) -> String {
    format!("{kind}_{}", uuid::Uuid::now_v7().simple())
}

/// The input of a request as items: a text is one message of the user's.
pub fn read_input(input: &Value) -> Result<Vec<Value>, ApiError> {
    match input {
        Value::String(text) => Ok(vec![message("user", text)]),
        Value::Array(items) if items.is_empty() => Err(ApiError::field("input", "`input` is empty; send a text or at least one item.")),
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| read_item(item, &format!("input[{i}]"))).collect(),
        other => {
            let found = shorten(&other.to_string());
            Err(ApiError::field("input", format!("`input` is `{found}`; it must be a text or a list of items.")))
        }
    }
}

/// A message of one text.
fn message(role: &str, text: &str) -> Value {
    json!({
        "id": new_id("msg"), "type": "message", "role": role, "status": "completed", "content": [{"type": "input_text", "text": text}],
    })
}

/// An item's fields, read one by one; what is left over is unknown.
struct Fields<'a> {
    map: Map<String, Value>,
    path: &'a str,
}

impl Fields<'_> {
    fn wrong(&self, name: &str, what: &str) -> ApiError {
        let path = format!("{}.{name}", self.path);
        ApiError::field(path.clone(), format!("`{path}` must be {what}."))
    }

    fn text(&mut self, name: &str) -> Result<String, ApiError> {
        match self.map.remove(name) {
            Some(Value::String(text)) => Ok(text),
            _ => Err(self.wrong(name, "a string")),
        }
    }

    fn id(&mut self, kind: &str) -> Result<Value, ApiError> {
        match self.map.remove("id") {
            None | Some(Value::Null) => Ok(json!(new_id(kind))),
            Some(Value::String(id)) => Ok(json!(id)),
            Some(_) => Err(self.wrong("id", "a string")),
        }
    }

    /// Fields that say nothing here.
    fn drop(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.map.remove(*name)));
    }

    fn end(self) -> Result<(), ApiError> {
        // Clients send back what their objects hold, fields that they leave empty included.
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let path = format!("{}.{}", self.path, shorten(name));
                Err(ApiError::field(path.clone(), format!("`{path}` is not known.")))
            }
        }
    }
}

fn read_item(item: &Value, path: &str) -> Result<Value, ApiError> {
    let Value::Object(map) = item else {
        return Err(ApiError::field(path, format!("`{path}` must be an item such as {{\"role\": \"user\", \"content\": \"…\"}}.")));
    };
    let mut fields = Fields { map: map.clone(), path };
    let kind = match fields.map.remove("type") {
        None => "message".to_owned(),
        Some(Value::String(kind)) => kind,
        Some(_) => return Err(fields.wrong("type", "a string")),
    };
    let item = match kind.as_str() {
        "message" => {
            let role = fields.text("role")?;
            if !matches!(role.as_str(), "user" | "assistant" | "system" | "developer") {
                return Err(fields.wrong("role", &format!("user, assistant, system or developer, not `{}`", shorten(&role))));
            }
            let content = fields.map.remove("content").unwrap_or_default();
            let content = read_parts(&content, &format!("{path}.content"), if role == "assistant" { "output_text" } else { "input_text" })?;
            fields.drop(&["phase"]);
            json!({"id": fields.id("msg")?, "type": "message", "role": role, "content": content})
        }
        "function_call" => json!({
            "id": fields.id("fc")?, "type": "function_call", "call_id": fields.text("call_id")?, "name": fields.text("name")?,
            "arguments": fields.text("arguments")?,
        }),
        "function_call_output" => {
            let output = match fields.map.remove("output").unwrap_or_default() {
                Value::String(text) => json!(text),
                parts => Value::Array(read_parts(&parts, &format!("{path}.output"), "input_text")?),
            };
            json!({"id": fields.id("fco")?, "type": "function_call_output", "call_id": fields.text("call_id")?, "output": output})
        }
        other => {
            let message = format!(
                "`{path}.type` is `{}`; a local language model reads message, function_call and function_call_output.",
                shorten(other)
            );
            return Err(ApiError::field(format!("{path}.type"), message));
        }
    };
    fields.drop(&["status", "namespace", "caller", "async"]);
    fields.end()?;
    let Value::Object(mut item) = item else { return Ok(item) };
    item.insert("status".to_owned(), json!("completed"));
    Ok(Value::Object(item))
}

/// A text or a list of text parts, as parts of this type.
fn read_parts(content: &Value, path: &str, kind: &str) -> Result<Vec<Value>, ApiError> {
    let part = |text: &str| match kind {
        "output_text" => json!({"type": kind, "text": text, "annotations": []}),
        _ => json!({"type": kind, "text": text}),
    };
    match content {
        Value::String(text) => Ok(vec![part(text)]),
        Value::Array(parts) => {
            let one = |(i, value): (usize, &Value)| Ok(part(&read_part(value, &format!("{path}[{i}]"))?));
            parts.iter().enumerate().map(one).collect()
        }
        _ => Err(ApiError::field(path, format!("`{path}` must be a text or a list of text parts."))),
    }
}

/// The text of one part.
pub fn read_part(part: &Value, path: &str) -> Result<String, ApiError> {
    let field = match part["type"].as_str() {
        Some("input_text" | "output_text" | "text") => "text",
        Some("refusal") => "refusal",
        Some(other) => {
            let message = format!("`{path}.type` is `{}`; a local language model reads text only.", shorten(other));
            return Err(ApiError::field(format!("{path}.type"), message));
        }
        None => {
            return Err(ApiError::field(path, format!("`{path}` must be a part such as {{\"type\": \"input_text\", \"text\": \"…\"}}.")));
        }
    };
    match part[field].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(ApiError::field(format!("{path}.{field}"), format!("`{path}.{field}` must be a string."))),
    }
}

/// The messages that items are for a chat template. Calls of functions belong to the assistant's message before them.
pub fn to_messages(items: &[Value]) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> = Vec::new();
    let mut names: Vec<(String, String)> = Vec::new();
    for item in items {
        let field = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
        match item["type"].as_str() {
            Some("function_call") => {
                names.push((field("call_id"), field("name")));
                let call = ToolCall { id: Some(field("call_id")), name: field("name"), arguments: field("arguments") };
                match messages.last_mut() {
                    Some(last) if last.role == Role::Assistant => last.tool_calls.push(call),
                    _ => {
                        let empty = Message::new(Role::Assistant, "");
                        messages.push(Message { content: None, tool_calls: vec![call], ..empty });
                    }
                }
            }
            Some("function_call_output") => {
                let id = field("call_id");
                let Some((_, name)) = names.iter().rev().find(|(known, _)| *known == id) else {
                    let message = format!("No function_call has the call_id `{}` that a function_call_output answers.", shorten(&id));
                    return Err(ApiError::field("input", message));
                };
                let answer = Message::new(Role::Tool, text_of(&item["output"]));
                messages.push(Message { tool_call_id: Some(id), name: Some(name.clone()), ..answer });
            }
            _ => {
                let role = Role::of(&field("role")).unwrap_or(Role::User);
                let texts: Vec<String> = texts_of(&item["content"]);
                let content = match <[String; 1]>::try_from(texts) {
                    Ok([text]) => Content::Text(text),
                    Err(texts) if texts.is_empty() => Content::Text(String::new()),
                    Err(texts) => Content::Parts(texts),
                };
                messages.push(Message { content: Some(content), ..Message::new(role, "") });
            }
        }
    }
    Ok(messages)
}

fn texts_of(parts: &Value) -> Vec<String> {
    parts.as_array().into_iter().flatten().filter_map(|p| p["text"].as_str().map(str::to_owned)).collect()
}

fn text_of(output: &Value) -> String {
    output.as_str().map_or_else(|| texts_of(output).join("\n"), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn calls_join_the_message_before_them_and_their_answers_know_the_function() {
        let input = json!([
            {"role": "user", "content": "Weather?"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
        ]);
        let messages = to_messages(&read_input(&input).unwrap()).unwrap();
        assert_eq!(messages.iter().map(|m| m.role).collect::<Vec<_>>(), [Role::User, Role::Assistant, Role::Tool]);
        assert_eq!((messages[1].text(), &messages[1].tool_calls[0].name[..]), ("I look.".to_owned(), "weather"));
        assert_eq!((messages[2].text(), messages[2].name.as_deref()), ("rain".to_owned(), Some("weather")));
    }

    #[test]
    fn fields_that_a_client_left_empty_count_as_absent() {
        let call = json!({"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}",
            "status": "completed", "async_": null, "caller": null, "whatever_comes": null});
        let said = json!({"type": "message", "role": "assistant", "content": "Hm.", "colour": null});
        let items = read_input(&json!([said, call])).unwrap();
        assert_eq!(to_messages(&items).unwrap()[0].tool_calls[0].name, "weather");
        assert!(items.iter().all(|item| item.get("colour").or(item.get("async_")).is_none()), "{items:?}");
    }

    #[test]
    fn what_a_text_model_cannot_read_is_refused_by_its_path() {
        for (input, path) in [
            (json!([{"role": "wizard", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]), "input[0].content[0].type"),
            (json!([{"role": "user", "content": "x", "colour": 1}]), "input[0].colour"),
            (json!([{"type": "computer_call", "id": "x"}]), "input[0].type"),
            (json!([{"type": "function_call", "call_id": "x", "name": "y"}]), "input[0].arguments"),
            (json!([]), "input"),
            (json!(7), "input"),
        ] {
            let error = read_input(&input).unwrap_err();
            assert_eq!(error.param(), Some(path), "{error}");
        }
        let orphan = read_input(&json!([{"type": "function_call_output", "call_id": "nobody", "output": "x"}])).unwrap();
        assert!(to_messages(&orphan).unwrap_err().to_string().contains("nobody"));
    }
}
