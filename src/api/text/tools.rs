//! Tools in requests, and their calls in answers.

use serde_json::Value;
use tunesmith_chat::{CallForm, ToolCall, ToolFormat, check_tools};
use tunesmith_ml::infer::{Beside, CallGrammar, Grammar};

use super::chat_object::{CalledFunction, ToolCallObject};
use super::knobs::AnswerFormat;
use crate::api::error::{ApiError, shorten};

/// Tools that a model may call.
#[derive(Debug, Clone)]
pub struct CheckedTools {
    /// Their definitions.
    pub tools: Vec<Value>,
    /// Whether it must call one of them.
    pub must: bool,
    /// Whether it may call several times.
    pub several: bool,
}

/// What `tool_choice` asks for.
struct Choice {
    may: bool,
    must: bool,
    /// Whether it asks for one call.
    one: bool,
    /// The functions that may be called; absent: all.
    only: Option<Vec<String>>,
}

impl Choice {
    fn read(choice: &Value) -> Result<Self, ApiError> {
        let mode = |mode: &str| match mode {
            "auto" => Some((true, false)),
            "none" => Some((false, false)),
            "required" => Some((true, true)),
            _ => None,
        };
        // Chats name a function under `function`, responses beside the type.
        let name = |of: &Value| of["function"]["name"].as_str().or(of["name"].as_str()).map(str::to_owned);
        let refused = || {
            let given = shorten(&choice.to_string());
            let message = format!(
                "`tool_choice` is {given}; available: \"auto\", \"none\", \"required\", a function by its name, or `allowed_tools` with a mode and functions."
            );
            ApiError::field("tool_choice", message)
        };
        if choice.is_null() {
            return Ok(Self { may: true, must: false, one: false, only: None });
        }
        if let Some((may, must)) = choice.as_str().and_then(mode) {
            return Ok(Self { may, must, one: false, only: None });
        }
        match choice["type"].as_str() {
            Some("function") => Ok(Self { may: true, must: true, one: true, only: Some(vec![name(choice).ok_or_else(refused)?]) }),
            Some("allowed_tools") => {
                let inner = if choice["allowed_tools"].is_object() { &choice["allowed_tools"] } else { choice };
                let (may, must) = inner["mode"].as_str().filter(|m| *m != "none").and_then(mode).ok_or_else(refused)?;
                let only: Option<Vec<String>> = inner["tools"].as_array().ok_or_else(refused)?.iter().map(name).collect();
                match only {
                    Some(only) if !only.is_empty() => Ok(Self { may, must, one: false, only: Some(only) }),
                    _ => Err(refused()),
                }
            }
            _ => Err(refused()),
        }
    }
}

/// The tools that a model may call, or nothing if it may call none. `parallel` is the request's `parallel_tool_calls`. Where
/// `flat`, the request has a function's fields beside its type.
pub fn checked_tools(
    tools: Option<Vec<Value>>,
    choice: Option<Value>,
    parallel: Option<bool>,
    flat: bool,
) -> Result<Option<CheckedTools>, ApiError> {
    let tools = tools.filter(|t| !t.is_empty());
    let Choice { may, must, one, only } = Choice::read(&choice.unwrap_or(Value::Null))?;
    let Some(mut tools) = tools else {
        return match must || only.is_some() {
            true => Err(ApiError::field("tool_choice", "`tool_choice` asks for a call, but there are no `tools`.")),
            false => Ok(None),
        };
    };
    check_tools(&tools).map_err(|e| {
        let path = if flat { e.path.replacen(".function", "", 1) } else { e.path };
        let path = format!("tools{path}");
        ApiError::field(path.clone(), format!("`{path}`: found {}, expected {}.", e.found, e.expected))
    })?;
    let named = |tool: &Value, name: &str| tool["function"]["name"] == name;
    if let Some(only) = only {
        if let Some(missing) = only.iter().find(|name| !tools.iter().any(|tool| named(tool, name))) {
            let message = format!("`tool_choice` names `{}`, which is none of the `tools`.", shorten(missing));
            return Err(ApiError::field("tool_choice", message));
        }
        tools.retain(|tool| only.iter().any(|name| named(tool, name)));
    }
    Ok(may.then_some(CheckedTools { tools, must, several: parallel.unwrap_or(true) && !one }))
}

/// What an answer keeps to that calls these tools, or must: whole calls of functions that exist, beside what `format` asks for.
pub fn with_calls(format: ToolFormat, tools: &CheckedTools, text: Option<AnswerFormat>) -> AnswerFormat {
    let CallForm { open, schema, close } = format.call_form(&tools.tools, tools.must, tools.several);
    let beside = match text {
        _ if tools.must => Beside::Nothing,
        Some(text) => Beside::Format(Box::new(text.grammar)),
        None => Beside::Text,
    };
    AnswerFormat { grammar: Grammar::Calls(CallGrammar { open, schema, close, beside, several: tools.several }), field: "tools" }
}

/// An id for a call: nine letters and digits, the only form that every template takes back.
pub fn new_call_id() -> String {
    const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // Version 7 has its time in front and its chance behind.
    let mut rest = uuid::Uuid::now_v7().as_u128() & ((1 << 62) - 1);
    let digit = |_| {
        let digit = DIGITS[(rest % 36) as usize];
        rest /= 36;
        char::from(digit)
    };
    (0..9).map(digit).collect()
}

/// A call in OpenAI's shape.
pub fn call_object(call: ToolCall) -> ToolCallObject {
    let id = call.id.unwrap_or_else(new_call_id);
    ToolCallObject { id, kind: "function", function: CalledFunction { name: call.name, arguments: call.arguments } }
}
