//! The sizes that an uploaded file may have. The server fills them from its configuration; everything that reads a file here
//! takes them, because a file is parsed again by the worker that trains on it.

/// Upper bounds for one data set file. What exceeds them is an error that names the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file as it is stored.
    pub file_bytes: u64,
    /// Bytes after unpacking: of the text inside gzip, or of the values inside parquet.
    pub unpacked_bytes: u64,
    /// How many times larger than the stored file the unpacked text of a gzip file may be.
    pub ratio: u64,
    /// Bytes of one line of JSONL, one record of CSV or one row of parquet, as UTF-8.
    pub line_bytes: u64,
}

/// Columns of one file. Each of them costs memory in the summary, so that a header of a million names is refused.
pub(crate) const MAX_COLUMNS: usize = 2_000;

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 512 << 20, unpacked_bytes: 4 << 30, ratio: 100, line_bytes: 16 << 20 }
    }
}
