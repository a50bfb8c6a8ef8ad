//! The tokens as tokenizer.json needs them: each with a name of its own, and those that are found in a text before it is cut.
//!
//! The libraries that read tokenizer.json take a name for the bytes that it stands for, and some stop the program on a name that stands
//! for none: such names are changed or refused here.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::Kind;
use super::byte_level::respelled;
use crate::error::{Result, unsupported};
use crate::file::GgufFile;
use crate::value::Value;

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Ends of turns and texts that converters have taken for words; llama.cpp corrects the same ones.
const CONTROL_BY_NAME: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>"];

/// How a token is found in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// As a piece, by the model.
    Piece,
    /// Never: it stands for a byte, or for nothing.
    Nowhere,
    /// Whole, before the text is cut.
    Added { special: bool },
}

/// The tokens in the order of their ids.
pub(super) struct Vocabulary {
    pub kind: Kind,
    /// Their names, no two the same.
    pub tokens: Vec<String>,
    places: Vec<Place>,
}

impl Vocabulary {
    pub fn of(file: &GgufFile) -> Result<Self> {
        let kind = file.tokenizer_kind()?;
        let own = file.tokens()?;
        let places: Vec<Place> = own.iter().enumerate().map(|(id, token)| place(file, id, token)).collect();
        let mut vocabulary = Self { kind, tokens: Vec::with_capacity(own.len()), places };
        let mut taken: HashMap<String, usize> = HashMap::with_capacity(own.len());
        for (id, token) in own.iter().enumerate() {
            let mut name = vocabulary.spelled(file, id, token)?;
            if name.is_empty() || taken.contains_key(&name) {
                // The second of two is never found in a text, neither here nor in llama.cpp; it only keeps its id.
                name = format!("[UNUSED_{id}]");
                vocabulary.places[id] = Place::Nowhere;
            }
            if let Some(first) = taken.insert(name.clone(), id) {
                return unsupported(format!("tokens {first} and {id} of the tokenizer are both {name:?}"));
            }
            vocabulary.tokens.push(name);
        }
        Ok(vocabulary)
    }

    fn spelled(&mut self, file: &GgufFile, id: usize, token: &str) -> Result<String> {
        let added = matches!(self.places[id], Place::Added { .. });
        match self.kind {
            Kind::ByteLevel if added => Ok(token.to_owned()),
            Kind::ByteLevel => Ok(respelled(token)),
            // Gemma's runs of spaces are merged like words; converters write them as they look in a text.
            Kind::SentencePiece if file.architecture().starts_with("gemma") && token.contains(' ') && token.trim().is_empty() => {
                self.places[id] = Place::Piece;
                Ok(token.replace(' ', "▁"))
            }
            Kind::SentencePiece => {
                if !added && token.starts_with("<0x") && byte_of(token).is_none() {
                    return unsupported(format!("token {id} of the tokenizer, {token:?}, looks like a byte and is none"));
                }
                Ok(token.to_owned())
            }
        }
    }

    /// Whether a token is a piece of which a text is made.
    pub fn is_piece(&self, id: usize) -> bool {
        matches!(self.places[id], Place::Piece | Place::Added { special: false })
    }

    /// The model's `vocab`.
    pub fn json(&self) -> Map<String, Json> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    /// `added_tokens`.
    pub fn added_json(&self) -> Vec<Json> {
        let all = self.tokens.iter().zip(&self.places).enumerate();
        let added = all.filter_map(|(id, (token, place))| match place {
            Place::Added { special } => Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special
            })),
            _ => None,
        });
        added.collect()
    }
}

fn place(file: &GgufFile, id: usize, token: &str) -> Place {
    if CONTROL_BY_NAME.contains(&token) {
        return Place::Added { special: true };
    }
    let kind = match file.value("tokenizer.ggml.token_type") {
        Some(Value::Integers(types)) => types.get(id).copied(),
        _ if ["bos", "eos", "unknown"].iter().any(|role| file.role(role).is_some_and(|(own, _)| own == id)) => Some(CONTROL),
        _ if byte_of(token).is_some() => Some(BYTE),
        _ => None,
    };
    match kind {
        Some(CONTROL | UNKNOWN) => Place::Added { special: true },
        Some(USER_DEFINED) => Place::Added { special: false },
        Some(BYTE | UNUSED) => Place::Nowhere,
        _ => Place::Piece,
    }
}

/// The byte that a SentencePiece token such as `<0x0A>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u8::from_str_radix(digits, 16).ok())?
}
