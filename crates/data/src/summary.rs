//! What one pass over a data set file found out about it. `inspect` makes it at upload, the store keeps it as JSON in the
//! file's row, `plan` and `infer_task` decide from it alone, so that creating a job does not read the file again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::format::Format;

/// Summary of one data set file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The format that was found.
    pub format: Format,
    /// Whether the file is packed with gzip.
    pub gzip: bool,
    /// Number of rows.
    pub rows: u64,
    /// The columns in the order of the first row.
    pub columns: Vec<ColumnSummary>,
    /// SHA-256 of the stored bytes, in lower-case hex.
    pub sha256: String,
    /// Rows that are equal to an earlier row in every column.
    pub duplicates: u64,
    /// Whether the file has so many rows that `duplicates` counts only those of the first two million different ones.
    pub duplicates_capped: bool,
    /// What is wrong with the rows if they are read as conversations, where the columns have such a form and may be meant for
    /// something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_faults: Option<String>,
}

/// What stands in one column. Line lists hold the first 20 lines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ColumnSummary {
    /// Name of the column.
    pub name: String,
    /// Values that are strings; in CSV and TSV all of them.
    pub strings: u64,
    /// Strings that spell a number.
    pub numeric_strings: u64,
    /// Values that are integers.
    pub integers: u64,
    /// Values that are numbers with a decimal point.
    pub floats: u64,
    /// Values that are true or false.
    pub booleans: u64,
    /// Values that are null, also as members of a list.
    pub nulls: u64,
    /// Values that are lists.
    pub lists: u64,
    /// Values that are objects.
    pub objects: u64,
    /// Strings without a visible character, also as members of a list.
    pub empty: u64,
    /// Cells of CSV and TSV that are empty or say NaN, nan, null, NULL, NA or None.
    pub missing: u64,
    /// Lines of nulls.
    pub null_lines: Vec<u64>,
    /// Lines of empty strings.
    pub empty_lines: Vec<u64>,
    /// Lines of missing cells.
    pub missing_lines: Vec<u64>,
    /// Lines of lists.
    pub list_lines: Vec<u64>,
    /// Lines of objects.
    pub object_lines: Vec<u64>,
    /// Characters of the longest string.
    pub max_chars: u64,
    /// Smallest number; in CSV and TSV of the cells that spell one.
    pub min: Option<f64>,
    /// Largest number; in CSV and TSV of the cells that spell one.
    pub max: Option<f64>,
    /// Whether any of these numbers is no integer.
    pub fractional: bool,
    /// The different values by their label name, or the different members if the values are lists. `None` if there are more
    /// than 1,000, if one has more than 256 characters, if they are neither text nor numbers, or if they are long texts that
    /// hardly repeat.
    pub distinct: Option<BTreeMap<String, Distinct>>,
}

/// One of the different values of a column.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distinct {
    /// How often it occurs.
    pub count: u64,
    /// How else it is written in the file than its name, up to five ways.
    pub spellings: Vec<String>,
    /// The line on which it occurs first.
    pub first_line: u64,
}

impl Summary {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&ColumnSummary> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The names of the columns, in the order of the first row.
    pub fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str())
    }
}
