//! JSON Lines: one object a line. Opened by `rows`. Each line stands alone, so a fault in one does not hide the next; every
//! row must have the keys of the first one, since a missing key is the commonest fault and else shows up deep in training.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::error::{DataError, Problem, name_list, shorten};
use crate::limits::{Limits, MAX_COLUMNS};
use crate::lines::Lines;
use crate::rows::{Record, Records, Row};

/// Reads the rows of a JSONL file.
pub(crate) struct JsonlRows {
    lines: Lines,
    keys: Option<Keys>,
}

/// The keys that every row must have.
struct Keys {
    line: u64,
    names: Vec<String>,
}

impl JsonlRows {
    pub(crate) fn open(path: &Path, gzip: bool, limits: &Limits) -> Result<Self, DataError> {
        Ok(Self { lines: Lines::open(path, gzip, limits)?, keys: None })
    }

    fn row_of_line(&mut self) -> Result<Record, DataError> {
        let line = self.lines.number;
        let faulty = |problem| Ok(Record::Faulty(vec![problem]));
        let text = match std::str::from_utf8(&self.lines.bytes) {
            Ok(text) => text,
            Err(error) => return faulty(not_utf8(line, &self.lines.bytes, error.valid_up_to())),
        };
        if let Some(found) = other_than_object(text) {
            return faulty(Problem::of_line(line, found, ONE_OBJECT));
        }
        let object: Object = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => return faulty(syntax_problem(line, text, &error)),
        };
        if let Some(key) = object.repeated {
            return faulty(Problem::of_field(line, &key, "stands twice", "each key once"));
        }
        let values = object.values;
        match &self.keys {
            None if values.len() > MAX_COLUMNS => {
                return Err(DataError::TooManyColumns { found: values.len() });
            }
            None => {
                self.keys = Some(Keys { line, names: values.keys().cloned().collect() });
            }
            Some(keys) => {
                let problems = keys.compare(line, &values);
                if !problems.is_empty() {
                    return Ok(Record::Faulty(problems));
                }
            }
        }
        Ok(Record::Row(Row { line, values }))
    }
}

impl Records for JsonlRows {
    fn next_record(&mut self) -> Result<Option<Record>, DataError> {
        while let Some(whole) = self.lines.read()? {
            if !whole {
                return Ok(Some(Record::Faulty(vec![Problem::of_line(
                    self.lines.number,
                    format!("found more than {} bytes", self.lines.most),
                    "a shorter line; that is the limit of one row",
                )])));
            }
            if !self.lines.bytes.trim_ascii().is_empty() {
                return self.row_of_line().map(Some);
            }
        }
        Ok(None)
    }
}

impl Keys {
    fn compare(&self, line: u64, values: &Map<String, Value>) -> Vec<Problem> {
        let mut problems = Vec::new();
        let expected = || {
            let names = name_list(self.names.iter().map(String::as_str));
            format!("the keys of line {} ({names})", self.line)
        };
        // Comparing a hostile row's million keys one by one would take minutes.
        if values.len() > MAX_COLUMNS {
            let found = format!("found {} keys", values.len());
            return vec![Problem::of_line(line, found, expected())];
        }
        for name in &self.names {
            if !values.contains_key(name) {
                problems.push(Problem::of_field(line, name, "is missing", expected()));
            }
        }
        // Every key of the first row is here and none is more: that is the common case, and it ends here.
        if values.len() + problems.len() > self.names.len() {
            for name in values.keys().filter(|name| !self.names.contains(name)) {
                let found = format!("does not stand in line {}", self.line);
                problems.push(Problem::of_field(line, name, found, expected()));
            }
        }
        problems
    }
}

/// An object at the top of a line, with the first key that stands twice (serde_json would keep the last in silence).
struct Object {
    values: Map<String, Value>,
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object, A::Error> {
                let mut values = Map::new();
                let mut repeated = None;
                while let Some((key, value)) = entries.next_entry::<String, Value>()? {
                    if values.contains_key(&key) && repeated.is_none() {
                        repeated = Some(key.clone());
                    }
                    values.insert(key, value);
                }
                Ok(Object { values, repeated })
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

const ONE_OBJECT: &str = "one JSON object a line, such as {\"text\": \"…\", \"label\": \"…\"}";

fn other_than_object(text: &str) -> Option<&'static str> {
    match text.trim_start().bytes().next()? {
        b'{' => None,
        b'[' => Some("found a JSON array"),
        b'"' => Some("found a JSON string"),
        b'-' | b'0'..=b'9' => Some("found a number"),
        _ => Some("found something other than a JSON object"),
    }
}

pub(crate) const UTF8_REMEDY: &str = "UTF-8; the file may be in Latin-1 or Windows-1252, save it as UTF-8";

fn not_utf8(line: u64, bytes: &[u8], valid: usize) -> Problem {
    let byte = bytes.get(valid).copied().unwrap_or_default();
    let found = format!("found invalid UTF-8 (0x{byte:02X} at byte {} of the line)", valid + 1);
    Problem::of_line(line, found, UTF8_REMEDY)
}

/// Says in the user's words what serde_json says in its own.
fn syntax_problem(line: u64, text: &str, error: &serde_json::Error) -> Problem {
    let message = error.to_string();
    // One line is parsed at a time, so only the column tells; serde_json counts it in bytes.
    let end = text.floor_char_boundary(error.column().saturating_sub(1));
    let column = text[..end].chars().count() + 1;
    let reason = message.split(" at line ").next().unwrap_or(&message);
    let (found, expected) = match (reason, odd_token(text, end)) {
        ("trailing comma", _) => ("a trailing comma".to_owned(), "no comma before a closing bracket"),
        ("trailing characters", _) => ("more text after the object".to_owned(), "one JSON object a line"),
        ("recursion limit exceeded", _) => ("deep nesting".to_owned(), "at most 128 levels"),
        (_, Some(token)) => (format!("{token}, which is no JSON value"), "a number, a string, true, false or null"),
        _ if error.classify() == Category::Eof => ("the end of the line inside the object".to_owned(), "one whole JSON object a line"),
        (reason, _) => (format!("a JSON error ({reason})"), "valid JSON"),
    };
    Problem::of_line(line, format!("found {found} at column {column}"), expected)
}

/// The Python or JavaScript word that stands where the parser stumbled, such as NaN.
fn odd_token(text: &str, at: usize) -> Option<String> {
    let word = |c: char| c.is_ascii_alphabetic() || c == '-';
    let start = text[..at].rfind(|c| !word(c)).map_or(0, |before| before + text[before..].chars().next().map_or(0, char::len_utf8));
    let rest = &text[start..];
    let token = &rest[..rest.find(|c| !word(c)).unwrap_or(rest.len())];
    let known = ["nan", "-nan", "inf", "-inf", "infinity", "-infinity", "none", "true", "false", "undefined"];
    known.contains(&token.to_ascii_lowercase().as_str()).then(|| shorten(token))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem_of(line: &str) -> String {
        let error = serde_json::from_str::<Object>(line).err().unwrap();
        syntax_problem(1, line, &error).to_string()
    }

    #[test]
    fn syntax_errors_name_the_fault_and_the_column() {
        for (line, part) in [
            (r#"{"text":"x","label":"neg",}"#, "trailing comma at column 27"),
            (r#"{"text":"häß","label":["a",]}"#, "trailing comma at column 28"),
            (r#"{"text":"x","label":NaN}"#, "NaN, which is no JSON value at column 21"),
            (r#"{"text":"x","label":-Infinity}"#, "-Infinity, which is no JSON value"),
            (r#"{"text":"x","label": nan}"#, "nan, which is no JSON value"),
            (r#"{"text":"x","label":None}"#, "None, which is no JSON value"),
            (r#"{"text":"x","label":True}"#, "True, which is no JSON value"),
            (r#"{"text":"x"} {"text":"y"}"#, "more text after the object"),
            (r#"{"text":"x","#, "end of the line inside the object"),
            (r#"{"text":"\ud83d"}"#, "JSON error"),
            (r#"{'text':1}"#, "JSON error (key must be a string) at column 2"),
        ] {
            let problem = problem_of(line);
            assert!(problem.contains(part), "{line}: {problem}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(problem_of(&deep).contains("deep nesting"));
    }

    #[test]
    fn a_repeated_key_is_seen() {
        let object: Object = serde_json::from_str(r#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(object.repeated.as_deref(), Some("a"));
    }
}
