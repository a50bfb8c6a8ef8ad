//! The field `stop`: one text or a few.

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
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a text or a list of texts")]
        enum Shape {
            One(String),
            Many(Vec<String>),
            None(()),
        }
        Ok(Self(match Shape::deserialize(deserializer)? {
            Shape::One(text) => vec![text],
            Shape::Many(texts) => texts,
            Shape::None(()) => Vec::new(),
        }))
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
