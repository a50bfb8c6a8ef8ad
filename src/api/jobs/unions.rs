//! Fields that take one of two shapes, with messages that say which.
//!
//! `request.rs` reads them through these functions: serde's untagged enums would only say that no variant matched.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use tunesmith_ml::spec::{ClassWeights, TargetModules};
use utoipa::openapi::schema::{AdditionalProperties, Schema, Type};
use utoipa::openapi::{ArrayBuilder, ObjectBuilder, OneOfBuilder, RefOr};

/// A value read by a visitor, or null.
struct Nullable<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Nullable<V> {
    type Value = Option<V::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self.0).map(Some)
    }
}

/// Reads `"all-linear"`, a regular expression, or a list of names.
pub fn target_modules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TargetModules>, D::Error> {
    struct Shapes;

    impl<'de> Visitor<'de> for Shapes {
        type Value = TargetModules;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"all-linear\", a regular expression, or a list of module names")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(TargetModules::Pattern(text.to_owned()))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = seq.next_element::<String>()? {
                names.push(name);
            }
            Ok(TargetModules::Names(names))
        }
    }

    deserializer.deserialize_option(Nullable(Shapes))
}

/// Reads `"balanced"`, or a weight for each label.
pub fn class_weights<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ClassWeights>, D::Error> {
    struct Shapes;

    impl<'de> Visitor<'de> for Shapes {
        type Value = ClassWeights;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"balanced\", or an object with a weight for each label")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "balanced" => Ok(ClassWeights::Named(text.to_owned())),
                other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
            }
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            let weights = BTreeMap::<String, f64>::deserialize(de::value::MapAccessDeserializer::new(map))?;
            Ok(ClassWeights::Map(weights))
        }
    }

    deserializer.deserialize_option(Nullable(Shapes))
}

/// How `target_modules` is described.
pub fn target_modules_schema() -> RefOr<Schema> {
    let text = || ObjectBuilder::new().schema_type(Type::String).build();
    let names = ArrayBuilder::new().items(text());
    OneOfBuilder::new().item(null()).item(text()).item(names).into()
}

/// How `class_weights` is described.
pub fn class_weights_schema() -> RefOr<Schema> {
    let balanced = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["balanced"]));
    let number = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0));
    let weights = AdditionalProperties::RefOr(number.into());
    let map = ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(weights));
    OneOfBuilder::new().item(null()).item(balanced).item(map).into()
}

fn null() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Null)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::request::{TrainingSection, TuningSection};
    use super::*;

    #[test]
    fn both_shapes_and_null_are_read() {
        let modules = |text: &str| serde_json::from_str::<TuningSection>(text).unwrap().target_modules;
        assert_eq!(modules("{}"), None);
        assert_eq!(modules(r#"{"target_modules":null}"#), None);
        assert_eq!(modules(r#"{"target_modules":"all-linear"}"#), Some(TargetModules::Pattern("all-linear".into())));
        assert_eq!(modules(r#"{"target_modules":["query"]}"#), Some(TargetModules::Names(vec!["query".into()])));
        let weights = |text: &str| serde_json::from_str::<TrainingSection>(text).unwrap().class_weights;
        assert_eq!(weights(r#"{"class_weights":"balanced"}"#), Some(ClassWeights::Named("balanced".into())));
        assert_eq!(weights(r#"{"class_weights":{"a":2}}"#), Some(ClassWeights::Map([("a".to_owned(), 2.0)].into())));
    }

    #[test]
    fn a_third_shape_is_told_which_two_there_are() {
        let message = serde_json::from_str::<TuningSection>(r#"{"target_modules":7}"#).unwrap_err().to_string();
        assert!(message.contains("all-linear"), "{message}");
        let message = serde_json::from_str::<TrainingSection>(r#"{"class_weights":"even"}"#).unwrap_err().to_string();
        assert!(message.contains("balanced"), "{message}");
    }
}
