//! The special tokens that templates write by name (`bos_token`, `eos_token`, …), read from a tokenizer's
//! configuration or given by whoever reads them out of a GGUF file.

use serde_json::{Map, Value};

/// Text of the tokens that a template may name; absent ones are undefined in the template, as in transformers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
    /// `sep_token`.
    pub sep: Option<String>,
    /// `cls_token`.
    pub cls: Option<String>,
    /// `mask_token`.
    pub mask: Option<String>,
}

impl SpecialTokens {
    /// Reads tokenizer_config.json or special_tokens_map.json, where a token is its text or an object with `content`.
    pub fn from_config(config: &Map<String, Value>) -> Self {
        let token = |name: &str| match config.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Object(token)) => token.get("content")?.as_str().map(str::to_owned),
            _ => None,
        };
        Self {
            bos: token("bos_token"),
            eos: token("eos_token"),
            pad: token("pad_token"),
            unk: token("unk_token"),
            sep: token("sep_token"),
            cls: token("cls_token"),
            mask: token("mask_token"),
        }
    }

    /// Names as templates write them, with the tokens that there are.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("bos_token", &self.bos),
            ("eos_token", &self.eos),
            ("pad_token", &self.pad),
            ("unk_token", &self.unk),
            ("sep_token", &self.sep),
            ("cls_token", &self.cls),
            ("mask_token", &self.mask),
        ]
        .into_iter()
        .filter_map(|(name, token)| Some((name, token.as_deref()?)))
    }
}
