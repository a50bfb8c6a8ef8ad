//! What a JSON schema says that its compiler does not see or does not place: that nothing finite satisfies it, and where in it
//! something is wrong.

use std::collections::BTreeSet;

use serde_json::Value;

/// Times that references are looked through, at most; a schema that needs more passes unchecked.
const ROUNDS: usize = 32;

/// Parts of a schema that are compiled apart in the search for a mistake, at most.
const PARTS: usize = 256;

/// Refuses a schema of which every value holds another one, such as a list item that requires its next item.
///
/// # Errors
/// Which part requires itself.
pub(super) fn has_finite_answer(schema: &Value) -> Result<(), String> {
    let mut references = BTreeSet::new();
    collect_references(schema, &mut references);
    let mut finite: BTreeSet<&str> = BTreeSet::new();
    for _ in 0..ROUNDS {
        let found: Vec<&str> = references
            .iter()
            .copied()
            .filter(|r| !finite.contains(r))
            .filter(|r| target(schema, r).is_none_or(|part| is_finite(part, &finite)))
            .collect();
        if found.is_empty() {
            return match (is_finite(schema, &finite), references.iter().find(|r| !finite.contains(*r))) {
                (false, Some(reference)) => Err(format!("no answer can satisfy it: `{reference}` requires itself without end")),
                _ => Ok(()),
            };
        }
        finite.extend(found);
    }
    Ok(())
}

fn collect_references<'s>(schema: &'s Value, into: &mut BTreeSet<&'s str>) {
    match schema {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, into)),
        _ => {}
    }
}

/// What a reference within a schema refers to.
fn target<'s>(schema: &'s Value, reference: &str) -> Option<&'s Value> {
    schema.pointer(reference.strip_prefix('#')?)
}

/// Whether some finite value satisfies a part, if the references in `finite` have one. What is not looked at counts as finite.
fn is_finite(part: &Value, finite: &BTreeSet<&str>) -> bool {
    let Value::Object(map) = part else { return true };
    if map.contains_key("const") || map.contains_key("enum") {
        return true;
    }
    if let Some(reference) = map.get("$ref").and_then(Value::as_str)
        && reference.starts_with('#')
        && !finite.contains(reference)
    {
        return false;
    }
    let parts = |key: &str| map.get(key).and_then(Value::as_array);
    let any = |key: &str| parts(key).is_none_or(|parts| parts.iter().any(|p| is_finite(p, finite)));
    if !any("anyOf") || !any("oneOf") || !parts("allOf").is_none_or(|parts| parts.iter().all(|p| is_finite(p, finite))) {
        return false;
    }
    let object = || {
        let properties = map.get("properties");
        let required = parts("required").into_iter().flatten().filter_map(Value::as_str);
        required.filter_map(|name| properties?.get(name)).all(|p| is_finite(p, finite))
    };
    let array = || {
        let least = map.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let first = parts("prefixItems").and_then(|items| items.first()).or_else(|| map.get("items"));
        least == 0 || first.is_none_or(|p| is_finite(p, finite))
    };
    let of_type = |name: &str| match name {
        "object" => object(),
        "array" => array(),
        _ => true,
    };
    match map.get("type") {
        Some(Value::String(name)) => of_type(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(of_type),
        _ => true,
    }
}

/// The smallest part of a schema that fails with the words `why`, as a JSON pointer; none where that is the whole of it.
pub(super) fn place_of(schema: &Value, why: &str, fails: &dyn Fn(&Value) -> Option<String>) -> Option<String> {
    let mut place = String::new();
    let mut part = schema;
    let mut left = PARTS;
    'deeper: loop {
        for (step, inner) in parts_of(part) {
            left = left.checked_sub(1)?;
            if fails(&alone(schema, inner)).is_some_and(|said| said == why) {
                place.push_str(&step);
                part = inner;
                continue 'deeper;
            }
        }
        return (!place.is_empty()).then_some(place);
    }
}

/// A part with the definitions that it may refer to.
fn alone(schema: &Value, part: &Value) -> Value {
    let mut alone = part.clone();
    if let Value::Object(map) = &mut alone {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = schema.get(key).filter(|_| part.to_string().contains(&format!("#/{key}/"))) {
                map.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    alone
}

/// The schemas right in a schema, each with the steps to it.
fn parts_of(schema: &Value) -> Vec<(String, &Value)> {
    let mut parts = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                let step = |name: &str| format!("/{key}/{}", name.replace('~', "~0").replace('/', "~1"));
                parts.extend(named.iter().map(|(name, part)| (step(name), part)));
            }
            ("items" | "additionalProperties" | "not", part) if part.is_object() => parts.push((format!("/{key}"), part)),
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(list)) => {
                parts.extend(list.iter().enumerate().map(|(i, part)| (format!("/{key}/{i}"), part)));
            }
            _ => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(required: Value) -> Value {
        json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": required, "properties": {
            "name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}, "all": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}})
    }

    #[test]
    fn a_schema_that_requires_itself_without_end_is_told_apart() {
        assert!(has_finite_answer(&node(json!(["name", "next"]))).is_err_and(|why| why.contains("`#/$defs/node`")));
        for finite in [node(json!(["name", "all"])), node(json!([])), json!({"type": "string"}), json!({"$ref": "#/nowhere"})] {
            assert_eq!(has_finite_answer(&finite), Ok(()), "{finite}");
        }
        let loops = |end: Value| {
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, end]},
            "b": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}}}})
        };
        assert!(has_finite_answer(&loops(json!({"$ref": "#/$defs/b"}))).is_err());
        assert_eq!(has_finite_answer(&loops(json!({"type": "null"}))), Ok(()));
        let either = json!({"type": ["object", "null"], "required": ["x"], "properties": {"x": {"$ref": "#"}}});
        assert_eq!(has_finite_answer(&either), Ok(()));
        assert!(has_finite_answer(&json!({"type": "object", "required": ["x"], "properties": {"x": {"$ref": "#"}}})).is_err());
    }

    #[test]
    fn the_smallest_part_that_is_wrong_is_found() {
        let wrong = |part: &Value| part.to_string().contains("objekt").then(|| "no such type".to_owned());
        let place = |schema: Value| place_of(&schema, "no such type", &wrong);
        let schema = json!({"properties": {"a": {"type": "string"}, "b/c": {"items": {"anyOf": [{"type": "null"}, {"type": "objekt"}]}}}});
        assert_eq!(place(schema).as_deref(), Some("/properties/b~1c/items/anyOf/1"));
        assert_eq!(place(json!({"type": "objekt"})), None);
    }
}
