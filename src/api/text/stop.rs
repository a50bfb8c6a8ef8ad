//! The field `stop`: one text or a few.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::api::error::ApiError;

/// Most texts of one request.
const MOST: usize = 16;
/// Longest text in bytes.
const LONGEST: usize = 1000;

/// Texts that end an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, ToSchema)]
#[schema(value_type = Option<Object>)]
pub struct Stop(pub Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shapes;

        impl<'de> Visitor<'de> for Shapes {
            type Value = Stop;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Stop, E> {
                Ok(Stop(Vec::new()))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Stop, E> {
                Ok(Stop(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Stop, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Stop)
            }
        }

        // Not an untagged enum, which forgets which item is wrong.
        deserializer.deserialize_any(Shapes)
    }
}

impl Stop {
    /// The texts, if there are not too many and none is empty or too long.
    pub fn checked(self) -> Result<Vec<String>, ApiError> {
        match self.0.iter().enumerate().find(|(_, s)| s.is_empty() || s.len() > LONGEST) {
            Some((i, _)) => Err(ApiError::field(format!("stop[{i}]"), format!("`stop[{i}]` must have 1 to {LONGEST} bytes."))),
            None if self.0.len() > MOST => Err(ApiError::field("stop", format!("`stop` takes at most {MOST} texts."))),
            None => Ok(self.0),
        }
    }
}
