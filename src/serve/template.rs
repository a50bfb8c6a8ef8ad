//! The chat template of a model: one function for training and serving, so that both see the same tokens.

use serde_json::Value;
use tunesmith_chat::{ChatTemplate, SpecialTokens};
use tunesmith_ml::error::MlError;
use tunesmith_ml::text::LanguageTokenizer;

/// The template that stands in a model's tokenizer_config.json, if there is one.
///
/// # Errors
/// If it cannot be parsed.
pub fn template_of(tokenizer: &LanguageTokenizer) -> Result<Option<ChatTemplate>, MlError> {
    let tokens = tokenizer.config().as_object().map(SpecialTokens::from_config).unwrap_or_default();
    match &tokenizer.config()["chat_template"] {
        Value::Null => Ok(None),
        source => ChatTemplate::from_config(source, tokens).map(Some).map_err(|e| MlError::Tokenizer(format!("chat_template: {e}"))),
    }
}
