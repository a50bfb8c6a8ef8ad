//! What real JSONL, CSV and TSV files contain: byte-order marks, CRLF, blank lines, UTF-16, quoted line breaks, faults in many
//! places. Each test uploads bytes and looks at the summary, the rows, or the refusal.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{Upload, gzip, utf16le};
use tunesmith_data::{DataError, Format, infer_task};

const WINDOWS: &str = "{\"text\":\"good \\u2603\",\"label\":\"pos\"}\r\n{\"text\":\"bad\",\"label\":\"neg\"}\r\n\r\n  \r\n{\"text\":\"fine\",\"label\":\"pos\"}";

fn problems(upload: &Upload) -> (Vec<String>, u64) {
    match upload.inspect() {
        Err(DataError::Problems { problems, total }) => (problems.iter().map(ToString::to_string).collect(), total),
        other => panic!("expected problems, found {other:?}"),
    }
}

#[test]
fn data_jsonl_bom_crlf_blank() {
    let with_mark = [b"\xEF\xBB\xBF".as_slice(), WINDOWS.as_bytes()].concat();
    for upload in [Upload::new("a.jsonl", with_mark), Upload::new("b.jsonl", utf16le(WINDOWS))] {
        let summary = upload.summary();
        assert_eq!((summary.rows, summary.format), (3, Format::Jsonl));
        assert_eq!(summary.column_names().collect::<Vec<_>>(), ["text", "label"]);
        let labels = summary.column("label").unwrap().distinct.clone().unwrap();
        let counts: Vec<_> = labels.iter().map(|(name, entry)| (name.as_str(), entry.count)).collect();
        assert_eq!(counts, [("neg", 1), ("pos", 2)]);
        assert_eq!(upload.column("text"), [json!("good ☃"), json!("bad"), json!("fine")]);
        let lines: Vec<u64> = upload.rows().unwrap().iter().map(|row| row.line).collect();
        assert_eq!(lines, [1, 2, 5]);
        assert_eq!(infer_task(&summary), Some("classification"));
    }
    let comma = Upload::new("c.jsonl", "{\"text\":\"a\",\"label\":\"pos\"}\n{\"text\":\"x\",\"label\":\"neg\",}\n");
    assert_eq!(comma.refusal(), "line 2: found a trailing comma at column 27; expected no comma before a closing bracket");
}

#[test]
fn a_missing_key_is_reported_before_a_later_syntax_error() {
    let upload = Upload::new(
        "a.jsonl",
        "{\"text\":\"a\",\"label\":\"x\"}\n{\"text\":\"b\"}\n{\"text\":\"c\",\n{\"text\":\"d\",\"label\":\"x\",\"id\":1}\n[1]\n",
    );
    let (problems, total) = problems(&upload);
    assert_eq!(
        problems,
        [
            "line 2: field \"label\" is missing; expected the keys of line 1 (text, label)",
            "line 3: found the end of the line inside the object at column 12; expected one whole JSON object a line",
            "line 4: field \"id\" does not stand in line 1; expected the keys of line 1 (text, label)",
            "line 5: found a JSON array; expected one JSON object a line, such as {\"text\": \"…\", \"label\": \"…\"}",
        ]
    );
    assert_eq!(total, 4);
}

#[test]
fn twenty_problems_are_listed_and_all_are_counted() {
    let text = format!("{{\"text\":\"a\",\"label\":1}}\n{}", "{\"text\":\"b\"}\n".repeat(50));
    let upload = Upload::new("a.jsonl", text);
    let (problems, total) = problems(&upload);
    assert_eq!((problems.len(), total), (20, 50));
    assert!(upload.refusal().ends_with("and 30 more"));
}

#[test]
fn a_file_with_problems_yields_rows_up_to_the_first() {
    let upload = Upload::new("a.jsonl", "{\"a\":1}\n{\"a\":NaN}\n{\"a\":3}\n");
    let mut rows = tunesmith_data::rows(&upload.path, &upload.name, &upload.limits).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().values["a"], json!(1));
    let error = rows.next().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("line 2: found NaN"), "{error}");
    assert!(rows.next().is_none());
}

#[test]
fn bytes_that_are_no_utf8_are_named_with_line_and_byte() {
    let jsonl = Upload::new("a.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"caf\xE9\"}\n");
    assert_eq!(
        jsonl.refusal(),
        "line 2: found invalid UTF-8 (0xE9 at byte 13 of the line); expected UTF-8; the file may be in Latin-1 or Windows-1252, save it as UTF-8"
    );
    let csv = Upload::new("a.csv", b"text,label\na,b\ncaf\xE9,b\n");
    let refusal = csv.refusal();
    assert!(refusal.starts_with("line 3: field \"text\" has invalid UTF-8 (0xE9 at byte 4 of the cell)"), "{refusal}");
    let unmarked: Vec<u8> = "text,label\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(Upload::new("a.csv", unmarked).refusal().contains("UTF-16 without a byte-order mark"));
}

#[test]
fn csv_keeps_quoted_line_breaks_commas_and_quotes() {
    let upload = Upload::new("a.csv", "\u{FEFF}text,label\r\n\"one\r\ntwo, \"\"three\"\"\",pos\r\n\r\nplain,neg");
    let rows = upload.rows().unwrap();
    assert_eq!(rows[0].values["text"], json!("one\r\ntwo, \"three\""));
    assert_eq!(rows[1].values["label"], json!("neg"));
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 5]);
}

#[test]
fn csv_in_utf16_and_tsv_are_read() {
    let csv = Upload::new("a.csv", utf16le("text,label\r\nhäß 😀,ja\r\n"));
    assert_eq!(csv.column("text"), [json!("häß 😀")]);
    let tsv = Upload::new("a.tsv", "text\t label\na, b\tx\n");
    assert_eq!(tsv.summary().format, Format::Tsv);
    assert_eq!(tsv.column("text"), [json!("a, b")]);
    assert_eq!(tsv.column("label"), [json!("x")]);
}

#[test]
fn faulty_csv_is_refused_with_its_lines() {
    let cells = Upload::new("a.csv", "text,label\na,b\nc\nd,e,f\n");
    assert_eq!(
        problems(&cells).0,
        [
            "line 3: found 1 cell; expected 2, as in the header (text, label)",
            "line 4: found 3 cells; expected 2, as in the header (text, label)",
        ]
    );
    let twice = Upload::new("a.csv", "text,label,text\na,b,c\n");
    assert_eq!(twice.refusal(), "line 1: field \"text\" stands twice in the header; expected each name once");
    let open = Upload::new("a.csv", "text,label\nx\nx,\"neg\ny,pos\n");
    let (open, total) = problems(&open);
    assert_eq!(total, 2);
    assert!(open[0].starts_with("line 2: found 1 cell"));
    assert!(open[1].starts_with("line 3: found a double quote that is never closed"));
    let semicolons = Upload::new("a.csv", "text;label\na;b\n");
    assert!(semicolons.refusal().contains("semicolons"));
}

#[test]
fn cells_that_stand_for_nothing_are_counted_as_missing() {
    let upload = Upload::new("a.csv", "text,label\nNaN,1\nnull,2\n ,3\nNone,\nok,NA\n");
    let summary = upload.summary();
    let text = summary.column("text").unwrap();
    assert_eq!((text.strings, text.missing, text.empty), (5, 4, 1));
    assert_eq!(text.missing_lines, [2, 3, 4, 5]);
    assert_eq!(text.empty_lines, [4]);
    let label = summary.column("label").unwrap();
    assert_eq!((label.missing, label.empty, label.numeric_strings), (2, 1, 3));
    assert_eq!(upload.column("text")[0], json!("NaN"));
}

#[test]
fn emoji_and_combining_characters_come_through_unchanged() {
    let text = "👩‍👩‍👧 e\u{301} é \u{2028}x\u{85}y";
    let jsonl = Upload::new("a.jsonl", format!("{}\n", json!({"text": text, "label": "a"})));
    assert_eq!(jsonl.column("text"), [json!(text)]);
    assert_eq!(jsonl.summary().rows, 1);
    let csv = Upload::new("a.csv", format!("text,label\n{text},a\n"));
    assert_eq!(csv.column("text"), [json!(text)]);
    assert_eq!(csv.summary().column("text").unwrap().max_chars, text.chars().count() as u64);
}

#[test]
fn one_very_long_line_is_read_up_to_the_limit() {
    let long = "x".repeat(200_000);
    let jsonl = format!("{}\n{}\n{}\n", json!({"t": "a"}), json!({"t": long}), json!({"t": "b", "u": 1}));
    let csv = format!("t,u\na,b\n{long},b\n");
    assert_eq!(Upload::new("a.csv", &csv).summary().column("t").unwrap().max_chars, 200_000);
    for (name, text) in [("a.jsonl", &jsonl), ("a.csv", &csv)] {
        let mut upload = Upload::new(name, text);
        upload.limits.line_bytes = 100_000;
        let refusal = upload.refusal();
        let line = if name == "a.csv" { "line 3: " } else { "line 2: " };
        assert!(refusal.contains(line) && refusal.contains("100000 bytes"), "{refusal}");
        // A line of JSONL does not hide the faults behind it.
        assert_eq!(refusal.contains("line 3: field \"u\""), name == "a.jsonl");
    }
}

#[test]
fn empty_files_are_refused() {
    for (name, text) in [("a.jsonl", ""), ("a.jsonl", " \n\r\n"), ("a.csv", "\n"), ("a.csv", "text,label\n")] {
        assert!(matches!(Upload::new(name, text).inspect(), Err(DataError::Empty)), "{text:?}");
    }
}

#[test]
fn other_faults_of_json_lines_are_named() {
    for (line, part) in [
        ("{\"a\":1,\"a\":2}", "field \"a\" stands twice"),
        ("{\"a\":1} {\"a\":2}", "more text after the object"),
        ("\"a\"", "a JSON string"),
        ("{\"a\":\"\u{1}\"}", "control character"),
    ] {
        let refusal = Upload::new("a.jsonl", line).refusal();
        assert!(refusal.contains(part), "{refusal}");
    }
    let wide: Vec<String> = (0..2_001).map(|i| format!("\"k{i}\":1")).collect();
    let wide = Upload::new("a.jsonl", format!("{{{}}}", wide.join(",")));
    assert!(wide.refusal().contains("2001 columns"));
}

#[test]
fn gzip_is_read_and_hashed_as_stored() {
    let packed = gzip(WINDOWS.as_bytes());
    let upload = Upload::new("a.jsonl.gz", &packed);
    let summary = upload.summary();
    assert!(summary.gzip);
    assert_eq!(summary.rows, 3);
    let two_members = [gzip(b"{\"a\":1}\n"), gzip(b"{\"a\":2}\n")].concat();
    assert_eq!(Upload::new("a.jsonl.gz", two_members).summary().rows, 2);
    let cut = Upload::new("a.jsonl.gz", &packed[..packed.len() - 12]);
    assert!(matches!(cut.inspect(), Err(DataError::Gzip(_))), "{:?}", cut.inspect());
    assert_eq!(Upload::new("a.jsonl", "{\"a\":1}\n").summary().sha256, "e346432021b04179518d9614f3560ccd71354a4ee101ddcb893d6959a9d6301c");
}

#[test]
fn duplicate_rows_are_counted_in_any_order_of_keys() {
    let upload =
        Upload::new("a.jsonl", "{\"a\":1,\"b\":[\"x\"]}\n{\"b\":[\"x\"],\"a\":1}\n{\"a\":1,\"b\":[\"y\"]}\n{\"a\":1,\"b\":[\"x\"]}\n");
    assert_eq!(upload.summary().duplicates, 2);
}

#[test]
fn a_summary_survives_its_way_through_json() {
    let summary = Upload::new("a.csv", "text,label\na,1.5\nb,x\n").summary();
    let text = serde_json::to_string(&summary).unwrap();
    assert_eq!(serde_json::from_str::<tunesmith_data::Summary>(&text).unwrap(), summary);
}
