//! Builds a [`Summary`] row by row. Only `inspect` uses it. Its memory does not grow with the file: lists of lines stop at 20,
//! distinct values at 1,000 a column and 20,000 in all, hashes of rows at two million.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};

use serde_json::Value;

use crate::format::Format;
use crate::label::{is_missing_cell, label_name, spelled_number};
use crate::rows::Row;
use crate::summary::{ColumnSummary, Distinct, Summary};

const LINES: usize = 20;
const DISTINCT: usize = 1_000;
const DISTINCT_IN_ALL: usize = 20_000;
const DISTINCT_CHARS: usize = 256;
const LABEL_CHARS: u64 = 64;
const SPELLINGS: usize = 5;
const HASHES: usize = 2_000_000;

/// Counts what goes into a summary.
pub(crate) struct Tally {
    delimited: bool,
    rows: u64,
    columns: Vec<ColumnSummary>,
    places: HashMap<String, usize>,
    distinct_left: usize,
    hashes: HashSet<u64>,
    duplicates: u64,
}

impl Tally {
    pub fn new(format: Format) -> Self {
        Self {
            delimited: format.is_delimited(),
            rows: 0,
            columns: Vec::new(),
            places: HashMap::new(),
            distinct_left: DISTINCT_IN_ALL,
            hashes: HashSet::new(),
            duplicates: 0,
        }
    }

    /// Counts a row. All rows have the keys of the first one; the parsers see to that.
    pub fn add(&mut self, row: &Row) {
        self.rows += 1;
        let mut hasher = DefaultHasher::new();
        for (position, (name, value)) in row.values.iter().enumerate() {
            let place = self.place(position, name);
            let column = &mut self.columns[place];
            count_value(column, value, row.line, self.delimited);
            count_distinct(column, value, row.line, &mut self.distinct_left);
        }
        for column in &self.columns {
            if let Some(value) = row.values.get(&column.name) {
                hash_value(value, &mut hasher);
            }
        }
        let hash = hasher.finish();
        if self.hashes.contains(&hash) {
            self.duplicates += 1;
        } else if self.hashes.len() < HASHES {
            self.hashes.insert(hash);
        }
    }

    pub fn finish(mut self, format: Format, gzip: bool, sha256: String) -> Summary {
        for column in &mut self.columns {
            drop_texts(column, self.rows);
        }
        Summary {
            format,
            gzip,
            rows: self.rows,
            columns: self.columns,
            sha256,
            duplicates: self.duplicates,
            duplicates_capped: self.hashes.len() == HASHES,
            conversation_faults: None,
        }
    }

    /// Where a column stands. Keys mostly come in the order of the first row, so that is tried first.
    fn place(&mut self, position: usize, name: &str) -> usize {
        if self.columns.get(position).is_some_and(|column| column.name == name) {
            return position;
        }
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = self.columns.len();
        self.places.insert(name.to_owned(), place);
        self.columns.push(ColumnSummary { name: name.to_owned(), distinct: Some(BTreeMap::new()), ..ColumnSummary::default() });
        place
    }
}

/// Texts that hardly repeat are no labels; kept, they would make the summary of a small file as large as the file.
fn drop_texts(column: &mut ColumnSummary, rows: u64) {
    let values = column.distinct.as_ref().map_or(0, BTreeMap::len) as u64;
    if column.max_chars > LABEL_CHARS && values > 100 && values * 10 > rows * 9 {
        column.distinct = None;
    }
}

fn push_line(lines: &mut Vec<u64>, line: u64) {
    if lines.len() < LINES && lines.last() != Some(&line) {
        lines.push(line);
    }
}

fn count_value(column: &mut ColumnSummary, value: &Value, line: u64, delimited: bool) {
    match value {
        Value::Null => count_null(column, line),
        Value::Bool(_) => column.booleans += 1,
        Value::Number(number) => {
            if number.is_f64() {
                column.floats += 1;
            } else {
                column.integers += 1;
            }
            if let Some(number) = number.as_f64() {
                widen(column, number);
            }
        }
        Value::String(text) => {
            column.strings += 1;
            column.max_chars = column.max_chars.max(text.chars().count() as u64);
            count_empty(column, text, line);
            if let Some(number) = spelled_number(text) {
                column.numeric_strings += 1;
                if delimited {
                    widen(column, number);
                }
            }
            if delimited && is_missing_cell(text) {
                column.missing += 1;
                push_line(&mut column.missing_lines, line);
            }
        }
        Value::Array(members) => {
            column.lists += 1;
            push_line(&mut column.list_lines, line);
            for member in members {
                match member {
                    Value::Null => count_null(column, line),
                    Value::String(text) => count_empty(column, text, line),
                    Value::Number(number) => {
                        if let Some(number) = number.as_f64() {
                            widen(column, number);
                        }
                    }
                    Value::Bool(_) | Value::Array(_) | Value::Object(_) => {}
                }
            }
        }
        Value::Object(_) => {
            column.objects += 1;
            push_line(&mut column.object_lines, line);
        }
    }
}

fn count_null(column: &mut ColumnSummary, line: u64) {
    column.nulls += 1;
    push_line(&mut column.null_lines, line);
}

fn count_empty(column: &mut ColumnSummary, text: &str, line: u64) {
    if text.trim().is_empty() {
        column.empty += 1;
        push_line(&mut column.empty_lines, line);
    }
}

fn widen(column: &mut ColumnSummary, number: f64) {
    column.min = Some(column.min.map_or(number, |min| min.min(number)));
    column.max = Some(column.max.map_or(number, |max| max.max(number)));
    column.fractional |= number.fract() != 0.0;
}

fn count_distinct(column: &mut ColumnSummary, value: &Value, line: u64, left: &mut usize) {
    let Some(distinct) = &mut column.distinct else {
        return;
    };
    let members = match value {
        Value::Array(members) => members.as_slice(),
        other => std::slice::from_ref(other),
    };
    let kept = members.iter().all(|member| count_member(distinct, member, line, left));
    if !kept {
        *left += distinct.len();
        column.distinct = None;
    }
}

/// Counts one value; `false` if the column's values cannot be kept apart.
fn count_member(distinct: &mut BTreeMap<String, Distinct>, value: &Value, line: u64, left: &mut usize) -> bool {
    let raw_length = value.as_str().map_or(0, str::len);
    if raw_length > 4 * DISTINCT_CHARS {
        return false;
    }
    let Some(name) = label_name(value) else {
        return value.is_null();
    };
    if name.is_empty() {
        return true;
    }
    if name.chars().count() > DISTINCT_CHARS {
        return false;
    }
    let spelling = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    // Mostly the spelling is the name, which need not be stored twice.
    let spelling = Some(spelling).filter(|spelling| *spelling != name);
    if let Some(entry) = distinct.get_mut(&name) {
        entry.count += 1;
        if let Some(spelling) = spelling
            && entry.spellings.len() < SPELLINGS
            && !entry.spellings.contains(&spelling)
        {
            entry.spellings.push(spelling);
        }
        return true;
    }
    if distinct.len() == DISTINCT || *left == 0 {
        return false;
    }
    *left -= 1;
    let entry = Distinct { count: 1, spellings: spelling.into_iter().collect(), first_line: line };
    distinct.insert(name, entry);
    true
}

fn hash_value(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Null => 0_u8.hash(hasher),
        Value::Bool(flag) => (1_u8, flag).hash(hasher),
        Value::Number(number) => (2_u8, number).hash(hasher),
        Value::String(text) => (3_u8, text).hash(hasher),
        Value::Array(members) => {
            (4_u8, members.len()).hash(hasher);
            members.iter().for_each(|member| hash_value(member, hasher));
        }
        Value::Object(values) => {
            (5_u8, values.len()).hash(hasher);
            for (name, value) in values {
                name.hash(hasher);
                hash_value(value, hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn column_of(values: &[Value]) -> ColumnSummary {
        let mut tally = Tally::new(Format::Jsonl);
        for (index, value) in values.iter().enumerate() {
            let values = [("c".to_owned(), value.clone())].into_iter().collect();
            tally.add(&Row { line: index as u64 + 1, values });
        }
        tally.finish(Format::Jsonl, false, String::new()).columns.remove(0)
    }

    #[test]
    fn distinct_values_stop_at_a_thousand() {
        let values: Vec<Value> = (0..1_000).map(|i| json!(i)).collect();
        assert_eq!(column_of(&values).distinct.unwrap().len(), 1_000);
        let values: Vec<Value> = (0..1_001).map(|i| json!(i)).collect();
        assert_eq!(column_of(&values).distinct, None);
        assert_eq!(column_of(&[json!("x".repeat(257))]).distinct, None);
        assert_eq!(column_of(&[json!([["a"]])]).distinct, None);
    }

    #[test]
    fn distinct_values_of_all_columns_together_are_bounded() {
        let mut tally = Tally::new(Format::Jsonl);
        for line in 1..=900 {
            let values = (0..40).map(|c| (format!("c{c}"), json!(line))).collect();
            tally.add(&Row { line, values });
        }
        let summary = tally.finish(Format::Jsonl, false, String::new());
        let kept: usize = summary.columns.iter().flat_map(|c| &c.distinct).map(BTreeMap::len).sum();
        assert!(kept > 10_000 && kept <= DISTINCT_IN_ALL, "{kept}");
    }

    #[test]
    fn texts_that_hardly_repeat_are_not_kept_but_labels_are() {
        let text = |i: u64| json!(format!("{i} {}", "word ".repeat(20)));
        let texts: Vec<Value> = (0..200).map(text).collect();
        assert_eq!(column_of(&texts).distinct, None);
        let labels: Vec<Value> = (0..200).map(|i| json!(format!("label {i}"))).collect();
        assert_eq!(column_of(&labels).distinct.unwrap().len(), 200);
        let repeated: Vec<Value> = (0..400).map(|i| text(i % 200)).collect();
        assert_eq!(column_of(&repeated).distinct.unwrap().len(), 200);
    }

    #[test]
    fn spellings_members_and_lines_are_kept() {
        let column = column_of(&[json!("a"), json!(" a"), json!(["a", "b"]), json!([null, ""])]);
        let distinct = column.distinct.unwrap();
        assert_eq!(distinct["a"].count, 3);
        assert_eq!(distinct["a"].spellings, [" a"]);
        assert_eq!(distinct["b"].first_line, 3);
        assert_eq!(column.list_lines, [3, 4]);
        assert_eq!((column.nulls, column.empty), (1, 1));
        assert_eq!((column.null_lines, column.empty_lines), (vec![4], vec![4]));
    }
}
