//! Tools in requests, and their calls in answers.

use serde_json::Value;
use tunesmith_chat::{CallForm, ToolCall, ToolFormat, check_tools};
use tunesmith_ml::infer::Grammar;

use super::chat_object::{CalledFunction, ToolCallObject};
use super::knobs::AnswerFormat;
use crate::api::error::{ApiError, shorten};

/// Tools that a model may call.
#[derive(Debug)]
pub struct CheckedTools {
    /// Their definitions.
    pub tools: Vec<Value>,
    /// Those of which it must call one, if it must.
    pub forced: Option<Vec<Value>>,
}

/// The tools that a model may call, or nothing if it may call none.
pub fn checked_tools(tools: Option<Vec<Value>>, choice: Option<Value>) -> Result<Option<CheckedTools>, ApiError> {
    let tools = tools.filter(|t| !t.is_empty());
    let choice = choice.unwrap_or(Value::Null);
    // Chats name a function under `function`, responses beside the type.
    let named = (choice["type"] == "function").then(|| choice["function"]["name"].as_str().or(choice["name"].as_str())).flatten();
    let (may, must) = match choice.as_str() {
        None if choice.is_null() => (true, false),
        Some("auto") => (true, false),
        Some("none") => (false, false),
        Some("required") => (true, true),
        None if named.is_some() => (true, true),
        _ => {
            let given = shorten(&choice.to_string());
            let message = format!("`tool_choice` is {given}; available: \"auto\", \"none\", \"required\", or a function by its name.");
            return Err(ApiError::field("tool_choice", message));
        }
    };
    let Some(tools) = tools else {
        return match must {
            true => Err(ApiError::field("tool_choice", "`tool_choice` asks for a call, but there are no `tools`.")),
            false => Ok(None),
        };
    };
    check_tools(&tools).map_err(|e| ApiError::field(format!("tools{}", e.path), format!("`tools{}`: {e}.", e.path)))?;
    if !may {
        return Ok(None);
    }
    let chosen = |tool: &&Value| named.is_none_or(|name| tool["function"]["name"] == name);
    let forced: Option<Vec<Value>> = must.then(|| tools.iter().filter(chosen).cloned().collect());
    match (&forced, named) {
        (Some(forced), Some(name)) if forced.is_empty() => {
            Err(ApiError::field("tool_choice", format!("`tool_choice` names `{}`, which is none of the `tools`.", shorten(name))))
        }
        _ => Ok(Some(CheckedTools { tools, forced })),
    }
}

/// What an answer keeps to that must be a call of one of these tools.
pub fn forced_call(format: Option<ToolFormat>, forced: Option<Vec<Value>>) -> Option<AnswerFormat> {
    let CallForm { open, schema, close } = format?.call_form(&forced?);
    Some(AnswerFormat { grammar: Grammar::Marked { open, schema, close }, field: "tools" })
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

/// A call in OpenAI's shape; `index` is its place in a stream.
pub fn call_object(call: ToolCall, index: Option<usize>) -> ToolCallObject {
    let id = call.id.unwrap_or_else(new_call_id);
    ToolCallObject { index, id, kind: "function", function: CalledFunction { name: call.name, arguments: call.arguments } }
}
