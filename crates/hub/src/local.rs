//! `file:` and `join:`: what lies on this machine, and files that come in pieces.
//!
//! Called by `Hub`. A folder's revision is a hash of the content of its wanted files, so a changed folder is another
//! revision.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::checksum::{sha256_of_file, sha256_of_text};
use crate::config::HubConfig;
use crate::error::HubError;
use crate::hf;
use crate::hub::{Pulled, blocking};
use crate::lock;
use crate::package;
use crate::progress::{Meter, Report};
use crate::receipt::{self, Entry, Receipt, kind_of};
use crate::source::{Kind, Source};

const MAX_DEPTH: usize = 4;

/// A folder or a file of this machine. Reads every wanted byte.
pub(crate) fn open(path: &Path, max_files: usize) -> Result<Pulled, HubError> {
    let meta = fs::metadata(path).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => HubError::Missing { what: path.display().to_string() },
        _ => HubError::io(path)(why),
    })?;
    let path = path.canonicalize().map_err(HubError::io(path))?;
    let source = Source::File(path.clone()).to_string();
    let name = path.file_name().map(PathBuf::from);
    if let (true, Some(folder), Some(name)) = (meta.is_file(), path.parent(), name) {
        let files = vec![name];
        return Ok(Pulled {
            folder: folder.to_owned(),
            source,
            revision: sha256_of_file(&path).map_err(HubError::io(&path))?,
            licence: None,
            kind: kind_of(&files),
            files,
        });
    }
    let mut all = Vec::new();
    list(&path, Path::new(""), 0, max_files, &mut all)?;
    all.sort();
    // A table is not hidden by a config.json beside it, nor weights by a table: the folder's kind decides.
    let kind = kind_of(&all);
    let files: Vec<PathBuf> = all.into_iter().filter(|file| is_wanted(kind, file)).collect();
    if files.is_empty() {
        return Err(HubError::Missing { what: format!("a model or a table in {}", path.display()) });
    }
    let mut lines = String::new();
    for file in &files {
        let full = path.join(file);
        let hash = sha256_of_file(&full).map_err(HubError::io(&full))?;
        lines.push_str(&format!("{hash}  {}\n", file.display()));
    }
    Ok(Pulled { source, revision: sha256_of_text(&lines), licence: hf::licence_in_readme(&path), kind, files, folder: path })
}

fn is_wanted(kind: Kind, file: &Path) -> bool {
    let is_single_file_model = file.extension().is_some_and(|e| e == "gguf");
    let is_plain_table = kind == Kind::Dataset && file.extension().is_some_and(|e| e == "txt" || e == "tsv");
    is_single_file_model || is_plain_table || file.to_str().is_some_and(|path| hf::is_wanted(kind, path))
}

fn list(root: &Path, below: &Path, depth: usize, max_files: usize, files: &mut Vec<PathBuf>) -> Result<(), HubError> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).map_err(HubError::io(&folder))? {
        let name = entry.map_err(HubError::io(&folder))?.file_name();
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let path = below.join(name);
        // Links are followed: a snapshot of the hub's cache consists of them. A dangling one is no file.
        let Ok(meta) = fs::metadata(root.join(&path)) else {
            continue;
        };
        if meta.is_dir() && depth < MAX_DEPTH {
            list(root, &path, depth + 1, max_files, files)?;
        } else if meta.is_file() {
            if files.len() == max_files {
                return Err(HubError::TooLarge {
                    what: root.display().to_string(),
                    found: "more files".to_owned(),
                    limit: format!("{max_files} files; name the model's own folder"),
                });
            }
            files.push(path);
        }
    }
    Ok(())
}

/// The joined file, if it is in our cache and its local pieces have not changed since.
pub(crate) fn cached_join(config: &HubConfig, source: &Source) -> Option<Pulled> {
    Receipt::open(&root_of_join(config, source))
}

fn root_of_join(config: &HubConfig, source: &Source) -> PathBuf {
    let mut text = source.to_string();
    if let Source::Join(pieces) = source {
        for piece in pieces {
            if let Source::File(path) = piece
                && let Ok(meta) = fs::metadata(path)
            {
                let changed = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                text.push_str(&format!("\n{} {changed:?}", meta.len()));
            }
        }
    }
    let key = &sha256_of_text(&text)[..16];
    config.cache.join("joined").join(key)
}

/// Fetches the pieces and writes them one after another.
pub(crate) async fn join(config: &HubConfig, source: &Source, pieces: &[Source], report: &Report) -> Result<Pulled, HubError> {
    let root = root_of_join(config, source);
    let parent = config.cache.join("joined");
    fs::create_dir_all(&parent).map_err(HubError::io(&parent))?;
    let _lock = lock::acquire(&root.with_added_extension("lock")).await?;
    if let Some(found) = Receipt::open(&root) {
        return Ok(found);
    }
    let mut paths = Vec::new();
    for piece in pieces {
        let pulled = match piece {
            Source::File(path) => {
                let (path, max_files) = (path.clone(), config.max_files);
                blocking(move || open(&path, max_files)).await?
            }
            _ => package::pull(config, piece, report).await?,
        };
        match pulled.files.as_slice() {
            [file] => paths.push(pulled.folder.join(file)),
            files => {
                return Err(HubError::bad_source(&piece.to_string(), format!("a piece must be one file, this is {}", files.len())));
            }
        }
    }
    let (source, max_bytes, report) = (source.to_string(), config.max_bytes, report.clone());
    blocking(move || write_joined(&parent, &root, &paths, source, max_bytes, &report)).await
}

fn write_joined(
    parent: &Path,
    root: &Path,
    pieces: &[PathBuf],
    source: String,
    max_bytes: u64,
    report: &Report,
) -> Result<Pulled, HubError> {
    let mut total = 0;
    for piece in pieces {
        total += fs::metadata(piece).map_err(HubError::io(piece))?.len();
    }
    if total > max_bytes {
        return Err(HubError::TooLarge { what: source, found: format!("{total} bytes"), limit: format!("{max_bytes} bytes") });
    }
    let made = package::fresh_folder(parent)?;
    let folder = receipt::content(made.path());
    fs::create_dir_all(&folder).map_err(HubError::io(&folder))?;
    let name = pieces.first().map(|first| joined_name(first));
    let name = name.unwrap_or_else(|| "joined".to_owned());
    let path = folder.join(&name);
    let mut file = File::create_new(&path).map_err(HubError::io(&path))?;
    let mut meter = Meter::new(report, &name);
    let mut done = 0;
    for piece in pieces {
        let mut from = File::open(piece).map_err(HubError::io(piece))?;
        done += io::copy(&mut from, &mut file).map_err(HubError::io(&path))?;
        meter.at(done, Some(total));
    }
    file.sync_all().map_err(HubError::io(&path))?;
    let receipt = Receipt {
        source,
        revision: sha256_of_file(&path).map_err(HubError::io(&path))?,
        files: vec![Entry { path: name.into(), bytes: done }],
    };
    receipt.finish(made, root)
}

/// `model.gguf.part0` and `model.gguf.001` are pieces of `model.gguf`.
fn joined_name(first: &Path) -> String {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once('.') {
        Some((stem, end))
            if !stem.is_empty() && end.strip_prefix("part").unwrap_or(end).chars().all(|c| c.is_ascii_digit() || c == '-') =>
        {
            stem.to_owned()
        }
        _ => name.into_owned(),
    }
}
