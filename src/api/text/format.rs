//! The field `response_format`: what an answer keeps to.

use serde::Deserialize;
use serde_json::Value;
use tunesmith_ml::infer::Grammar;
use utoipa::ToSchema;

use super::knobs::AnswerFormat;
use crate::api::error::ApiError;

/// What an answer keeps to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Any text.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// A JSON value of a schema.
    JsonSchema {
        /// The schema with its name.
        json_schema: NamedSchema,
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

/// A schema with its name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSchema {
    /// Its name.
    pub name: String,
    /// What it is for; without effect.
    #[serde(rename = "description")]
    pub _description: Option<String>,
    /// The schema; absent: any JSON value.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Accepted; the schema is always kept.
    #[serde(rename = "strict")]
    pub _strict: Option<bool>,
}

impl ResponseFormat {
    /// What answers keep to, or nothing for any text.
    pub fn answer_format(self) -> Result<Option<AnswerFormat>, ApiError> {
        let grammar = match self {
            Self::Text {} => return Ok(None),
            Self::JsonObject {} => Grammar::JsonObject,
            Self::JsonSchema { json_schema } => {
                check_schema_name(&json_schema.name, "response_format.json_schema.name")?;
                Grammar::JsonSchema(json_schema.schema.unwrap_or(Value::Bool(true)))
            }
            Self::Regex { regex } => Grammar::Regex(regex),
            Self::Choice { choices } => Grammar::Choice(choices),
        };
        Ok(Some(AnswerFormat { grammar, field: "response_format" }))
    }
}

/// Refuses a name that is not OpenAI's: 1 to 64 letters, digits, `_` and `-`.
pub fn check_schema_name(name: &str, field: &str) -> Result<(), ApiError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    match plain && (1..=64).contains(&name.len()) {
        true => Ok(()),
        false => Err(ApiError::field(field, format!("`{field}` takes 1 to 64 letters, digits, `_` and `-`."))),
    }
}
