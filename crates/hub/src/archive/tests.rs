//! Archives as they come, and as an attacker would make them.

#![allow(clippy::unwrap_used)]

use super::*;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

const LIMITS: Limits = Limits { entries: 100, bytes: 64 << 20 };

struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn extract(&self, name: &str, bytes: &[u8], wanted: &str) -> Result<Vec<Entry>, HubError> {
        self.extract_within(name, bytes, wanted, LIMITS)
    }

    fn extract_within(&self, name: &str, bytes: &[u8], wanted: &str, limits: Limits) -> Result<Vec<Entry>, HubError> {
        let archive = self.folder.path().join(name);
        fs::write(&archive, bytes).unwrap();
        let into = self.target();
        fs::create_dir_all(&into).unwrap();
        Extract { archive: &archive, wanted, below_top: name.contains("sdist"), into: &into, limits }.run()
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("into/files")
    }

    fn assert_nothing_escaped(&self) {
        let names: Vec<_> = fs::read_dir(self.folder.path().join("into")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["files"]);
        assert!(!self.folder.path().join("evil").exists());
    }
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A tar entry whose name is written as it stands: the tar crate itself would refuse some.
fn raw_entry(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

fn tar_gz(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(&tar.into_inner().unwrap()).unwrap();
    gz.finish().unwrap()
}

fn paths(entries: &[Entry]) -> Vec<&str> {
    let mut paths: Vec<&str> = entries.iter().map(|e| e.path.to_str().unwrap()).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn only_the_wanted_folder_of_a_wheel_is_unpacked() {
    let case = Case::new();
    let bytes = zip_of(&[
        ("pkg/__init__.py", b"code"),
        ("pkg/model/config.json", b"{}"),
        ("pkg/model/1_Pooling/config.json", b"{ }"),
        ("pkg/model_card.txt", b"not below model/"),
    ]);
    let entries = case.extract("tiny-1.0-py3-none-any.whl", &bytes, "pkg/model").unwrap();
    assert_eq!(paths(&entries), ["1_Pooling/config.json", "config.json"]);
    let written = fs::read(case.target().join("1_Pooling/config.json")).unwrap();
    assert_eq!(written, b"{ }");
}

#[test]
fn one_file_can_be_wanted_and_a_source_archives_top_folder_is_left_out() {
    let case = Case::new();
    let bytes = tar_gz(|tar| {
        raw_entry(tar, "x-1.0/", tar::EntryType::Directory, b"");
        raw_entry(tar, "x-1.0/data/a.txt", tar::EntryType::Regular, b"abc");
        raw_entry(tar, "x-1.0/data/b.txt", tar::EntryType::Regular, b"b");
    });
    let entries = case.extract("x-1.0.sdist.tar.gz", &bytes, "data/a.txt").unwrap();
    assert_eq!(paths(&entries), ["a.txt"]);
    assert_eq!(fs::read(case.target().join("a.txt")).unwrap(), b"abc");
}

#[test]
fn an_absent_path_is_named_with_what_there_is_instead() {
    let case = Case::new();
    let error = case.extract("a.zip", &zip_of(&[("one/x", b"1"), ("two/y", b"2")]), "three").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HubError::Missing { .. }));
    assert!(text.contains("three") && text.contains("one, two"), "{text}");
}

#[test]
fn a_zip_with_a_name_that_leaves_its_folder_is_refused_whole() {
    for name in ["../evil", "m/../../evil", "/evil", "m/../../../evil", "..\\evil", "C:\\evil", "m//evil", "m/./../evil"] {
        let case = Case::new();
        let bytes = zip_of(&[("m/good", b"1"), (name, b"2")]);
        let error = case.extract("a.zip", &bytes, "m").unwrap_err();
        assert!(matches!(error, HubError::Archive { .. }), "{name}: {error}");
        case.assert_nothing_escaped();
    }
}

#[test]
fn a_tar_with_a_name_that_leaves_its_folder_is_refused_even_outside_the_wanted_part() {
    for name in ["../evil", "m/../../evil", "/evil"] {
        let case = Case::new();
        let bytes = tar_gz(|tar| {
            raw_entry(tar, name, tar::EntryType::Regular, b"2");
            raw_entry(tar, "m/good", tar::EntryType::Regular, b"1");
        });
        let error = case.extract("a.tar.gz", &bytes, "m").unwrap_err();
        assert!(matches!(error, HubError::Archive { .. }), "{name}: {error}");
        case.assert_nothing_escaped();
    }
}

#[test]
fn links_and_devices_are_never_made() {
    for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Char, tar::EntryType::Fifo] {
        let case = Case::new();
        let bytes = tar_gz(|tar| raw_entry(tar, "m/link", kind, b""));
        let error = case.extract("a.tar.gz", &bytes, "m").unwrap_err();
        assert!(error.to_string().contains("link"), "{error}");
        assert!(fs::read_dir(case.target()).unwrap().next().is_none());
    }
    let case = Case::new();
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink("m/link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
    let bytes = zip.finish().unwrap().into_inner();
    assert!(case.extract("a.zip", &bytes, "m").is_err());
    assert!(fs::read_dir(case.target()).unwrap().next().is_none());
}

#[test]
fn a_bomb_stops_at_the_ratio_however_small_it_looks() {
    let zeros = vec![0; 40 << 20];
    let zip = zip_of(&[("m/bomb", &zeros)]);
    assert!(zip.len() < 64 << 10);
    let gz = tar_gz(|tar| raw_entry(tar, "m/bomb", tar::EntryType::Regular, &zeros));
    // The same outside the wanted part: a tar has to be unpacked to be skipped.
    let skipped = tar_gz(|tar| raw_entry(tar, "n/bomb", tar::EntryType::Regular, &zeros));
    for (name, bytes) in [("a.zip", zip), ("a.tar.gz", gz), ("b.tar.gz", skipped)] {
        let case = Case::new();
        let error = case.extract(name, &bytes, "m").unwrap_err();
        assert!(matches!(error, HubError::TooLarge { .. }), "{name}: {error}");
        let written: u64 = fs::read_dir(case.target()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(written <= SMALL, "{name} wrote {written}");
    }
}

#[test]
fn entries_and_bytes_have_limits() {
    let names: Vec<String> = (0..20).map(|i| format!("m/{i}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"12345678"[..])).collect();
    let bytes = zip_of(&files);
    let few_entries = Limits { entries: 19, ..LIMITS };
    let few_bytes = Limits { bytes: 159, ..LIMITS };
    let enough = Limits { entries: 20, bytes: 160 };
    for limits in [few_entries, few_bytes] {
        let error = Case::new().extract_within("a.zip", &bytes, "m", limits);
        assert!(matches!(error, Err(HubError::TooLarge { .. })));
    }
    let entries = Case::new().extract_within("a.zip", &bytes, "m", enough).unwrap();
    assert_eq!(entries.len(), 20);
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let bytes = tar_gz(|tar| {
        raw_entry(tar, "m/a", tar::EntryType::Regular, b"1");
        raw_entry(tar, "m/a", tar::EntryType::Regular, b"2");
    });
    let error = Case::new().extract("a.tar.gz", &bytes, "m").unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
}

#[test]
fn broken_archives_are_errors_of_the_archive() {
    let whole = zip_of(&[("m/a", &[7; 5000])]);
    let gz = tar_gz(|tar| raw_entry(tar, "m/a", tar::EntryType::Regular, &[7; 5000]));
    let mut flipped = whole.clone();
    flipped[40] ^= 0xff;
    for (name, bytes) in [
        ("a.zip", &b"not a zip"[..]),
        ("b.zip", &whole[..whole.len() / 2]),
        ("c.zip", &flipped),
        ("d.tar.gz", &b"not a gzip"[..]),
        ("e.tar.gz", &gz[..gz.len() / 2]),
        ("f.rar", &whole),
    ] {
        let error = Case::new().extract(name, bytes, "m").unwrap_err();
        assert!(matches!(error, HubError::Archive { .. }), "{name}: {error}");
    }
}
