//! What a chat answers, in OpenAI's shapes.

use serde::Serialize;
use tunesmith_ml::infer::{Finish, Usage};
use utoipa::ToSchema;

use super::tokens::ChatLogprobs;

/// A chat's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-` and a number.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// One answer, or `n`.
    pub choices: Vec<Choice>,
    /// Tokens.
    pub usage: UsageObject,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Choice {
    /// Its place.
    pub index: usize,
    /// What the model says.
    pub message: AssistantMessage,
    /// Log-probabilities of its tokens.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; null where it only calls tools.
    pub content: Option<String>,
    /// Always null: a local model refuses in words.
    #[schema(value_type = Option<Object>)]
    pub refusal: (),
    /// The tools that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallObject>,
}

/// A call of a tool.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ToolCallObject {
    /// Nine letters and digits.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is called.
    pub function: CalledFunction,
}

/// What is called.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CalledFunction {
    /// The function.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// A piece of a call in a stream: its beginning has the id and the name, and the others more of the arguments.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Its place among the calls.
    pub index: usize,
    /// Nine letters and digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// `function`, at the beginning.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<&'static str>,
    /// What is called.
    pub function: FunctionDelta,
}

/// A piece of what is called.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// The function, at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
    /// More of its arguments.
    pub arguments: String,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct UsageObject {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Of the prompt.
    pub prompt_tokens_details: PromptDetails,
}

/// Tokens of a prompt by kind.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Tokens that did not have to be computed again.
    pub cached_tokens: usize,
}

impl UsageObject {
    /// The sum of several answers to one prompt.
    pub fn of(all: impl IntoIterator<Item = Usage>) -> Self {
        let mut sum = Self::default();
        for usage in all {
            sum.prompt_tokens = usage.prompt_tokens;
            sum.completion_tokens += usage.completion_tokens;
            sum.prompt_tokens_details.cached_tokens = sum.prompt_tokens_details.cached_tokens.max(usage.cached_tokens);
        }
        sum.total_tokens = sum.prompt_tokens + sum.completion_tokens;
        sum
    }
}

/// A piece of a streamed answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The same for every piece.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that answers.
    pub model: String,
    /// The piece; none in the last chunk, with the usage.
    pub choices: Vec<ChunkChoice>,
    /// Where it was asked for: null, and in the last chunk the tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageObject>>,
}

/// A piece of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// The answer's place.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Log-probabilities of its tokens.
    pub logprobs: Option<ChatLogprobs>,
    /// In the last piece: `stop`, `length` or `tool_calls`.
    pub finish_reason: Option<&'static str>,
}

/// What is new in a piece.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    /// In the first piece: `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub role: Option<&'static str>,
    /// New text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub content: Option<String>,
    /// New calls of tools, whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// OpenAI's word for an end.
pub fn reason(finish: Option<Finish>, calls: bool) -> &'static str {
    match finish {
        Some(Finish::Length) => "length",
        _ if calls => "tool_calls",
        _ => "stop",
    }
}
