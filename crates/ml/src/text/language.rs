//! The tokenizer of a language model: text to ids, ids to bytes, and the tokens that end an answer.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::{MlError, Result};
use crate::models::read_json;
use crate::models::source::Weights;
use crate::text::TokenPiece;

/// Tokens that end a turn in the templates of known families.
const TURN_ENDS: &[&str] =
    &["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|endoftext|>", "</s>"];

/// The byte before special tokens' text, as llguidance writes them.
const SPECIAL: u8 = 0xff;

/// A tokenizer with what a chat needs to know of it.
pub struct LanguageTokenizer {
    tokenizer: Tokenizer,
    json: Value,
    config: Value,
    token_bytes: Vec<Vec<u8>>,
    special: BTreeSet<u32>,
    end_tokens: BTreeSet<u32>,
    /// The token that the tokenizer puts before texts, if that is one special token.
    first_token: Option<u32>,
}

impl LanguageTokenizer {
    /// Reads tokenizer.json, tokenizer_config.json and generation_config.json of a folder, or what a GGUF file has in their place.
    ///
    /// # Errors
    /// If there is no tokenizer, or it has ids beyond `vocab_size`.
    pub fn read(weights: &Weights, path: &Path, vocab_size: usize) -> Result<Self> {
        let optional = |name: &str| if path.join(name).is_file() { read_json(&path.join(name)) } else { Ok(Value::Null) };
        let gguf = |e: tunesmith_gguf::GgufError| MlError::Tokenizer(e.to_string());
        let (json, mut config, generation) = match weights {
            Weights::Folder(..) => {
                (read_json(&path.join("tokenizer.json"))?, optional("tokenizer_config.json")?, optional("generation_config.json")?)
            }
            Weights::Gguf(file) => (file.tokenizer_json().map_err(gguf)?, file.tokenizer_config_json().map_err(gguf)?, Value::Null),
        };
        let template = path.join("chat_template.jinja");
        if template.is_file() {
            let text = std::fs::read_to_string(&template).map_err(|e| MlError::io(&template, e))?;
            config["chat_template"] = Value::from(text);
        }
        Self::new(json, config, &generation, &Value::Object(weights.config()?), vocab_size)
    }

    fn new(mut json: Value, config: Value, generation: &Value, model: &Value, vocab_size: usize) -> Result<Self> {
        json["padding"] = Value::Null;
        json["truncation"] = Value::Null;
        let tokenizer: Tokenizer = serde_json::from_value(json.clone()).map_err(|e| MlError::Tokenizer(format!("tokenizer.json: {e}")))?;
        if let Some((token, id)) = tokenizer.get_vocab(true).into_iter().find(|(_, id)| *id as usize >= vocab_size) {
            return Err(MlError::Tokenizer(format!(
                "token {token:?} has id {id}, but the model's vocabulary has {vocab_size} entries: this tokenizer belongs to another model"
            )));
        }
        let mut token_bytes = token_bytes(&json, vocab_size)?;
        token_bytes.resize(vocab_size, Vec::new());
        let end_tokens = end_tokens(&tokenizer, &config, generation, model);
        let special: BTreeSet<u32> =
            tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, t)| t.special).map(|(id, _)| id).collect();
        let first = |add_special| tokenizer.encode_fast("a", add_special).ok().and_then(|e| e.get_ids().first().copied());
        let first_token = first(true).filter(|id| special.contains(id) && first(false) != Some(*id));
        Ok(Self { tokenizer, json, config, token_bytes, special, end_tokens, first_token })
    }

    /// Ids of a text. `add_special` adds what the tokenizer puts around texts, such as a first token; a text that a template
    /// rendered has them already, and one that begins with the first token gets no second one. Special tokens that are spelled out
    /// in the text are taken for what they say.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, add_special).map_err(|e| MlError::Tokenizer(e.to_string()))?;
        let ids = encoding.get_ids();
        Ok(ids[usize::from(add_special && self.begins_twice(ids))..].to_vec())
    }

    /// Whether two first tokens stand at the beginning: the text had one, and the tokenizer put its own before it.
    fn begins_twice(&self, ids: &[u32]) -> bool {
        self.first_token.is_some_and(|first| ids.starts_with(&[first, first]))
    }

    /// Ids of a text, each with the bytes of the text that it stands for.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Vec<(u32, std::ops::Range<usize>)>> {
        let encoding = self.tokenizer.encode(text, add_special).map_err(|e| MlError::Tokenizer(e.to_string()))?;
        let twice = usize::from(add_special && self.begins_twice(encoding.get_ids()));
        let all = encoding.get_ids().iter().zip(encoding.get_offsets()).skip(twice);
        Ok(all.map(|(id, (start, end))| (*id, *start..*end)).collect())
    }

    /// The tokens of a text with their places.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn pieces(&self, text: &str) -> Result<Vec<TokenPiece>> {
        let encoding = self.tokenizer.encode_char_offsets(text, true).map_err(|e| MlError::Tokenizer(e.to_string()))?;
        Ok(TokenPiece::of(&encoding))
    }

    /// The id of a token by its text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The bytes that a token stands for; none for a special one unless they are to be shown.
    pub fn bytes_of(&self, id: u32, show_special: bool) -> &[u8] {
        match self.token_bytes.get(id as usize).map(Vec::as_slice) {
            Some([SPECIAL, text @ ..]) if self.is_special(id) => {
                if show_special {
                    text
                } else {
                    &[]
                }
            }
            Some(bytes) => bytes,
            None => &[],
        }
    }

    fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Whether the tokenizer puts a space before every text, as SentencePiece's do.
    pub fn adds_space(&self) -> bool {
        let normalizer = self.json["normalizer"].to_string();
        let pre_tokenizer = self.json["pre_tokenizer"].to_string();
        normalizer.contains("\"Prepend\"") || (pre_tokenizer.contains("Metaspace") && !pre_tokenizer.contains("\"never\""))
    }

    /// The text of some tokens, special ones shown or not.
    pub fn text_of(&self, ids: &[u32], show_special: bool) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.bytes_of(*id, show_special)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What every token stands for, special ones after the byte 0xFF.
    pub fn token_bytes(&self) -> &[Vec<u8>] {
        &self.token_bytes
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &BTreeSet<u32> {
        &self.end_tokens
    }

    /// The token that ends a plain text.
    pub fn end_of_text(&self) -> Option<u32> {
        self.special("eos_token").and_then(|t| self.id_of(&t)).or(self.end_tokens.first().copied())
    }

    /// tokenizer.json.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// tokenizer_config.json, with the chat template in it.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// A special token of the configuration by its role, such as `bos_token`.
    pub fn special(&self, role: &str) -> Option<String> {
        let value = &self.config[role];
        value.as_str().or(value["content"].as_str()).map(str::to_owned)
    }
}

/// What every token stands for. llguidance takes the file for well-formed: it panics at names such as `<0xZZ>`, and makes room for
/// whatever id a file claims, so both are looked at before it is asked.
fn token_bytes(json: &Value, vocab_size: usize) -> Result<Vec<Vec<u8>>> {
    let ids = json["added_tokens"].as_array().into_iter().flatten().map(|t| &t["id"]);
    let ids = ids.chain(json["model"]["vocab"].as_object().into_iter().flat_map(|v| v.values()));
    if let Some(id) = ids.filter_map(Value::as_u64).find(|id| *id >= vocab_size as u64) {
        return Err(MlError::Tokenizer(format!("tokenizer.json has the id {id}, but the model's vocabulary has {vocab_size} entries")));
    }
    let mut json = json.clone();
    let mut words = Vec::new();
    let spells_bytes = json["decoder"]["type"] != "ByteLevel";
    if let Some(vocab) = json["model"]["vocab"].as_object_mut().filter(|_| spells_bytes) {
        // Such a name is a word like any other to the tokenizer.
        vocab.retain(|name, id| {
            let word = name.starts_with("<0x") && !is_byte(name);
            words.extend(id.as_u64().filter(|_| word).map(|id| (id as usize, name.replace('\u{2581}', " ").into_bytes())));
            !word
        });
    }
    let mut bytes = llguidance::token_bytes_from_tokenizer_json(&json).map_err(|e| MlError::Tokenizer(e.to_string()))?;
    bytes.resize(bytes.len().max(vocab_size), Vec::new());
    for (id, word) in words.into_iter().filter(|(id, _)| *id < vocab_size) {
        if bytes[id].is_empty() {
            bytes[id] = word;
        }
    }
    Ok(bytes)
}

/// Whether a name is that of one byte, such as `<0x0A>`.
fn is_byte(name: &str) -> bool {
    let digits = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Every token that some file calls an end, and those that the chat template ends turns with.
fn end_tokens(tokenizer: &Tokenizer, config: &Value, generation: &Value, model: &Value) -> BTreeSet<u32> {
    let mut ends = BTreeSet::new();
    for value in [&generation["eos_token_id"], &model["eos_token_id"]] {
        let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        ends.extend(ids.iter().filter_map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok())));
    }
    let eos = &config["eos_token"];
    ends.extend(eos.as_str().or(eos["content"].as_str()).and_then(|t| tokenizer.token_to_id(t)));
    let template = config["chat_template"].to_string();
    let added = tokenizer.get_added_tokens_decoder();
    for text in TURN_ENDS.iter().filter(|t| template.contains(**t)) {
        ends.extend(tokenizer.token_to_id(text).filter(|id| added.contains_key(id)));
    }
    ends
}
