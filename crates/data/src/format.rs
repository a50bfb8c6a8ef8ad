//! Which format a file has, from its name and its content. `rows` asks here before it chooses a parser. Content wins over the
//! name where it is unmistakable (parquet, gzip, a line that is a JSON object), since names are often wrong.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, Problem};
use crate::limits::Limits;
use crate::source::{checked_size, open_bytes, open_text};

/// A format of data set files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// Apache parquet.
    Parquet,
    /// Plain text, a row a line.
    Text,
}

impl Format {
    /// Whether every cell is text, so that numbers and missing values are only spellings.
    pub fn is_delimited(self) -> bool {
        matches!(self, Self::Csv | Self::Tsv)
    }
}

/// A format and the packing around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Detected {
    pub format: Format,
    pub gzip: bool,
}

/// Bytes that are looked at.
const HEAD: u64 = 4 << 10;

/// Finds out the format of a file that was uploaded as `filename`.
pub(crate) fn detect(path: &Path, filename: &str, limits: &Limits) -> Result<Detected, DataError> {
    let mut magic = Vec::new();
    let mut file = File::open(path).map_err(DataError::Io)?;
    if checked_size(&file, limits)? == 0 {
        return Err(DataError::Empty);
    }
    file.by_ref().take(4).read_to_end(&mut magic).map_err(DataError::Io)?;
    let gzip = magic.starts_with(&[0x1F, 0x8B]);
    if gzip {
        magic.clear();
        open_bytes(path, true, limits)?.take(4).read_to_end(&mut magic)?;
    }
    let named = format_of_name(filename);
    let unknown = |found: &str| DataError::UnknownFormat { filename: filename.to_owned(), found: found.to_owned() };
    if magic == *b"PAR1" {
        return Ok(Detected { format: Format::Parquet, gzip });
    }
    if named == Some(Format::Parquet) {
        return Err(unknown("the name says parquet, but the content does not start with PAR1"));
    }
    if magic.starts_with(b"PK\x03\x04") {
        return Err(unknown("the content is a zip archive or an Excel file"));
    }
    if magic.starts_with(&[0x1F, 0x8B]) {
        return Err(unknown("the content is gzip inside gzip"));
    }

    let mut head = Vec::new();
    open_text(path, gzip, limits)?.take(HEAD).read_to_end(&mut head)?;
    refuse_utf16_without_mark(&head)?;
    let opens_object = first_visible(&head) == Some(b'{');
    let format = match named {
        Some(Format::Csv | Format::Tsv | Format::Text) if opens_object && first_line_is_object(&head) => Format::Jsonl,
        Some(format) => format,
        None if opens_object => Format::Jsonl,
        None if first_visible(&head).is_none() => return Err(DataError::Empty),
        None => {
            return Err(unknown(
                "the name ends in none of .jsonl, .csv, .tsv, .parquet, .txt (or these with .gz), \
                 and the content is neither JSON objects nor parquet",
            ));
        }
    };
    Ok(Detected { format, gzip })
}

fn format_of_name(filename: &str) -> Option<Format> {
    let name = filename.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".gzip")).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
        "csv" => Some(Format::Csv),
        "tsv" | "tab" => Some(Format::Tsv),
        "parquet" | "pq" => Some(Format::Parquet),
        "txt" | "text" => Some(Format::Text),
        _ => None,
    }
}

fn first_visible(head: &[u8]) -> Option<u8> {
    head.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

/// A CSV header may well start with a brace; it is JSON only if the whole line is, or starts so and is longer than the head.
fn first_line_is_object(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let cut = head.len() as u64 == HEAD && line.len() == text.len();
    serde_json::from_slice::<Map<String, Value>>(line).is_ok() || cut && line.starts_with(b"{\"")
}

/// Text in a European script has a zero in every other byte of UTF-16, and none in UTF-8.
fn refuse_utf16_without_mark(head: &[u8]) -> Result<(), DataError> {
    let zeros = |offset: usize| head.iter().skip(offset).step_by(2).filter(|b| **b == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    let half = head.len() / 2;
    if half >= 2 && (even * 4 > half * 3 || odd * 4 > half * 3) && even.min(odd) * 4 < half {
        let byte = if even > odd { 1 } else { 2 };
        return Err(DataError::problem(Problem::of_line(
            1,
            format!("found a zero at byte {byte} and at every other byte, which looks like UTF-16 without a byte-order mark"),
            "UTF-8, or UTF-16 with a byte-order mark; save the file as UTF-8",
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn detect_bytes(filename: &str, bytes: &[u8]) -> Result<Detected, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stored");
        std::fs::write(&path, bytes).unwrap();
        detect(&path, filename, &Limits::default())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_name_decides_between_text_formats() {
        for (name, format) in [
            ("a.csv", Format::Csv),
            ("A.TSV", Format::Tsv),
            ("a.jsonl", Format::Jsonl),
            ("a.b.json", Format::Jsonl),
            ("a.csv.gz", Format::Csv),
            ("notes.TXT", Format::Text),
        ] {
            assert_eq!(detect_bytes(name, b"text,label\n").unwrap().format, format, "{name}");
        }
    }

    #[test]
    fn the_content_wins_over_a_wrong_name() {
        let object = b"\n {\"text\": \"a\"}\n";
        assert_eq!(detect_bytes("upload", object).unwrap().format, Format::Jsonl);
        assert_eq!(detect_bytes("a.csv", object).unwrap().format, Format::Jsonl);
        assert_eq!(detect_bytes("a.txt", object).unwrap().format, Format::Jsonl);
        let long = format!("{{\"text\": \"{}\"}}\n", "x".repeat(9_000));
        assert_eq!(detect_bytes("a.csv", long.as_bytes()).unwrap().format, Format::Jsonl);
        assert_eq!(detect_bytes("a.csv", b"PAR1xxxx").unwrap().format, Format::Parquet);
        assert_eq!(detect_bytes("a.jsonl", &gzip(object)).unwrap(), Detected { format: Format::Jsonl, gzip: true });
        assert_eq!(detect_bytes("a.csv", b"{weird},label\n").unwrap().format, Format::Csv);
    }

    #[test]
    fn what_is_no_data_set_is_refused_by_name() {
        for (name, bytes, part) in [
            ("a.xlsx", b"PK\x03\x04....".as_slice(), "Excel"),
            ("a.parquet", b"text,label".as_slice(), "PAR1"),
            ("notes.doc", b"hello".as_slice(), "notes.doc"),
            ("notes.txt", b"PK\x03\x04....".as_slice(), "zip"),
            ("a.csv", b"t\0e\0x\0t\0,\0l\0".as_slice(), "UTF-16"),
        ] {
            let error = detect_bytes(name, bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(matches!(detect_bytes("a.csv", b""), Err(DataError::Empty)));
        assert!(matches!(detect_bytes("a", b" \n"), Err(DataError::Empty)));
    }
}
