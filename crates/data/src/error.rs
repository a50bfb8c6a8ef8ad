//! What can be wrong with a data set file. Everything in this crate that reads one returns [`DataError`]; the API shows its
//! text to the user as it stands, so each message says where, what was found, and what to do.

use std::fmt;
use std::io;

use crate::limits::MAX_COLUMNS;

/// Problems that an error lists; the rest is only counted.
pub(crate) const LISTED_PROBLEMS: usize = 20;

/// One fault at one place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Physical line (from 1) on which the row starts; in parquet the number of the row.
    pub line: u64,
    /// The column or key that is meant, if it is one.
    pub field: Option<String>,
    /// What stands there.
    pub found: String,
    /// What should stand there.
    pub expected: String,
}

impl Problem {
    /// A fault of a whole line.
    pub(crate) fn of_line(line: u64, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { line, field: None, found: found.into(), expected: expected.into() }
    }

    /// A fault of one field.
    pub fn of_field(line: u64, field: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { line, field: Some(shorten(field)), found: found.into(), expected: expected.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if let Some(field) = &self.field {
            write!(f, "field \"{field}\" ")?;
        }
        write!(f, "{}; expected {}", self.found, self.expected)
    }
}

/// Why a file could not be read, or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system could not read the file.
    #[error("the file could not be read: {0}")]
    Io(#[source] io::Error),
    /// The file is larger than the limit.
    #[error("the file has {found} bytes, the limit is {limit}; split it, pack it with gzip, or raise the limit")]
    FileTooLarge {
        /// Size of the file in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The unpacked content is larger than the limit.
    #[error("the unpacked content has more than {limit} bytes, which is the limit; split the file or raise the limit")]
    UnpackedTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The gzip stream unpacks to suspiciously much.
    #[error("the gzip file unpacks to more than {ratio} times its size, which is the limit; upload it unpacked")]
    RatioTooLarge {
        /// The limit.
        ratio: u64,
    },
    /// Neither the name nor the content tells the format.
    #[error(
        "the format of \"{filename}\" is not known: {found}; upload JSONL, CSV, TSV, parquet or plain text (.txt), or gzip of one of these"
    )]
    UnknownFormat {
        /// Name of the file as it was uploaded.
        filename: String,
        /// What name and content say instead.
        found: String,
    },
    /// The gzip stream is damaged.
    #[error("the gzip stream is damaged: {0}; pack the file again")]
    Gzip(String),
    /// The parquet file is damaged or holds something that cannot be read.
    #[error("the parquet file cannot be read: {0}; write it again or upload it as JSONL")]
    Parquet(String),
    /// The file holds no rows.
    #[error("the file holds no rows; upload at least one")]
    Empty,
    /// The file has more columns than any data set needs.
    #[error("the file has {found} columns, the limit is {MAX_COLUMNS}; leave out those that training does not use")]
    TooManyColumns {
        /// Number of columns.
        found: usize,
    },
    /// The rows have faults.
    #[error("{}", listing(.problems, *.total))]
    Problems {
        /// The first faults, in line order, at most 20.
        problems: Vec<Problem>,
        /// How many there are in all.
        total: u64,
    },
}

impl DataError {
    /// A value that is not what a row should have, met by a reader outside this crate.
    pub fn of_field(line: u64, field: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::problem(Problem::of_field(line, field, found, expected))
    }

    /// An error of one fault.
    pub(crate) fn problem(problem: Problem) -> Self {
        Self::of_problems(vec![problem])
    }

    /// An error of the faults of one row.
    pub(crate) fn of_problems(mut problems: Vec<Problem>) -> Self {
        let total = problems.len() as u64;
        problems.truncate(LISTED_PROBLEMS);
        Self::Problems { problems, total }
    }

    /// Wraps the error so that it passes through a [`io::Read`]; [`DataError::from`] unwraps it.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

impl From<io::Error> for DataError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(inner) => inner,
            Err(error) => Self::Io(error),
        }
    }
}

/// Problems line by line, with a count of those that are not listed.
pub fn listing(problems: &[Problem], total: u64) -> String {
    let listed: Vec<String> = problems.iter().map(Problem::to_string).collect();
    let rest = total.saturating_sub(problems.len() as u64);
    match (listed.as_slice(), rest) {
        ([only], 0) => only.clone(),
        (_, 0) => format!("{total} problems\n{}", listed.join("\n")),
        _ => format!("{total} problems\n{}\nand {rest} more", listed.join("\n")),
    }
}

/// Cuts text of the user's to a length that fits in a message.
pub(crate) fn shorten(text: &str) -> String {
    const CHARS: usize = 60;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A count with its noun: `1 row`, `2 rows`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Names in one line, the first ten of them.
pub(crate) fn name_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const NAMES: usize = 10;
    let mut names = names.into_iter();
    let mut listed: Vec<String> = names.by_ref().take(NAMES).map(shorten).collect();
    let rest = names.count();
    if rest > 0 {
        listed.push(format!("and {rest} more"));
    }
    listed.join(", ")
}

/// Line numbers in one line: `lines 2, 5 and 9 more`, given the first ones and how many there are.
pub fn line_list(first: &[u64], total: u64) -> String {
    let numbers: Vec<String> = first.iter().map(u64::to_string).collect();
    let rest = total.saturating_sub(first.len() as u64);
    match (numbers.as_slice(), rest) {
        ([only], 0) => format!("line {only}"),
        (_, 0) => format!("lines {}", numbers.join(", ")),
        _ => format!("lines {} and {rest} more", numbers.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_problem_reads_as_a_sentence() {
        let problem = Problem::of_field(2, "label", "is missing", "the keys of line 1 (text, label)");
        assert_eq!(problem.to_string(), "line 2: field \"label\" is missing; expected the keys of line 1 (text, label)");
    }

    #[test]
    fn many_problems_are_listed_and_the_rest_is_counted() {
        let problems = vec![Problem::of_line(1, "a", "b"), Problem::of_line(2, "c", "d")];
        let text = DataError::Problems { problems, total: 9 }.to_string();
        assert_eq!(text, "9 problems\nline 1: a; expected b\nline 2: c; expected d\nand 7 more");
    }

    #[test]
    fn an_error_survives_its_way_through_a_reader() {
        let error = DataError::from(DataError::RatioTooLarge { ratio: 7 }.into_io());
        assert!(matches!(error, DataError::RatioTooLarge { ratio: 7 }));
    }
}
