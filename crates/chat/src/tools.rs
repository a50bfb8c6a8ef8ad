//! Tools: definitions in requests, and the spellings of the families that call them.

use serde_json::{Value, json};

use crate::error::RowError;
use crate::message::Message;

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
    pub(crate) fn marks(self) -> (&'static str, &'static str) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_follows_from_the_template() {
        assert_eq!(ToolFormat::of_template("{% if tools %}<tool_call>{% endif %}"), Some(ToolFormat::Hermes));
        assert_eq!(ToolFormat::of_template("{{ messages }}"), None);
    }

    #[test]
    fn what_a_schema_refers_to_in_itself_is_found_where_the_call_has_it() {
        let schema = json!({"$defs": {"unit": {"enum": ["c", "f"]}}, "type": "object", "properties": {"unit": {"$ref": "#/$defs/unit"}}});
        let f = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
        let g = json!({"type": "function", "function": {"name": "g"}});
        for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama] {
            for functions in [vec![f.clone()], vec![g.clone(), f.clone()]] {
                let form = format.call_form(&functions, true, false);
                let text = form.schema.to_string();
                let reference = text.split("\"$ref\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
                let pointer = reference.strip_prefix('#').unwrap_or_default();
                assert_eq!(form.schema.pointer(pointer), Some(&json!({"enum": ["c", "f"]})), "{format:?}: {text}");
            }
            // Without a schema that is to be kept, the arguments are some object.
            let loose = format.call_form(std::slice::from_ref(&f), false, false).schema.to_string();
            assert!(!loose.contains("enum"), "{loose}");
        }
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
