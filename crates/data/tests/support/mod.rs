//! Files on disk for the tests: each lies in a folder of its own, which goes with it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use tunesmith_data::{ClassificationColumns, DataError, Example, Limits, Plan, PlanError, ProblemType, Row, Summary};

/// An uploaded file.
pub struct Upload {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
    pub name: String,
    pub limits: Limits,
}

impl Upload {
    pub fn new(name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stored");
        std::fs::write(&path, bytes).unwrap();
        Self { _folder: folder, path, name: name.to_owned(), limits: Limits::default() }
    }

    pub fn inspect(&self) -> Result<Summary, DataError> {
        tunesmith_data::inspect(&self.path, &self.name, &self.limits)
    }

    pub fn summary(&self) -> Summary {
        self.inspect().unwrap()
    }

    /// The text of the error with which the upload is refused.
    pub fn refusal(&self) -> String {
        self.inspect().unwrap_err().to_string()
    }

    pub fn rows(&self) -> Result<Vec<Row>, DataError> {
        tunesmith_data::rows(&self.path, &self.name, &self.limits)?.collect()
    }

    /// The values of one column as JSON text.
    pub fn column(&self, name: &str) -> Vec<serde_json::Value> {
        self.rows().unwrap().into_iter().map(|row| row.values[name].clone()).collect()
    }

    pub fn plan(&self) -> Result<Plan, PlanError> {
        self.plan_as(None)
    }

    pub fn plan_as(&self, kind: Option<ProblemType>) -> Result<Plan, PlanError> {
        let cols = ClassificationColumns::default();
        tunesmith_data::plan(&self.summary(), None, &cols, None, kind)
    }

    pub fn load(&self, plan: &Plan) -> Vec<Example> {
        let cols = ClassificationColumns::default();
        tunesmith_data::load(&self.path, &self.name, &self.limits, &cols, plan).unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn utf16le(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().flat_map(u16::to_le_bytes);
    [0xFF, 0xFE].into_iter().chain(units).collect()
}

/// A column of a parquet file: required values, optional ones, or lists of strings.
pub enum Column<'a> {
    Text(&'a [&'a str]),
    Ints(&'a [i64]),
    Dates(&'a [i32]),
    Doubles(&'a [Option<f64>]),
    Texts(&'a [&'a [&'a str]]),
    Raw(&'a [&'a [u8]]),
}

impl Column<'_> {
    fn schema(&self, name: &str) -> String {
        match self {
            Column::Text(_) => format!("required binary {name} (UTF8);"),
            Column::Raw(_) => format!("required binary {name};"),
            Column::Ints(_) => format!("required int64 {name};"),
            Column::Dates(_) => format!("required int32 {name} (DATE);"),
            Column::Doubles(_) => format!("optional double {name};"),
            Column::Texts(_) => format!("optional group {name} (LIST) {{ repeated group list {{ optional binary element (UTF8); }} }}"),
        }
    }

    fn write(&self, group: &mut SerializedRowGroupWriter<'_, Vec<u8>>) {
        let mut column = group.next_column().unwrap().unwrap();
        match self {
            Column::Text(values) => {
                let values: Vec<ByteArray> = values.iter().map(|v| ByteArray::from(*v)).collect();
                column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            }
            Column::Raw(values) => {
                let values: Vec<ByteArray> = values.iter().map(|v| ByteArray::from(v.to_vec())).collect();
                column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            }
            Column::Ints(values) => {
                column.typed::<Int64Type>().write_batch(values, None, None).unwrap();
            }
            Column::Dates(values) => {
                column.typed::<Int32Type>().write_batch(values, None, None).unwrap();
            }
            Column::Doubles(values) => {
                let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
                let values: Vec<f64> = values.iter().flatten().copied().collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&levels), None).unwrap();
            }
            Column::Texts(rows) => {
                let mut values = Vec::new();
                let mut definition = Vec::new();
                let mut repetition = Vec::new();
                for row in *rows {
                    if row.is_empty() {
                        definition.push(1);
                        repetition.push(0);
                    }
                    for (index, value) in row.iter().enumerate() {
                        values.push(ByteArray::from(*value));
                        definition.push(3);
                        repetition.push(i16::from(index > 0));
                    }
                }
                column.typed::<ByteArrayType>().write_batch(&values, Some(&definition), Some(&repetition)).unwrap();
            }
        }
        column.close().unwrap();
    }
}

/// A parquet file of one row group for each element of `groups`.
pub fn parquet(properties: WriterProperties, groups: &[&[(&str, Column<'_>)]]) -> Vec<u8> {
    let fields: String = groups[0].iter().map(|(name, column)| column.schema(name)).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for columns in groups {
        let mut group = writer.next_row_group().unwrap();
        for (_, column) in *columns {
            column.write(&mut group);
        }
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}
