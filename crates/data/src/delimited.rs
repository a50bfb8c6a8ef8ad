//! CSV and TSV: a header, then records with as many cells. Opened by `rows`. Every cell stays the string that it is in the file;
//! which of them are numbers or stand for a missing value is a question for the summary.

use std::collections::HashSet;
use std::io::BufRead;
use std::path::Path;

use serde_json::{Map, Value};

use crate::delimited_record::{Cells, Outcome, RecordSplitter};
use crate::error::{DataError, Problem, counted, name_list, shorten};
use crate::jsonl::UTF8_REMEDY;
use crate::limits::{Limits, MAX_COLUMNS};
use crate::rows::{Record, Records, Row};
use crate::source::open_text;

/// Reads the rows of a CSV or TSV file.
pub(crate) struct DelimitedRows {
    records: RecordSplitter<Box<dyn BufRead>>,
    cells: Cells,
    line_bytes: u64,
    header: Header,
}

enum Header {
    Unread { delimiter: u8 },
    Read(Vec<String>),
}

impl DelimitedRows {
    pub(crate) fn open(path: &Path, gzip: bool, delimiter: u8, limits: &Limits) -> Result<Self, DataError> {
        let text = open_text(path, gzip, limits)?;
        Ok(Self {
            records: RecordSplitter::new(text, delimiter, limits.line_bytes),
            cells: Cells::default(),
            line_bytes: limits.line_bytes,
            header: Header::Unread { delimiter },
        })
    }

    /// Reads the next record that holds anything into `self.cells`.
    fn read_cells(&mut self) -> Result<bool, DataError> {
        loop {
            let outcome = self.records.read(&mut self.cells)?;
            let line = self.cells.line;
            match outcome {
                Outcome::Record if self.is_blank() => {}
                Outcome::Record => return Ok(true),
                Outcome::End => return Ok(false),
                // The faulty rows before this one were told already, and what follows cannot be read: a last row of faults.
                Outcome::OpenQuote => {
                    return Err(DataError::problem(Problem::of_line(
                        line,
                        "found a double quote that is never closed",
                        "quotes in pairs; write a quote inside a cell as two of them",
                    )));
                }
                Outcome::TooLong => {
                    return Err(DataError::problem(Problem::of_line(
                        line,
                        format!("found a record of more than {} bytes", self.line_bytes),
                        "a shorter one, that is the limit of one row; is a double quote not closed?",
                    )));
                }
            }
        }
    }

    /// A line of spaces is as blank as an empty one.
    fn is_blank(&self) -> bool {
        self.cells.len() == 1 && self.cells.iter().all(|cell| cell.trim_ascii().is_empty())
    }

    fn read_header(&mut self, delimiter: u8) -> Result<Option<Vec<String>>, DataError> {
        if !self.read_cells()? {
            return Ok(None);
        }
        if self.cells.len() > MAX_COLUMNS {
            return Err(DataError::TooManyColumns { found: self.cells.len() });
        }
        let line = self.cells.line;
        let mut names = Vec::with_capacity(self.cells.len());
        for (index, cell) in self.cells.iter().enumerate() {
            let column = format!("{}", index + 1);
            let name = text_of(cell, line, &column).map_err(DataError::problem)?;
            // Headers written by hand say "text, label"; space around a name is invisible in every message.
            names.push(name.trim().to_owned());
        }
        let problems = header_problems(line, &names, delimiter);
        if !problems.is_empty() {
            return Err(DataError::of_problems(problems));
        }
        Ok(Some(names))
    }
}

impl Records for DelimitedRows {
    fn next_record(&mut self) -> Result<Option<Record>, DataError> {
        if let Header::Unread { delimiter } = self.header {
            match self.read_header(delimiter)? {
                Some(names) => self.header = Header::Read(names),
                None => return Ok(None),
            }
        }
        if !self.read_cells()? {
            return Ok(None);
        }
        let line = self.cells.line;
        let Header::Read(names) = &self.header else {
            return Ok(None);
        };
        if self.cells.len() != names.len() {
            let list = name_list(names.iter().map(String::as_str));
            return Ok(Some(Record::Faulty(vec![Problem::of_line(
                line,
                format!("found {}", counted(self.cells.len() as u64, "cell")),
                format!("{}, as in the header ({list})", names.len()),
            )])));
        }
        let mut values = Map::with_capacity(names.len());
        let mut problems = Vec::new();
        for (name, cell) in names.iter().zip(self.cells.iter()) {
            match text_of(cell, line, name) {
                Ok(text) => {
                    values.insert(name.clone(), Value::String(text.to_owned()));
                }
                Err(problem) => problems.push(problem),
            }
        }
        Ok(Some(if problems.is_empty() { Record::Row(Row { line, values }) } else { Record::Faulty(problems) }))
    }
}

fn text_of<'a>(cell: &'a [u8], record_line: u64, field: &str) -> Result<&'a str, Problem> {
    std::str::from_utf8(cell).map_err(|error| {
        let valid = error.valid_up_to();
        let byte = cell.get(valid).copied().unwrap_or_default();
        let found = format!("has invalid UTF-8 (0x{byte:02X} at byte {} of the cell)", valid + 1);
        Problem::of_field(record_line, field, found, UTF8_REMEDY)
    })
}

fn header_problems(line: u64, names: &[String], delimiter: u8) -> Vec<Problem> {
    let mut seen = HashSet::new();
    let mut problems: Vec<Problem> = names
        .iter()
        .filter(|name| !seen.insert(name.as_str()))
        .map(|name| Problem::of_field(line, name, "stands twice in the header", "each name once"))
        .collect();
    if let [only] = names
        && let Some(other) = [b',', b'\t', b';', b'|'].into_iter().find(|other| *other != delimiter && only.as_bytes().contains(other))
    {
        let word = |byte| match byte {
            b',' => "commas (.csv)",
            b'\t' => "tabs (.tsv)",
            b';' => "semicolons",
            _ => "bars",
        };
        problems.push(Problem::of_line(
            line,
            format!("found one column named \"{}\", with {} in it", shorten(only), word(other)),
            format!("{} between the columns", word(delimiter)),
        ));
    }
    problems
}
