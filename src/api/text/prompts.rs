//! The field `prompt` of `/v1/completions`: one text or several, as text or as tokens.
//!
//! Read item by item, so that what is wrong is named by its place; an untagged enum would forget it.

use std::fmt;
use std::mem::discriminant;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, DeserializeSeed, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::run::{check_room, off_thread};
use super::tokens::{Places, places_in};
use crate::api::error::ApiError;
use crate::serve::Language;

/// Most prompts of one request.
const MOST: usize = 256;

/// What a request goes on with.
#[derive(Debug)]
pub struct Prompts {
    items: Vec<Item>,
    /// Whether they stood in a list, so that each is named by its place.
    is_list: bool,
}

/// An item of the field.
#[derive(Debug)]
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

/// A prompt with its text, for `echo`.
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Where each of the tokens stands in the text, in characters.
    pub places: Vec<usize>,
}

impl Prompts {
    /// The prompts, of which each leaves room for an answer of `least` tokens.
    ///
    /// # Errors
    /// If there is none, or too many, or one is empty or too long, or has tokens that the model lacks.
    pub async fn read(self, language: &Language, least: usize) -> Result<Vec<Prompt>, ApiError> {
        match self.items.len() {
            0 => return Err(ApiError::field("prompt", "`prompt` is empty; send at least one text.")),
            n if n > MOST => return Err(ApiError::field("prompt", format!("`prompt` has {n} texts; a request takes at most {MOST}."))),
            _ => {}
        }
        let Self { items, is_list } = self;
        let field = move |i: usize| if is_list { format!("prompt[{i}]") } else { "prompt".to_owned() };
        let model = language.model.clone();
        let made = off_thread(move || {
            let tokenizer = model.tokenizer();
            let text = |text: String| -> Result<Prompt, ApiError> {
                let tokens = tokenizer.encode_with_offsets(&text, true).map_err(ApiError::internal)?;
                let (ids, spans): (Vec<u32>, Vec<_>) = tokens.into_iter().unzip();
                Ok(Prompt { ids, places: places_in(&text, spans), text })
            };
            let tokens = |ids: Vec<u32>, field: String| -> Result<Prompt, ApiError> {
                model.decoder().check_ids(&ids).map_err(|e| ApiError::field(field.clone(), format!("`{field}`: {e}.")))?;
                let mut places = Places::default();
                let places = ids.iter().map(|id| places.next(tokenizer.bytes_of(*id, false))).collect();
                Ok(Prompt { text: tokenizer.text_of(&ids, false), places, ids })
            };
            let one = |(i, item)| match item {
                Item::Text(one) => text(one),
                Item::Token(id) => tokens(vec![id], field(i)),
                Item::Tokens(ids) => tokens(ids, field(i)),
            };
            items.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
        })
        .await?;
        made.iter().enumerate().try_for_each(|(i, p)| check_room(language, p.ids.len(), least, &field(i)))?;
        Ok(made)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of texts, a list of token ids, or a list of such lists")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts { items: vec![Item::Text(text.to_owned())], is_list: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mut items: Vec<Item> = Vec::new();
                while let Some(item) = seq.next_element_seed(Like(items.first()))? {
                    items.push(item);
                }
                if !matches!(items.first(), Some(Item::Token(_))) {
                    return Ok(Prompts { items, is_list: true });
                }
                let ids = items.into_iter().filter_map(|item| if let Item::Token(id) = item { Some(id) } else { None });
                Ok(Prompts { items: vec![Item::Tokens(ids.collect())], is_list: false })
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

/// An item, which must be of the same kind as the first one.
struct Like<'a>(Option<&'a Item>);

impl<'de> DeserializeSeed<'de> for Like<'_> {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        let item = deserializer.deserialize_any(OfItem)?;
        match self.0 {
            Some(first) if discriminant(first) != discriminant(&item) => {
                Err(de::Error::custom(format!("this is {}, but the list begins with {}", item.kind(), first.kind())))
            }
            _ => Ok(item),
        }
    }
}

struct OfItem;

impl<'de> Visitor<'de> for OfItem {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a token id (a whole number, 0 or more), or a list of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Item, E> {
        u32::try_from(id).map(Item::Token).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Item, E> {
        Err(E::invalid_value(Unexpected::Signed(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Item, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Item::Tokens)
    }
}

impl Item {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Token(_) => "a token id",
            Self::Tokens(_) => "a list of token ids",
        }
    }
}
