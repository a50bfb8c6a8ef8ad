//! A request for a response: OpenAI's fields, each honoured, accepted where it cannot change the answer, or refused by name.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tunesmith_ml::infer::Grammar;
use utoipa::ToSchema;

use crate::api::error::{ApiError, shorten};
use crate::api::text::chat::StreamOptions;
use crate::api::text::format::check_schema_name;
use crate::api::text::knobs::{AnswerFormat, Knobs, Settings};
use crate::api::text::tools::{CheckedTools, checked_tools};

/// What to answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseRequest {
    /// The model: one of `GET /v1/models`.
    pub model: Option<String>,
    /// A text, or a list of items: messages, function calls and their outputs.
    #[schema(value_type = Option<Object>)]
    pub input: Option<Value>,
    /// What the model is told before the conversation; not carried over by `previous_response_id`.
    pub instructions: Option<String>,
    /// The response that this one goes on from.
    pub previous_response_id: Option<String>,
    /// Most tokens of the answer [default: what fits].
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<i64>,
    /// 0 takes the likeliest token each time [default: 1].
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Draw only from the likeliest tokens that together reach this probability [default: 1].
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Alternatives to list at each token, with `message.output_text.logprobs` in `include`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<i64>,
    /// What the answer's text keeps to.
    pub text: Option<TextConfig>,
    /// Functions that the model may call, for models whose template knows of them.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, one function: `{"type": "function", "name": "…"}`, or some of them: `{"type": "allowed_tools",
    /// "mode": "auto", "tools": [{"type": "function", "name": "…"}]}`.
    #[schema(value_type = Option<Object>)]
    pub tool_choice: Option<Value>,
    /// Whether to keep the response, so that others can go on from it [default: true].
    pub store: Option<bool>,
    /// Whether to send the answer piece by piece.
    pub stream: Option<bool>,
    /// Accepted and without effect.
    #[serde(rename = "stream_options")]
    pub _stream_options: Option<StreamOptions>,
    /// Whether to go on when the client leaves; `GET` tells how far it is, and with `stream` follows it.
    pub background: Option<bool>,
    /// Up to 16 pairs of texts that are kept with the response.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
    /// `auto` leaves out the oldest messages of a conversation that is too long; `disabled` is an error then [default].
    pub truncation: Option<String>,
    /// Only `message.output_text.logprobs` is available.
    pub include: Option<Vec<String>>,
    /// Whether an answer may have several calls [default: true].
    pub parallel_tool_calls: Option<bool>,
    /// Told back and without effect.
    pub user: Option<String>,
    /// Told back and without effect.
    pub safety_identifier: Option<String>,
    /// Told back and without effect: equal beginnings are always shared.
    pub prompt_cache_key: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "prompt_cache_options")]
    #[schema(value_type = Option<Object>)]
    pub _prompt_cache_options: Option<Value>,
    /// Accepted and without effect.
    #[serde(rename = "prompt_cache_retention")]
    pub _prompt_cache_retention: Option<String>,
    /// Accepted and without effect.
    #[serde(rename = "service_tier")]
    pub _service_tier: Option<String>,
    /// Refused unless its effort is `none`.
    #[schema(value_type = Option<Object>)]
    pub reasoning: Option<Value>,
    /// Refused: every tool here is the caller's own.
    pub max_tool_calls: Option<i64>,
    /// Refused; use `previous_response_id`.
    #[schema(value_type = Option<Object>)]
    pub conversation: Option<Value>,
    /// Refused: there are no stored prompts.
    #[schema(value_type = Option<Object>)]
    pub prompt: Option<Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    pub moderation: Option<Value>,
    /// Refused; `truncation` has an `auto`.
    #[schema(value_type = Option<Object>)]
    pub context_management: Option<Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    pub image: Option<Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    pub access_programs: Option<Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    pub background_options: Option<Value>,
}

/// What an answer's text keeps to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Any text, a JSON object, or JSON of a schema.
    pub format: Option<TextFormat>,
    /// Refused unless it is `medium`.
    pub verbosity: Option<String>,
}

/// A form of text.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum TextFormat {
    /// Any text.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// A JSON value of a schema.
    JsonSchema {
        /// The schema's name.
        name: String,
        /// The schema.
        #[schema(value_type = Object)]
        schema: Value,
        /// What it is for; without effect.
        description: Option<String>,
        /// Accepted; the schema is always kept.
        strict: Option<bool>,
    },
    /// A text that the whole expression matches (not OpenAI's).
    Regex {
        /// The regular expression.
        regex: String,
    },
    /// One of some texts (not OpenAI's).
    Choice {
        /// The texts.
        choices: Vec<String>,
    },
}

impl TextFormat {
    fn told(&self) -> Value {
        match self {
            Self::Text {} => json!({"type": "text"}),
            Self::JsonObject {} => json!({"type": "json_object"}),
            Self::JsonSchema { name, schema, description, strict } => {
                json!({"type": "json_schema", "name": name, "schema": schema, "description": description, "strict": strict})
            }
            Self::Regex { regex } => json!({"type": "regex", "regex": regex}),
            Self::Choice { choices } => json!({"type": "choice", "choices": choices}),
        }
    }

    fn grammar(&self) -> Result<Option<Grammar>, ApiError> {
        Ok(match self {
            Self::Text {} => None,
            Self::JsonObject {} => Some(Grammar::JsonObject),
            Self::JsonSchema { name, schema, .. } => {
                check_schema_name(name, "text.format.name")?;
                Some(Grammar::JsonSchema(schema.clone()))
            }
            Self::Regex { regex } => Some(Grammar::Regex(regex.clone())),
            Self::Choice { choices } => Some(Grammar::Choice(choices.clone())),
        })
    }
}

const LOGPROBS: &str = "message.output_text.logprobs";

impl ResponseRequest {
    /// Refuses what a local model cannot do, by its name.
    pub fn refuse_unavailable(&self) -> Result<(), ApiError> {
        let set = |v: &Option<Value>| v.as_ref().is_some_and(|v| !v.is_null());
        let reasons = |v: &Value| !(v.is_null() || v["effort"].is_null() || v["effort"] == "none");
        let refusals = [
            ("reasoning", self.reasoning.as_ref().is_some_and(reasons), "models here have no such setting"),
            ("max_tool_calls", self.max_tool_calls.is_some(), "every tool is called by you"),
            ("conversation", set(&self.conversation), "use `previous_response_id`"),
            ("prompt", set(&self.prompt), "there are no stored prompts"),
            ("moderation", set(&self.moderation), "there is no moderation here"),
            ("context_management", set(&self.context_management), "`truncation` may be `auto`"),
            ("image", set(&self.image), "a local language model makes no images"),
            ("access_programs", set(&self.access_programs), "there are none here"),
            ("background_options", set(&self.background_options), "a response in the background begins at once"),
            (
                "text.verbosity",
                self.text.as_ref().and_then(|t| t.verbosity.as_ref()).is_some_and(|v| v != "medium"),
                "models here have no such setting",
            ),
        ];
        if let Some((name, _, why)) = refusals.iter().find(|(_, given, _)| *given) {
            return Err(ApiError::field(*name, format!("`{name}` is not available: {why}.")));
        }
        if let Some(other) = self.include.iter().flatten().find(|i| *i != LOGPROBS) {
            let message = format!("`include` has `{}`; available: \"{LOGPROBS}\".", shorten(other));
            return Err(ApiError::field("include", message));
        }
        match self.truncation.as_deref() {
            None | Some("auto" | "disabled") => {}
            Some(_) => return Err(ApiError::field("truncation", "`truncation` must be \"auto\" or \"disabled\".")),
        }
        match (self.background.unwrap_or(false), self.store.unwrap_or(true)) {
            (true, false) => {
                Err(ApiError::field("store", "A response in the background is found again by its id, so `store` must be true."))
            }
            _ => check_metadata(self.metadata.as_ref()),
        }
    }

    /// How tokens are chosen.
    pub fn settings(&self) -> Result<Settings, ApiError> {
        let knobs = Knobs {
            temperature: self.temperature,
            top_p: self.top_p,
            max_tokens: self.max_output_tokens,
            max_tokens_field: "max_output_tokens",
            least_tokens: 1,
            ..Knobs::default()
        };
        let grammar = self.text.as_ref().and_then(|t| t.format.as_ref()).map(TextFormat::grammar).transpose()?.flatten();
        let format = grammar.map(|grammar| AnswerFormat { grammar, field: "text.format" });
        Ok(Settings { format, ..knobs.settings()? })
    }

    /// Alternatives to list at each token; absent: no log-probabilities.
    pub fn wanted_logprobs(&self) -> Result<Option<usize>, ApiError> {
        let top = self.top_logprobs.unwrap_or(0);
        if !(0..=20).contains(&top) {
            return Err(ApiError::field("top_logprobs", format!("`top_logprobs` is {top}; it must be between 0 and 20.")));
        }
        let wanted = top > 0 || self.include.iter().flatten().any(|i| i == LOGPROBS);
        Ok(wanted.then_some(top as usize))
    }

    /// The functions in the form that chats have them.
    pub fn chat_tools(&self) -> Result<Option<CheckedTools>, ApiError> {
        let mut tools = Vec::new();
        for (i, tool) in self.tools.iter().flatten().enumerate() {
            match tool["type"].as_str() {
                Some("function") => {}
                Some(other) => {
                    let message = format!("`tools[{i}].type` is `{}`; a local model has functions of yours only.", shorten(other));
                    return Err(ApiError::field(format!("tools[{i}].type"), message));
                }
                None => return Err(ApiError::field(format!("tools[{i}].type"), format!("`tools[{i}].type` must be \"function\"."))),
            }
            let mut function = tool.as_object().cloned().unwrap_or_default();
            function.remove("type");
            tools.push(json!({"type": "function", "function": function}));
        }
        checked_tools((!tools.is_empty()).then_some(tools), self.tool_choice.clone(), self.parallel_tool_calls, true)
    }

    /// The fields that the response tells back.
    pub fn told(&self) -> Value {
        json!({
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "max_output_tokens": self.max_output_tokens,
            "temperature": self.temperature.unwrap_or(1.0),
            "top_p": self.top_p.unwrap_or(1.0),
            "top_logprobs": self.top_logprobs.unwrap_or(0),
            "text": {"format": self.text.as_ref().and_then(|t| t.format.as_ref()).map_or(json!({"type": "text"}), TextFormat::told), "verbosity": "medium"},
            "tools": self.tools.clone().unwrap_or_default(),
            "tool_choice": self.tool_choice.clone().unwrap_or(json!("auto")),
            "store": self.store.unwrap_or(true),
            "background": self.background.unwrap_or(false),
            "metadata": self.metadata.clone().unwrap_or_default(),
            "truncation": self.truncation.as_deref().unwrap_or("disabled"),
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "user": self.user,
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
            "service_tier": "default",
            "reasoning": {"effort": null, "summary": null},
            "max_tool_calls": null,
        })
    }
}

fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    if metadata.len() > 16 {
        return Err(ApiError::field("metadata", format!("`metadata` has {} texts; it takes at most 16.", metadata.len())));
    }
    for (key, value) in metadata {
        let told = shorten(key);
        let path = format!("metadata.{told}");
        if key.chars().count() > 64 {
            return Err(ApiError::field(path, format!("`metadata` has the name `{told}`, which is longer than 64 characters.")));
        }
        if value.as_str().is_none_or(|v| v.chars().count() > 512) {
            let message = format!("`{path}` is {}; it must be a text of at most 512 characters.", shorten(&value.to_string()));
            return Err(ApiError::field(path, message));
        }
    }
    Ok(())
}
