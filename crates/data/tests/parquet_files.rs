//! Parquet files as pandas, the hub and Spark write them, made here with the writer of the parquet crate.
#![allow(clippy::unwrap_used)]

mod support;

use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use serde_json::json;
use support::{Column, Upload, gzip, parquet};
use tunesmith_data::Format;

fn plain() -> WriterProperties {
    WriterProperties::builder().set_dictionary_enabled(false).build()
}

#[test]
fn text_numbers_nulls_lists_and_dates_are_read() {
    let bytes = parquet(
        plain(),
        &[
            &[
                ("text", Column::Text(&["häß 😀", ""])),
                ("label", Column::Ints(&[3, -1])),
                ("score", Column::Doubles(&[Some(0.5), None])),
                ("tags", Column::Texts(&[&["a", "b"], &[]])),
                ("day", Column::Dates(&[0, 20_000])),
                ("raw", Column::Raw(&[b"x", b"y"])),
            ],
            &[
                ("text", Column::Text(&["z"])),
                ("label", Column::Ints(&[i64::MAX])),
                ("score", Column::Doubles(&[Some(f64::NAN)])),
                ("tags", Column::Texts(&[&["a"]])),
                ("day", Column::Dates(&[1])),
                ("raw", Column::Raw(&[b"z"])),
            ],
        ],
    );
    for upload in [Upload::new("a.parquet", &bytes), Upload::new("a.parquet.gz", gzip(&bytes))] {
        let rows: Vec<_> = upload.rows().unwrap();
        let values: Vec<_> = rows.iter().map(|row| json!(row.values)).collect();
        assert_eq!(
            values,
            [
                json!({"text": "häß 😀", "label": 3, "score": 0.5, "tags": ["a", "b"], "day": "1970-01-01", "raw": "x"}),
                json!({"text": "", "label": -1, "score": null, "tags": [], "day": "2024-10-04", "raw": "y"}),
                json!({"text": "z", "label": i64::MAX, "score": null, "tags": ["a"], "day": "1970-01-02", "raw": "z"}),
            ]
        );
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3]);
        let summary = upload.summary();
        assert_eq!((summary.format, summary.rows), (Format::Parquet, 3));
        assert_eq!(summary.column("score").unwrap().null_lines, [2, 3]);
        assert_eq!(summary.column("tags").unwrap().distinct.as_ref().unwrap()["a"].count, 2);
    }
}

#[test]
fn every_packing_and_page_version_is_read() {
    let texts: Vec<String> = (0..5_000).map(|i| format!("row {}", i % 700)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(Default::default()), zstd] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for dictionary in [true, false] {
                let properties = WriterProperties::builder()
                    .set_compression(compression)
                    .set_writer_version(version)
                    .set_dictionary_enabled(dictionary)
                    .set_data_page_size_limit(4_096)
                    .set_write_batch_size(64)
                    .build();
                let bytes = parquet(properties, &[&[("text", Column::Text(&texts))]]);
                let read = Upload::new("a.parquet", bytes).column("text");
                assert!(read.iter().zip(&texts).all(|(read, text)| read == text), "{compression:?}");
                assert_eq!(read.len(), texts.len());
            }
        }
    }
}

#[test]
fn what_has_no_place_in_a_row_is_refused_with_row_and_column() {
    let binary = parquet(plain(), &[&[("image", Column::Raw(&[b"ok", b"\xFF\xD8"]))]]);
    assert_eq!(
        Upload::new("a.parquet", binary).refusal(),
        "line 2: field \"image\" holds binary data; expected text, numbers, booleans, dates, or lists of these"
    );
    let infinite = parquet(plain(), &[&[("x", Column::Doubles(&[Some(f64::INFINITY)]))]]);
    assert!(Upload::new("a.parquet", infinite).refusal().contains("infinite number"));
    let date = parquet(plain(), &[&[("day", Column::Dates(&[i32::MAX]))]]);
    assert!(Upload::new("a.parquet", date).refusal().contains("row 1 holds a date"));
}
