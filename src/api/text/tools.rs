//! Tools in requests, and their calls in answers.

use serde_json::Value;
use tunesmith_chat::{ToolCall, check_tools};

use super::chat_object::{CalledFunction, ToolCallObject};
use crate::api::error::{ApiError, shorten};

/// The tools that a model may call, or nothing if it may call none.
pub fn checked_tools(tools: Option<Vec<Value>>, choice: Option<Value>) -> Result<Option<Vec<Value>>, ApiError> {
    let tools = tools.filter(|t| !t.is_empty());
    let choice = choice.unwrap_or(Value::Null);
    let auto = match choice.as_str() {
        Some("auto") => true,
        Some("none") => false,
        None if choice.is_null() => true,
        _ => {
            let message = format!("`tool_choice` is {}; available: \"auto\", \"none\".", shorten(&choice.to_string()));
            return Err(ApiError::field("tool_choice", message));
        }
    };
    let Some(tools) = tools else { return Ok(None) };
    check_tools(&tools).map_err(|e| ApiError::field(format!("tools{}", e.path), format!("`tools{}`: {e}.", e.path)))?;
    Ok(auto.then_some(tools))
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
