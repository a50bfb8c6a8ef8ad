//! OpenAI's own way to set a job up: `method`, `hyperparameters` with "auto".
//!
//! Accepted so that the unmodified client works; `resolve.rs` maps it onto `training`. The same types stand in the job's
//! object.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;
use utoipa::openapi::schema::{Schema, Type};
use utoipa::openapi::{ObjectBuilder, OneOfBuilder, RefOr};

/// A number, or `"auto"` for the server's choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Auto<T> {
    /// The server's choice.
    Auto,
    /// The client's.
    Set(T),
}

impl<T> Auto<T> {
    /// The client's number, if it gave one.
    pub fn set(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Set(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Set(value) => value.serialize(serializer),
        }
    }
}

/// Numbers that can stand beside "auto".
pub trait Number: Sized {
    /// Reads an integer.
    fn of_integer(value: u64) -> Self;
    /// Reads a fraction, if it fits.
    fn of_fraction(value: f64) -> Option<Self>;
    /// What is wanted, for messages.
    const WANTED: &'static str;
    /// The type in the API's description.
    const TYPE: Type;
}

impl Number for u64 {
    fn of_integer(value: u64) -> Self {
        value
    }
    fn of_fraction(_: f64) -> Option<Self> {
        None
    }
    const WANTED: &'static str = "\"auto\" or a whole number";
    const TYPE: Type = Type::Integer;
}

impl Number for f64 {
    fn of_integer(value: u64) -> Self {
        value as f64
    }
    fn of_fraction(value: f64) -> Option<Self> {
        Some(value)
    }
    const WANTED: &'static str = "\"auto\" or a number";
    const TYPE: Type = Type::Number;
}

impl<'de, T: Number> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);

        impl<T: Number> Visitor<'_> for Either<T> {
            type Value = Auto<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::WANTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match text {
                    "auto" => Ok(Auto::Auto),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                Ok(Auto::Set(T::of_integer(value)))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
                T::of_fraction(value).map(Auto::Set).ok_or_else(|| E::invalid_value(de::Unexpected::Float(value), &self))
            }
        }

        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// How such a field is described.
fn schema<T: Number>() -> RefOr<Schema> {
    let null = ObjectBuilder::new().schema_type(Type::Null);
    let auto = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["auto"]));
    let number = ObjectBuilder::new().schema_type(T::TYPE).minimum(Some(0));
    OneOfBuilder::new().item(null).item(auto).item(number).into()
}

/// OpenAI's three settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hyperparameters {
    /// Passes over the rows.
    #[schema(schema_with = schema::<u64>)]
    pub n_epochs: Option<Auto<u64>>,
    /// Rows of a step.
    #[schema(schema_with = schema::<u64>)]
    pub batch_size: Option<Auto<u64>>,
    /// Factor on the default learning rate.
    #[schema(schema_with = schema::<f64>)]
    pub learning_rate_multiplier: Option<Auto<f64>>,
}

/// OpenAI's settings where a request has them, with the path of the object that they stand in.
#[derive(Debug, Clone)]
pub struct Given {
    /// `hyperparameters`, or its place in `method`.
    pub path: &'static str,
    /// What stands there.
    pub settings: Hyperparameters,
}

impl Given {
    /// The path of one of the settings, as the client wrote it.
    pub fn path_of(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }
}

/// OpenAI's `method`.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Only `supervised` is available.
    #[serde(rename = "type")]
    pub kind: MethodKind,
    /// Settings of supervised training.
    pub supervised: Option<Supervised>,
    /// Not available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub dpo: Option<serde_json::Value>,
    /// Not available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub reinforcement: Option<serde_json::Value>,
}

/// The names of OpenAI's methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodKind {
    /// Learn from examples.
    Supervised,
    /// Learn from preferences.
    Dpo,
    /// Learn from a grader.
    Reinforcement,
}

/// Settings of supervised training.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Supervised {
    /// The three settings.
    pub hyperparameters: Option<Hyperparameters>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn auto_and_numbers_are_read_and_anything_else_is_told_what_is_wanted() {
        let read = |text: &str| serde_json::from_str::<Hyperparameters>(text);
        let both = read(r#"{"n_epochs":2,"batch_size":"auto","learning_rate_multiplier":1.5}"#).unwrap();
        assert_eq!((both.n_epochs, both.batch_size), (Some(Auto::Set(2)), Some(Auto::Auto)));
        assert_eq!(both.learning_rate_multiplier, Some(Auto::Set(1.5)));
        for wrong in [r#"{"n_epochs":1.5}"#, r#"{"n_epochs":"many"}"#, r#"{"n_epochs":-1}"#, r#"{"n_epochs":true}"#] {
            let message = read(wrong).unwrap_err().to_string();
            assert!(message.contains("auto"), "{message}");
        }
    }
}
