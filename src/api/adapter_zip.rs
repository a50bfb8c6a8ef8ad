//! Unpacks an uploaded zip with a PEFT folder, trusting nothing in it.
//!
//! Called by `adapters.rs`. Paths that leave the folder, links, too many files and too many bytes are errors; sizes are
//! counted while unpacking, since what a zip declares need not be true.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use zip::ZipArchive;
use zip::read::ZipFile;

use super::error::{ApiError, is_full, shorten};

/// Files of a zip; a PEFT folder has about ten.
const MOST_FILES: usize = 200;

/// Unpacks into `target` and answers the folder with adapter_config.json: the top, or the only folder there.
pub fn unpack(zip: &Path, target: &Path, limit: u64) -> Result<PathBuf, ApiError> {
    let file = File::open(zip).map_err(ApiError::internal)?;
    let mut archive = ZipArchive::new(file).map_err(|e| bad(format!("The file is not a zip: {e}.")))?;
    if archive.len() > MOST_FILES {
        return Err(bad(format!("The zip has {} entries; an adapter has at most {MOST_FILES}.", archive.len())));
    }
    let mut left = limit;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| bad(format!("The zip cannot be read: {e}.")))?;
        write_entry(entry, target, &mut left, limit)?;
    }
    find_adapter(target)
}

fn write_entry<R: Read>(mut entry: ZipFile<'_, R>, target: &Path, left: &mut u64, limit: u64) -> Result<(), ApiError> {
    let name = shorten(&String::from_utf8_lossy(entry.name_raw()));
    let Some(path) = entry.enclosed_name() else {
        return Err(bad(format!("The zip's entry `{name}` would leave its folder.")));
    };
    if entry.is_symlink() {
        return Err(bad(format!("The zip's entry `{name}` is a link.")));
    }
    let path = target.join(path);
    if entry.is_dir() {
        return std::fs::create_dir_all(path).map_err(disk);
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(disk)?;
    }
    let mut file = File::create_new(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => bad(format!("The zip has the entry `{name}` twice.")),
        _ => disk(e),
    })?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = entry.read(&mut buffer).map_err(|e| bad(format!("The zip's entry `{name}` is damaged: {e}.")))?;
        if n == 0 {
            return file.sync_all().map_err(disk);
        }
        *left = left.checked_sub(n as u64).ok_or_else(|| {
            let message = format!("The zip unpacks to more than {limit} bytes (limits.max_unpacked_bytes).");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", message).with_param("file_id")
        })?;
        file.write_all(&buffer[..n]).map_err(disk)?;
    }
}

fn find_adapter(target: &Path) -> Result<PathBuf, ApiError> {
    const CONFIG: &str = "adapter_config.json";
    if target.join(CONFIG).is_file() {
        return Ok(target.to_owned());
    }
    let folders = std::fs::read_dir(target).map_err(disk)?.filter_map(Result::ok).map(|e| e.path());
    let mut with_config: Vec<PathBuf> = folders.filter(|path| path.join(CONFIG).is_file()).collect();
    match (with_config.pop(), with_config.len()) {
        (Some(folder), 0) => Ok(folder),
        (None, _) => Err(bad("The zip has no adapter_config.json at its top or in a folder there; zip a PEFT folder.")),
        (Some(_), _) => Err(bad("The zip has several adapters; upload one a zip.")),
    }
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::field("file_id", message)
}

fn disk(error: std::io::Error) -> ApiError {
    if is_full(&error) {
        return ApiError::disk_full("No space is left to unpack the adapter; free some disk space and try again.");
    }
    ApiError::internal(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use zip::write::SimpleFileOptions;

    fn unpacked(entries: &[(&str, &[u8])], limit: u64) -> Result<Vec<String>, ApiError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        let target = folder.path().join("out");
        std::fs::create_dir(&target).unwrap();
        let found = unpack(&path, &target, limit)?;
        let mut names: Vec<String> = std::fs::read_dir(found).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is written beside the target");
        Ok(names)
    }

    #[test]
    fn the_folder_is_found_at_the_top_or_one_below() {
        let files: [(&str, &[u8]); 2] = [("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"x")];
        assert_eq!(unpacked(&files, 100).unwrap(), ["adapter_config.json", "adapter_model.safetensors"]);
        let below: [(&str, &[u8]); 2] = [("mine/adapter_config.json", b"{}"), ("mine/a.bin", b"x")];
        assert_eq!(unpacked(&below, 100).unwrap(), ["a.bin", "adapter_config.json"]);
        assert!(unpacked(&[("config.json", b"{}")], 100).unwrap_err().to_string().contains("adapter_config.json"));
    }

    #[test]
    fn an_entry_cannot_leave_its_folder() {
        for name in ["../evil", "/etc/evil", "a/../../evil"] {
            let error = unpacked(&[("adapter_config.json", b"{}"), (name, b"x")], 100);
            assert!(error.is_err() || error.is_ok_and(|names| !names.iter().any(|n| n == "evil")), "{name}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let big = vec![0u8; 1 << 20];
        let error = unpacked(&[("adapter_config.json", b"{}"), ("big", &big)], 1000).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (413, "file_too_large"));
    }
}
