//! Files that mean harm: bombs, lying parquet headers, arbitrary bytes under every name. The worst outcome is an error.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;

use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use support::{Column, Upload, gzip, parquet};
use tunesmith_data::DataError;

fn bomb(mebibytes: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(b"{\"text\":\"").unwrap();
    for _ in 0..mebibytes {
        encoder.write_all(&[b'a'; 1 << 20]).unwrap();
    }
    encoder.write_all(b"\"}\n").unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_gzip_bomb_hits_the_ratio_limit() {
    let upload = Upload::new("a.jsonl.gz", bomb(15));
    assert!(matches!(upload.inspect(), Err(DataError::RatioTooLarge { ratio: 100 })));
    let nested = Upload::new("a.jsonl.gz", gzip(&bomb(4)));
    assert!(matches!(nested.inspect(), Err(DataError::UnknownFormat { .. })));
}

#[test]
fn the_unpacked_size_is_limited_too() {
    let mut upload = Upload::new("a.jsonl.gz", bomb(15));
    upload.limits.ratio = 10_000;
    assert_eq!(upload.summary().rows, 1);
    upload.limits.unpacked_bytes = 8 << 20;
    assert!(matches!(upload.inspect(), Err(DataError::UnpackedTooLarge { limit: 8_388_608 })));
}

#[test]
fn a_file_above_the_limit_is_refused_by_its_size() {
    let mut upload = Upload::new("a.jsonl", "{\"a\":1}\n");
    upload.limits.file_bytes = 7;
    assert!(matches!(upload.inspect(), Err(DataError::FileTooLarge { found: 8, limit: 7 })));
}

#[test]
fn text_that_a_dictionary_repeats_counts_in_full() {
    let long = "x".repeat(10_000);
    let texts = vec![long.as_str(); 2_000];
    let bytes = parquet(WriterProperties::default(), &[&[("text", Column::Text(&texts))]]);
    assert!(bytes.len() < 100_000);
    let mut upload = Upload::new("a.parquet", bytes);
    assert_eq!(upload.summary().rows, 2_000);
    upload.limits.unpacked_bytes = 10_000_000;
    assert!(matches!(upload.inspect(), Err(DataError::UnpackedTooLarge { .. })));
}

fn small_parquet() -> Vec<u8> {
    parquet(
        WriterProperties::default(),
        &[&[
            ("text", Column::Text(&["a", "b", "a"])),
            ("tags", Column::Texts(&[&["x", "y"], &[], &["z"]])),
            ("day", Column::Dates(&[1, 2, 3])),
        ]],
    )
}

#[test]
fn a_page_header_that_claims_gibibytes_is_refused() {
    let mut bytes = small_parquet();
    // The first page starts after the magic: field 1 (type), then field 2, the unpacked size, a varint of one byte here.
    assert_eq!(bytes[4..7], [0x15, 0x04, 0x15]);
    bytes.splice(7..8, [0xFE, 0xFF, 0xFF, 0xFF, 0x0F]);
    let refusal = Upload::new("a.parquet", bytes).refusal();
    assert!(refusal.contains("column \"text\" has a page"), "{refusal}");
}

#[test]
fn a_cut_parquet_file_is_an_error_at_every_length() {
    let bytes = small_parquet();
    for length in 4..bytes.len() {
        assert!(Upload::new("a.parquet", &bytes[..length]).inspect().is_err(), "{length}");
    }
}

#[test]
fn a_changed_byte_of_parquet_never_panics() {
    let bytes = small_parquet();
    let mut refused = 0;
    for place in 0..bytes.len() {
        for value in [0, 0x7F, 0xFF] {
            let mut changed = bytes.clone();
            changed[place] = value;
            refused += usize::from(Upload::new("a.parquet", changed).inspect().is_err());
        }
    }
    assert!(refused > bytes.len());
}

fn inspect_and_read(name: &str, bytes: &[u8]) {
    let upload = Upload::new(name, bytes);
    let inspected = upload.inspect();
    let read = upload.rows();
    // Whatever passed the upload can be read again, row for row.
    if let Ok(summary) = inspected {
        assert_eq!(read.unwrap().len() as u64, summary.rows);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for name in ["a", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz"] {
            inspect_and_read(name, &bytes);
        }
        let framed = [b"PAR1".as_slice(), &bytes, &(bytes.len() as u32).to_le_bytes(), b"PAR1"].concat();
        inspect_and_read("a.parquet", &framed);
        inspect_and_read("a.csv.gz", &gzip(&bytes));
        inspect_and_read("a.csv", &[b"\xFF\xFE".as_slice(), &bytes].concat());
    }

    #[test]
    fn arbitrary_json_like_lines_never_panic(text in "[{}\\[\\]\",:a1 \\\\u\\-.eNn\n\r\u{FEFF}é😀]{0,80}") {
        inspect_and_read("a.jsonl", text.as_bytes());
        inspect_and_read("a.jsonl", format!("{{\"a\":{text}}}").as_bytes());
        inspect_and_read("a.csv", text.as_bytes());
    }
}
