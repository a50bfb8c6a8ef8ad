//! Fields that take one text or several, as text or as tokens: `prompt` of completions, `input` of embeddings.
//!
//! Read item by item, so that what is wrong is named by its place; an untagged enum would forget it.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, DeserializeSeed, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::schema::{Schema, Type};
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, RefOr};

/// A text, or tokens in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// A text.
    Text(String),
    /// Ids in the model's vocabulary, taken as they are.
    Tokens(Vec<u32>),
}

/// What the field holds.
#[derive(Debug)]
pub struct Passages {
    /// In order.
    pub items: Vec<Passage>,
    /// Whether they stood in a list, so that each is named by its place.
    pub is_list: bool,
}

/// The field's description.
pub fn schema() -> RefOr<Schema> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let id = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
    let ids = || ArrayBuilder::new().items(id()).min_items(Some(1));
    let list = |items: RefOr<Schema>| ArrayBuilder::new().items(items).min_items(Some(1));
    OneOfBuilder::new().item(text()).item(list(text().into())).item(ids()).item(list(ids().into())).into()
}

/// An item of the field's list.
#[derive(Debug)]
enum Item {
    Token(u32),
    Passage(Passage),
}

impl<'de> Deserialize<'de> for Passages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = Passages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a list of texts, a list of token ids, or a list of such lists")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Passages, E> {
                Ok(Passages { items: vec![Passage::Text(text.to_owned())], is_list: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Passages, A::Error> {
                let (mut items, mut ids, mut first) = (Vec::new(), Vec::new(), None);
                while let Some(item) = seq.next_element_seed(Like(first))? {
                    first.get_or_insert(item.kind());
                    match item {
                        Item::Token(id) => ids.push(id),
                        Item::Passage(passage) => items.push(passage),
                    }
                }
                if ids.is_empty() {
                    return Ok(Passages { items, is_list: true });
                }
                Ok(Passages { items: vec![Passage::Tokens(ids)], is_list: false })
            }
        }

        deserializer.deserialize_any(Shapes)
    }
}

/// An item, which must be of the same kind as the first one.
struct Like(Option<&'static str>);

impl<'de> DeserializeSeed<'de> for Like {
    type Value = Item;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Item, D::Error> {
        let item = deserializer.deserialize_any(OfItem)?;
        match self.0 {
            Some(first) if first != item.kind() => {
                Err(de::Error::custom(format!("this is {}, but the list begins with {first}", item.kind())))
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
        Ok(Item::Passage(Passage::Text(text.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<Item, E> {
        u32::try_from(id).map(Item::Token).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<Item, E> {
        Err(E::invalid_value(Unexpected::Signed(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Item, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(|ids| Item::Passage(Passage::Tokens(ids)))
    }
}

impl Item {
    fn kind(&self) -> &'static str {
        match self {
            Self::Token(_) => "a token id",
            Self::Passage(Passage::Text(_)) => "a text",
            Self::Passage(Passage::Tokens(_)) => "a list of token ids",
        }
    }
}
