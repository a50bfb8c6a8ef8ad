//! The part of a file that is on the disk, and what an answer's headers say of the whole.
//!
//! Used by `download`. The part is named by the file's ETag, so it is the same part for every process and every program
//! that shares the cache.

use std::fs::File as Lock;
use std::path::PathBuf;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap};
use reqwest::{Response, StatusCode};

use super::cache::RepoCache;
use crate::checksum::sha256_of_text;
use crate::error::HubError;
use crate::lock;

/// The file as far as it is known and written.
pub(super) struct Partial {
    pub(super) etag: String,
    pub(super) size: Option<u64>,
    pub(super) path: PathBuf,
    pub(super) written: u64,
    /// Whether bytes of an earlier pull stand in it.
    pub(super) resumed: bool,
    /// Whether the finished blob is here: another revision, or another program, has fetched it.
    pub(super) has_blob: bool,
    _lock: Lock,
}

impl Partial {
    /// Looks what the cache has of a file, and locks it until dropped.
    pub(super) async fn find(cache: &RepoCache, etag: String, size: Option<u64>) -> Result<Self, HubError> {
        let path = cache.partial(&etag);
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(HubError::io(folder))?;
        }
        let lock = lock::acquire(&cache.blob_lock(&etag)).await?;
        let blob = tokio::fs::metadata(cache.blob(&etag)).await;
        let has_blob = blob.is_ok_and(|meta| size.is_none_or(|size| meta.len() == size));
        let mut written = tokio::fs::metadata(&path).await.map_or(0, |meta| meta.len());
        if size.is_some_and(|size| written > size) {
            tokio::fs::remove_file(&path).await.map_err(HubError::io(&path))?;
            written = 0;
        }
        Ok(Self { etag, size, path, written, resumed: written > 0, has_blob, _lock: lock })
    }

    /// Starts again from the first byte.
    pub(super) async fn empty(&mut self) -> Result<(), HubError> {
        tokio::fs::File::create(&self.path).await.map_err(HubError::io(&self.path))?;
        self.written = 0;
        self.resumed = false;
        Ok(())
    }

    /// Whether no body is needed.
    pub(super) fn done(&self) -> Option<Opened> {
        if self.has_blob {
            Some(Opened::Blob)
        } else if self.written > 0 && self.size == Some(self.written) {
            Some(Opened::AllBytes)
        } else {
            None
        }
    }
}

/// What is to be done about a file.
pub(super) enum Opened {
    /// Read this.
    Body(Response),
    /// Every byte is here, unchecked.
    AllBytes,
    /// Nothing: the blob is here.
    Blob,
}

/// Name and size of the file, as far as the headers tell them.
pub(super) fn described(headers: &HeaderMap, url: &str) -> (String, Option<u64>) {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str()));
    let size = text("x-linked-size").and_then(|size| size.parse().ok());
    (blob_name(etag, url), size)
}

/// The blob's file name: the ETag without its marks if it is a safe name, else a name made from the address.
fn blob_name(etag: Option<&str>, url: &str) -> String {
    let name = etag.unwrap_or_default();
    let name = name.strip_prefix("W/").unwrap_or(name).trim_matches('"');
    let is_safe = (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if is_safe { name.to_owned() } else { format!("url-{}", sha256_of_text(url)) }
}

/// The length of the whole file, as a full or partial answer tells it.
pub(super) fn length_of_whole(response: &Response) -> Option<u64> {
    let header = |name| response.headers().get(name)?.to_str().ok();
    if response.status() == StatusCode::PARTIAL_CONTENT {
        return header(CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok();
    }
    header(CONTENT_LENGTH)?.parse().ok()
}

/// Whether a partial answer starts at `offset`.
pub(super) fn continues_at(response: &Response, offset: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("bytes "))
            .and_then(|value| value.split_once('-'))
            .is_some_and(|(start, _)| start.parse() == Ok(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_becomes_a_file_name_only_if_it_is_a_harmless_one() {
        for (etag, name) in [("\"abc123\"", "abc123"), ("W/\"abc123\"", "abc123"), ("\"0f-12\"", "0f-12")] {
            assert_eq!(blob_name(Some(etag), "u"), name);
        }
        let long = "a".repeat(129);
        for etag in ["", "\"\"", "..", ".hidden", "a/b", "a\\b", "a b", &long] {
            assert!(blob_name(Some(etag), "u").starts_with("url-"), "{etag}");
        }
        assert_eq!(blob_name(None, "u"), blob_name(Some("a/b"), "u"));
        assert_ne!(blob_name(None, "u"), blob_name(None, "v"));
    }
}
