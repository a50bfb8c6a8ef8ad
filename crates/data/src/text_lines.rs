//! Plain text: each line is a row `{"text": …}`, as the `text` loader of Hugging Face's datasets has it. Opened by `rows`.
//!
//! Lines without a visible character are no rows: there is nothing to learn in them.

use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{DataError, Problem};
use crate::jsonl::UTF8_REMEDY;
use crate::limits::Limits;
use crate::rows::{Record, Records, Row};
use crate::source::open_text;

/// The column that a text file has.
const COLUMN: &str = "text";

/// Reads the lines of a text file.
pub(crate) struct TextLines {
    text: Box<dyn BufRead>,
    line_bytes: u64,
    line: u64,
    buffer: Vec<u8>,
}

impl TextLines {
    pub(crate) fn open(path: &Path, gzip: bool, limits: &Limits) -> Result<Self, DataError> {
        Ok(Self { text: open_text(path, gzip, limits)?, line_bytes: limits.line_bytes, line: 0, buffer: Vec::new() })
    }
}

impl Records for TextLines {
    fn next_record(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            self.buffer.clear();
            let most = self.line_bytes.saturating_add(1);
            let count = (&mut self.text).take(most).read_until(b'\n', &mut self.buffer)? as u64;
            if count == 0 {
                return Ok(None);
            }
            self.line += 1;
            let faulty = |problem| Ok(Some(Record::Faulty(vec![problem])));
            if self.buffer.last() != Some(&b'\n') && count == most {
                self.text.skip_until(b'\n')?;
                let found = format!("found more than {} bytes", self.line_bytes);
                return faulty(Problem::of_line(self.line, found, "a shorter line; each line is a row"));
            }
            let text = match std::str::from_utf8(&self.buffer) {
                Ok(text) => text.trim_end_matches(['\r', '\n']),
                Err(error) => {
                    let found = format!("found invalid UTF-8 at byte {} of the line", error.valid_up_to() + 1);
                    return faulty(Problem::of_line(self.line, found, UTF8_REMEDY));
                }
            };
            if !text.trim().is_empty() {
                let values = Map::from_iter([(COLUMN.to_owned(), Value::from(text))]);
                return Ok(Some(Record::Row(Row { line: self.line, values })));
            }
        }
    }
}
