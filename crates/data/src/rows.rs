//! The rows of a data set file, whatever its format, one after another. `inspect` reads them to validate an upload, the
//! training worker to get its examples; both see the same parser, so what was accepted is what is trained on.

use std::path::Path;

use serde_json::{Map, Value};

use crate::delimited::DelimitedRows;
use crate::error::{DataError, Problem};
use crate::format::{Detected, Format, detect};
use crate::jsonl::JsonlRows;
use crate::limits::Limits;
use crate::parquet_rows::ParquetRows;
use crate::text_lines::TextLines;

/// One row of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Physical line (from 1) on which the row starts; in parquet the number of the row.
    pub line: u64,
    /// The values by column, in the order of the file. Cells of CSV and TSV are strings.
    pub values: Map<String, Value>,
}

/// What a parser makes of the next row.
pub(crate) enum Record {
    Row(Row),
    Faulty(Vec<Problem>),
}

/// A parser of one format. After `Err` or `Ok(None)` it is not asked again.
pub(crate) trait Records {
    fn next_record(&mut self) -> Result<Option<Record>, DataError>;
}

/// Iterator over the rows of a file. It ends after the first error.
pub struct RowReader {
    records: Box<dyn Records>,
    detected: Detected,
    ended: bool,
}

/// Opens a file that was uploaded as `filename` and reads its rows as a stream.
pub fn rows(path: &Path, filename: &str, limits: &Limits) -> Result<RowReader, DataError> {
    let detected = detect(path, filename, limits)?;
    let gzip = detected.gzip;
    let records: Box<dyn Records> = match detected.format {
        Format::Jsonl => Box::new(JsonlRows::open(path, gzip, limits)?),
        Format::Csv => Box::new(DelimitedRows::open(path, gzip, b',', limits)?),
        Format::Tsv => Box::new(DelimitedRows::open(path, gzip, b'\t', limits)?),
        Format::Parquet => Box::new(ParquetRows::open(path, gzip, limits)?),
        Format::Text => Box::new(TextLines::open(path, gzip, limits)?),
    };
    Ok(RowReader { records, detected, ended: false })
}

impl RowReader {
    /// The format that was found.
    pub fn format(&self) -> Format {
        self.detected.format
    }

    /// Whether the file is packed with gzip.
    pub fn is_gzip(&self) -> bool {
        self.detected.gzip
    }

    /// The next row or its faults; unlike the iterator it goes on after a faulty row.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, DataError> {
        if self.ended {
            return Ok(None);
        }
        let record = self.records.next_record();
        self.ended = !matches!(record, Ok(Some(_)));
        record
    }
}

impl Iterator for RowReader {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_record() {
            Ok(Some(Record::Row(row))) => Some(Ok(row)),
            Ok(Some(Record::Faulty(problems))) => {
                self.ended = true;
                Some(Err(DataError::of_problems(problems)))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
