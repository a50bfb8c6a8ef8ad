//! Plain text: each line is a row `{"text": …}`, as the `text` loader of Hugging Face's datasets has it. Opened by `rows`.
//!
//! Lines without a visible character are no rows: there is nothing to learn in them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{DataError, Problem};
use crate::jsonl::UTF8_REMEDY;
use crate::limits::Limits;
use crate::lines::Lines;
use crate::rows::{Record, Records, Row};

/// The column that a text file has.
const COLUMN: &str = "text";

/// Reads the lines of a text file.
pub(crate) struct TextLines(Lines);

impl TextLines {
    pub(crate) fn open(path: &Path, gzip: bool, limits: &Limits) -> Result<Self, DataError> {
        Lines::open(path, gzip, limits).map(Self)
    }
}

impl Records for TextLines {
    fn next_record(&mut self) -> Result<Option<Record>, DataError> {
        let lines = &mut self.0;
        while let Some(whole) = lines.read()? {
            let faulty = |problem| Ok(Some(Record::Faulty(vec![problem])));
            if !whole {
                let found = format!("found more than {} bytes", lines.most);
                return faulty(Problem::of_line(lines.number, found, "a shorter line; each line is a row"));
            }
            let text = match std::str::from_utf8(&lines.bytes) {
                Ok(text) => text.trim_end_matches('\r'),
                Err(error) => {
                    let found = format!("found invalid UTF-8 at byte {} of the line", error.valid_up_to() + 1);
                    return faulty(Problem::of_line(lines.number, found, UTF8_REMEDY));
                }
            };
            if !text.trim().is_empty() {
                let values = Map::from_iter([(COLUMN.to_owned(), Value::from(text))]);
                return Ok(Some(Record::Row(Row { line: lines.number, values })));
            }
        }
        Ok(None)
    }
}
