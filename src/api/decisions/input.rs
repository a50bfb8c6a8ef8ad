//! What the questions of `POST /v1/decisions` are about, as one text.

use serde_json::Value;

use crate::api::error::{ApiError, shorten};
use crate::api::responses::read_part;

/// Fields of an item, those without effect included.
const ITEM_FIELDS: [&str; 13] =
    ["type", "id", "status", "role", "content", "phase", "name", "arguments", "input", "call_id", "output", "namespace", "caller"];

/// A field with something else than it takes.
pub(super) fn wrong(path: &str, found: &Value, wanted: &str) -> ApiError {
    let found = match found {
        Value::Null => "missing or null".to_owned(),
        other => format!("`{}`", shorten(&other.to_string())),
    };
    ApiError::field(path, format!("`{path}` is {found}; it must be {wanted}."))
}

/// A text or parts of text and JSON, as one text.
pub(super) fn parts_text(content: &Value, path: &str) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let one = |(i, part): (usize, &Value)| match part["type"].as_str() {
                Some("input_json") => Ok(part["data"].to_string()),
                _ => read_part(part, &format!("{path}[{i}]")),
            };
            Ok(parts.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        other => Err(wrong(path, other, "a text or a list of parts")),
    }
}

/// What the questions are about, as one text: a lone message of the user's as it is, a conversation with its roles.
pub(super) fn input_text(input: &Value) -> Result<String, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(items) if !items.is_empty() => items,
        other => return Err(wrong("input", other, "a text or a list of at least one item")),
    };
    let lone = items.len() == 1;
    let mut lines = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let path = format!("input[{i}]");
        let Value::Object(fields) = item else {
            return Err(wrong(&path, item, "an item such as {\"role\": \"user\", \"content\": \"…\"}"));
        };
        // Clients send back what their objects hold, fields that they leave empty included.
        if let Some((other, _)) = fields.iter().find(|(name, value)| !value.is_null() && !ITEM_FIELDS.contains(&name.as_str())) {
            let path = format!("{path}.{}", shorten(other));
            return Err(ApiError::field(path.clone(), format!("`{path}` is not known.")));
        }
        let field = |name: &str| item[name].as_str().ok_or_else(|| wrong(&format!("{path}.{name}"), &item[name], "a string"));
        lines.push(match item["type"].as_str() {
            None | Some("message") => {
                let role = field("role")?;
                if !matches!(role, "user" | "assistant" | "system" | "developer") {
                    let message = format!("`{path}.role` must be user, assistant, system or developer, not `{}`.", shorten(role));
                    return Err(ApiError::field(format!("{path}.role"), message));
                }
                let text = parts_text(&item["content"], &format!("{path}.content"))?;
                if lone && role == "user" { text } else { format!("{role}: {text}") }
            }
            Some("function_call") => format!("call of {}: {}", field("name")?, field("arguments")?),
            Some("custom_tool_call") => format!("call of {}: {}", field("name")?, field("input")?),
            Some("function_call_output" | "custom_tool_call_output") => {
                format!("result: {}", parts_text(&item["output"], &format!("{path}.output"))?)
            }
            Some(other) => {
                let message = format!("`{path}.type` is `{}`; available: message, function calls and their outputs.", shorten(other));
                return Err(ApiError::field(format!("{path}.type"), message));
            }
        });
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_shape_of_input_is_a_text() {
        assert_eq!(input_text(&json!("plain")).unwrap(), "plain");
        assert_eq!(
            input_text(
                &json!([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_json", "data": {"b": 1}}]}])
            )
            .unwrap(),
            "a\n{\"b\":1}"
        );
        let talk = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]);
        assert_eq!(input_text(&talk).unwrap(), "user: Hi\nassistant: no");
        assert_eq!(input_text(&json!([{"role": "user", "content": "x", "async_": null}])).unwrap(), "x");
        let error = input_text(&json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}])).unwrap_err();
        assert_eq!(error.param(), Some("input[0].content[0].type"));
    }

    #[test]
    fn what_is_no_input_is_named_by_its_path() {
        for (wrong, path) in [
            (json!(7), "input"),
            (json!([]), "input"),
            (json!(["text"]), "input[0]"),
            (json!([{"role": "user", "content": "x"}, {"role": 1}]), "input[1].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "user", "content": "x", "colour": 1}]), "input[0].colour"),
            (json!([{"type": "function_call", "name": "f"}]), "input[0].arguments"),
        ] {
            let error = input_text(&wrong).unwrap_err();
            assert_eq!(error.param(), Some(path), "{error}");
        }
    }
}
