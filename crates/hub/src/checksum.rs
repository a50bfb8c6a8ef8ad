//! The checksums that sources promise: SHA-256 of a file, and git's SHA-1 of a blob.
//!
//! Used after every download. The hub's ETag is a SHA-256 for large files and git's blob id for small ones; the length
//! tells which.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::error::HubError;
use crate::source::is_hex;

/// A promise about a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// SHA-256 of the bytes.
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the bytes.
    GitBlob(String),
}

impl Promise {
    /// What an ETag of the hub promises; another server's ETag promises nothing.
    pub(crate) fn of_etag(etag: &str) -> Option<Self> {
        if is_hex(etag, 64) {
            Some(Self::Sha256(etag.to_ascii_lowercase()))
        } else if is_hex(etag, 40) {
            Some(Self::GitBlob(etag.to_ascii_lowercase()))
        } else {
            None
        }
    }

    /// Checks the file at `path`; the error calls it `name`.
    pub(crate) fn check(&self, path: &Path, name: &str) -> Result<(), HubError> {
        let (expected, found) = match self {
            Self::Sha256(expected) => (expected, sha256_of_file(path)),
            Self::GitBlob(expected) => (expected, git_blob_of_file(path)),
        };
        let found = found.map_err(HubError::io(path))?;
        if *expected == found { Ok(()) } else { Err(HubError::Checksum { file: name.to_owned(), expected: expected.clone(), found }) }
    }
}

/// Lower-case hex of a file's SHA-256.
pub(crate) fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    feed(&mut hash, File::open(path)?)?;
    Ok(hex(&hash.finalize()))
}

/// Lower-case hex of a text's SHA-256.
pub(crate) fn sha256_of_text(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn git_blob_of_file(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", file.metadata()?.len()));
    feed(&mut hash, file)?;
    Ok(hex(&hash.finalize()))
}

fn feed(hash: &mut impl Digest, mut file: File) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // The expected values are those of `sha256sum` and `git hash-object`.
    #[test]
    fn both_checksums_are_those_of_the_standard_tools() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        let git = Promise::of_etag("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        git.check(file.path(), "hello").unwrap();
        let sha = Promise::of_etag("5891B5B522D5DF086D0FF0B110FBD9D21BB4FC7163AF34D08286A2E846F6BE03").unwrap();
        sha.check(file.path(), "hello").unwrap();

        std::fs::write(file.path(), "hellO\n").unwrap();
        assert!(matches!(git.check(file.path(), "hello"), Err(HubError::Checksum { .. })));
        assert!(matches!(sha.check(file.path(), "hello"), Err(HubError::Checksum { .. })));
    }

    #[test]
    fn an_etag_of_another_kind_promises_nothing() {
        for etag in ["", "abc", "d41d8cd98f00b204e9800998ecf8427e-12"] {
            assert_eq!(Promise::of_etag(etag), None);
        }
    }
}
