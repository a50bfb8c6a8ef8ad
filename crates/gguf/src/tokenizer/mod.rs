//! The tokenizer.json that a file's metadata amounts to: model, normalizer, pre-tokenizer, added tokens, what stands around a text.
//!
//! Where llama.cpp and the model's own Hugging Face folder part, the folder is followed, because models are trained with it here.

mod byte_level;
mod merges;
mod pre;
mod sentence_piece;
mod settings;
mod vocabulary;

use serde_json::{Map, Value as Json, json};

use self::vocabulary::Vocabulary;
use crate::error::{Result, unsupported};
use crate::file::GgufFile;
use crate::value::Value;

/// An object of values that are moved: `json!` would copy a vocabulary and its merges once for each level.
fn object<const N: usize>(fields: [(&str, Json); N]) -> Json {
    Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// What stands for a character that is in no piece.
enum Unknown {
    /// Nothing: there is none such.
    Never,
    /// The tokens of its bytes, and where those are missing too, this token.
    Bytes(Option<String>),
}

/// The `model` of both kinds of tokenizer.
fn bpe(vocabulary: &Vocabulary, merges: Vec<Json>, unknown: Unknown, ignore_merges: bool) -> Json {
    let (bytes, token) = match unknown {
        Unknown::Never => (false, None),
        Unknown::Bytes(token) => (true, token),
    };
    object([
        ("type", json!("BPE")),
        ("dropout", Json::Null),
        ("fuse_unk", json!(bytes)),
        ("byte_fallback", json!(bytes)),
        ("unk_token", json!(token)),
        ("continuing_subword_prefix", Json::Null),
        ("end_of_word_suffix", Json::Null),
        ("ignore_merges", json!(ignore_merges)),
        ("vocab", Json::Object(vocabulary.json())),
        ("merges", Json::Array(merges)),
    ])
}

/// A merge of two pieces.
fn pair(left: &str, right: &str) -> Json {
    Json::Array(vec![Json::from(left), Json::from(right)])
}

/// The parts of a tokenizer.json that its kind decides.
struct Parts {
    model: Json,
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
}

/// The two kinds of tokenizer that the supported models have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A BPE over bytes, as GPT-2's.
    ByteLevel,
    /// A SentencePiece BPE, with bytes for what it does not know.
    SentencePiece,
}

impl GgufFile {
    /// tokenizer.json.
    ///
    /// # Errors
    /// If the file has no tokenizer, or one of a kind that cannot be built.
    pub fn tokenizer_json(&self) -> Result<Json> {
        let vocabulary = Vocabulary::of(self)?;
        let parts = match vocabulary.kind {
            Kind::ByteLevel => self.byte_level(&vocabulary)?,
            Kind::SentencePiece => self.sentence_piece(&vocabulary)?,
        };
        Ok(object([
            ("version", json!("1.0")),
            ("truncation", Json::Null),
            ("padding", Json::Null),
            ("added_tokens", Json::Array(vocabulary.added_json())),
            ("normalizer", parts.normalizer),
            ("pre_tokenizer", parts.pre_tokenizer),
            ("post_processor", self.post_processor(&vocabulary)),
            ("decoder", parts.decoder),
            ("model", parts.model),
        ]))
    }

    fn tokenizer_kind(&self) -> Result<Kind> {
        match self.text("tokenizer.ggml.model") {
            Some("gpt2") => Ok(Kind::ByteLevel),
            Some("llama") => Ok(Kind::SentencePiece),
            Some(other) => unsupported(format!("tokenizer.ggml.model {other:?} is not supported; supported: gpt2, llama")),
            None => unsupported("there is no tokenizer in the file (tokenizer.ggml.model)"),
        }
    }

    /// The tokens as the file spells them.
    fn tokens(&self) -> Result<&[String]> {
        match self.value("tokenizer.ggml.tokens").and_then(Value::texts) {
            Some(tokens) if !tokens.is_empty() => Ok(tokens),
            _ => unsupported("there is no tokenizer in the file (tokenizer.ggml.tokens)"),
        }
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        match self.value(key) {
            Some(Value::Bool(v)) => *v,
            _ => default,
        }
    }

    /// The token of a role such as `bos`: its id, and how the file spells it. An id beyond the vocabulary is no token.
    pub(crate) fn role(&self, role: &str) -> Option<(usize, &str)> {
        let id = self.size(&format!("tokenizer.ggml.{role}_token_id")).or_else(|| {
            // SentencePiece's own defaults, which files of 2023 leave out.
            let default = match role {
                "unknown" => 0,
                "bos" => 1,
                "eos" => 2,
                _ => return None,
            };
            (self.tokenizer_kind().ok()? == Kind::SentencePiece).then_some(default)
        })?;
        Some((id, self.tokens().ok()?.get(id)?))
    }

    /// Whether texts begin with the first token.
    fn adds_bos(&self) -> bool {
        let default = match self.tokenizer_kind() {
            Ok(Kind::SentencePiece) => true,
            _ => pre::of(self.pre_name()).is_ok_and(|pre| pre.adds_bos),
        };
        self.flag("tokenizer.ggml.add_bos_token", default) && self.role("bos").is_some()
    }

    /// Whether texts end with the last token.
    fn adds_eos(&self) -> bool {
        self.flag("tokenizer.ggml.add_eos_token", false) && self.role("eos").is_some()
    }

    /// The tokens that stand around every text.
    fn post_processor(&self, vocabulary: &Vocabulary) -> Json {
        let spelled = |role: &str| self.role(role).map(|(id, _)| (id, vocabulary.tokens[id].as_str()));
        let first = spelled("bos").filter(|_| self.adds_bos());
        let last = spelled("eos").filter(|_| self.adds_eos());
        if first.is_none() && last.is_none() {
            return match vocabulary.kind {
                Kind::ByteLevel => json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}),
                Kind::SentencePiece => Json::Null,
            };
        }
        let special = |token: &str, segment: u32| json!({"SpecialToken": {"id": token, "type_id": segment}});
        let around = |sequence: &str, segment: u32| {
            let mut parts: Vec<Json> = first.iter().map(|(_, token)| special(token, segment)).collect();
            parts.push(json!({"Sequence": {"id": sequence, "type_id": segment}}));
            parts.extend(last.iter().map(|(_, token)| special(token, segment)));
            parts
        };
        let tokens: Map<String, Json> = [first, last]
            .into_iter()
            .flatten()
            .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        })
    }
}
