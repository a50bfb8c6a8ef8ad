//! Parquet, row group by row group, without arrow. Opened by `rows`. The reader of the parquet crate asserts where a file
//! contradicts itself, so every call into it is caught; sizes that the file claims are checked before anything is allocated.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use serde_json::{Map, Number, Value};

use crate::error::{DataError, Problem};
use crate::limits::{Limits, MAX_COLUMNS};
use crate::parquet_pages::check_pages;
use crate::rows::{Record, Records, Row};
use crate::source::{checked_size, open_bytes};

/// What one row costs at least, so that a file cannot claim a trillion rows of nothing.
const ROW_COST: u64 = 64;

/// The footer is parsed as a whole; that of a data set has kilobytes.
const FOOTER_BYTES: u32 = 32 << 20;

/// Reads the rows of a parquet file.
pub(crate) struct ParquetRows {
    file: File,
    reader: SerializedFileReader<File>,
    limits: Limits,
    next_group: usize,
    group: Option<ReaderIter>,
    line: u64,
    unpacked: u64,
}

impl ParquetRows {
    pub(crate) fn open(path: &Path, gzip: bool, limits: &Limits) -> Result<Self, DataError> {
        let mut file = if gzip {
            unpack(path, limits)?
        } else {
            let file = File::open(path).map_err(DataError::Io)?;
            checked_size(&file, limits)?;
            file
        };
        check_footer(&mut file)?;
        let copy = file.try_clone().map_err(DataError::Io)?;
        let reader = guarded(|| SerializedFileReader::new(copy))?;
        let columns = reader.metadata().file_metadata().schema().get_fields().len();
        if columns > MAX_COLUMNS {
            return Err(DataError::TooManyColumns { found: columns });
        }
        Ok(Self { file, reader, limits: *limits, next_group: 0, group: None, line: 0, unpacked: 0 })
    }

    fn open_group(&mut self, index: usize) -> Result<ReaderIter, DataError> {
        let metadata = self.reader.metadata().row_group(index);
        check_group(metadata, &self.limits)?;
        check_pages(&mut self.file, metadata, &self.limits)?;
        guarded(|| {
            let group = self.reader.get_row_group(index)?;
            let schema = metadata.schema_descr_ptr();
            TreeBuilder::new().as_iter(schema, group.as_ref())
        })
    }

    fn convert(&mut self, columns: Vec<(String, Field)>) -> Result<Record, DataError> {
        let line = self.line;
        let mut values = Map::with_capacity(columns.len());
        let mut problems = Vec::new();
        let mut bytes = 0;
        for (name, field) in columns {
            match value_of(&field, &mut bytes) {
                Ok(value) => {
                    if values.insert(name.clone(), value).is_some() {
                        problems.push(Problem::of_field(line, &name, "stands twice", "each name once"));
                    }
                }
                Err(unusable) => {
                    problems.push(Problem::of_field(line, &name, unusable.0, "text, numbers, booleans, dates, or lists of these"))
                }
            }
        }
        if bytes > self.limits.line_bytes {
            problems.push(Problem::of_line(
                line,
                format!("found a row of more than {} bytes", self.limits.line_bytes),
                "a smaller one; that is the limit of one row",
            ));
        }
        self.unpacked += bytes.max(ROW_COST);
        if self.unpacked > self.limits.unpacked_bytes {
            return Err(DataError::UnpackedTooLarge { limit: self.limits.unpacked_bytes });
        }
        Ok(if problems.is_empty() { Record::Row(Row { line, values }) } else { Record::Faulty(problems) })
    }
}

impl Records for ParquetRows {
    fn next_record(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            if self.group.is_none() {
                if self.next_group == self.reader.num_row_groups() {
                    return Ok(None);
                }
                self.group = Some(self.open_group(self.next_group)?);
                self.next_group += 1;
            }
            let Some(group) = &mut self.group else {
                continue;
            };
            match guarded(|| group.next().transpose())? {
                None => self.group = None,
                Some(row) => {
                    self.line += 1;
                    // Dates and decimals are formatted by the parquet crate, which may panic on values out of range.
                    let columns = row.into_columns();
                    let record = catch_unwind(AssertUnwindSafe(|| self.convert(columns)));
                    let out_of_range = |_| {
                        let text = format!("row {} holds a date or decimal out of range", self.line);
                        Err(DataError::Parquet(text))
                    };
                    return record.unwrap_or_else(out_of_range).map(Some);
                }
            }
        }
    }
}

/// Runs a call into the parquet crate so that neither its errors nor its panics are more than an error of ours.
fn guarded<T>(call: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DataError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(DataError::Parquet(error.to_string())),
        Err(_) => Err(DataError::Parquet("its metadata contradicts its content".to_owned())),
    }
}

/// Parquet is read from its end, so gzip around it is unpacked into a file that has no name and goes with its handle.
fn unpack(path: &Path, limits: &Limits) -> Result<File, DataError> {
    let mut bytes = open_bytes(path, true, limits)?;
    let mut file = match path.parent() {
        Some(folder) => tempfile::tempfile_in(folder).or_else(|_| tempfile::tempfile()),
        None => tempfile::tempfile(),
    }
    .map_err(DataError::Io)?;
    io::copy(&mut bytes, &mut file)?;
    Ok(file)
}

fn check_footer(file: &mut File) -> Result<(), DataError> {
    let too_short = |_| DataError::Parquet("it is cut off; its end is missing".to_owned());
    let mut tail = [0; 8];
    file.seek(SeekFrom::End(-8)).map_err(too_short)?;
    file.read_exact(&mut tail).map_err(too_short)?;
    let [a, b, c, d, magic @ ..] = tail;
    let length = u32::from_le_bytes([a, b, c, d]);
    match &magic {
        b"PAR1" if length <= FOOTER_BYTES => Ok(()),
        b"PAR1" => Err(DataError::Parquet(format!("its footer has {length} bytes, the limit is {FOOTER_BYTES}"))),
        b"PARE" => Err(DataError::Parquet("it is encrypted".to_owned())),
        _ => Err(DataError::Parquet("it is cut off; its end is missing".to_owned())),
    }
}

fn check_group(group: &RowGroupMetaData, limits: &Limits) -> Result<(), DataError> {
    let claimed: u64 =
        group.columns().iter().map(|column| u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
    if claimed > limits.unpacked_bytes {
        return Err(DataError::UnpackedTooLarge { limit: limits.unpacked_bytes });
    }
    Ok(())
}

/// Why a value has no place in a row.
struct Unusable(&'static str);

fn value_of(field: &Field, bytes: &mut u64) -> Result<Value, Unusable> {
    let value = match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => Value::Bool(*flag),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(n) => number_of(f64::from(*n))?,
        // Through its shortest decimal: 0.1 shall stay 0.1 and not become 0.10000000149.
        Field::Float(n) => number_of(n.to_string().parse().unwrap_or(f64::from(*n)))?,
        Field::Double(n) => number_of(*n)?,
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(raw) => match std::str::from_utf8(raw.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => return Err(Unusable("holds binary data")),
        },
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Value::String(field.to_string()),
        Field::Group(row) => {
            let mut values = Map::new();
            for (name, field) in row.get_column_iter() {
                *bytes += name.len() as u64;
                values.insert(name.clone(), value_of(field, bytes)?);
            }
            Value::Object(values)
        }
        Field::ListInternal(list) => {
            let members = list.elements().iter().map(|member| value_of(member, bytes));
            Value::Array(members.collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let mut values = Map::new();
            for (key, field) in map.entries() {
                let key = match value_of(key, bytes)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                values.insert(key, value_of(field, bytes)?);
            }
            Value::Object(values)
        }
    };
    *bytes += match &value {
        Value::String(text) => text.len() as u64 + 8,
        _ => 8,
    };
    Ok(value)
}

/// Tables write a missing number as NaN.
fn number_of(number: f64) -> Result<Value, Unusable> {
    if number.is_nan() {
        return Ok(Value::Null);
    }
    Number::from_f64(number).map(Value::Number).ok_or(Unusable("holds an infinite number"))
}
