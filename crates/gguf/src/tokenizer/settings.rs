//! The tokenizer_config.json that a file's metadata amounts to: roles of tokens, lengths, and the chat template.

use serde_json::{Map, Value as Json, json};

use super::vocabulary::Vocabulary;
use crate::error::Result;
use crate::file::GgufFile;
use crate::value::Value;

impl GgufFile {
    /// tokenizer_config.json, with the chat template in it.
    ///
    /// # Errors
    /// As [`GgufFile::tokenizer_json`].
    pub fn tokenizer_config_json(&self) -> Result<Json> {
        let vocabulary = Vocabulary::of(self)?;
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("add_bos_token".into(), json!(self.adds_bos()));
        config.insert("add_eos_token".into(), json!(self.adds_eos()));
        for (name, role) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")] {
            if let Some((id, _)) = self.role(role) {
                config.insert(name.into(), json!(vocabulary.tokens[id]));
            }
        }
        if let Some(length) = self.count("context_length")? {
            config.insert("model_max_length".into(), json!(length));
        }
        if let Some(template) = self.chat_template() {
            config.insert("chat_template".into(), template);
        }
        Ok(Json::Object(config))
    }

    /// One template as a text, several as a list with names, as `transformers` keeps them.
    fn chat_template(&self) -> Option<Json> {
        let named = |name: &str, template: &str| json!({"name": name, "template": template});
        let default = self.text("tokenizer.chat_template");
        let names = self.value("tokenizer.chat_templates").and_then(Value::texts).unwrap_or_default();
        let others = names.iter().filter_map(|name| Some(named(name, self.text(&format!("tokenizer.chat_template.{name}"))?)));
        let all: Vec<Json> = default.map(|template| named("default", template)).into_iter().chain(others).collect();
        match (default, &all[..]) {
            (_, []) => None,
            (Some(template), [_]) => Some(json!(template)),
            _ => Some(Json::Array(all)),
        }
    }
}
