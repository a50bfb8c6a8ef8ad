//! A finished folder of our own cache: `files/` with the content, `receipt.json` with what it is.
//!
//! Written by packages and joined files. The folder appears by one rename, so whoever sees it sees all of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::HubError;
use crate::hf;
use crate::hub::Pulled;
use crate::source::Kind;

const FILE_NAME: &str = "receipt.json";

/// What a finished folder holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) source: String,
    pub(crate) revision: String,
    pub(crate) files: Vec<Entry>,
}

/// One file below `files/`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Where the content of a folder that is being made goes.
pub(crate) fn content(root: &Path) -> PathBuf {
    root.join("files")
}

impl Receipt {
    /// The folder's content, if every file is there with its size.
    pub(crate) fn open(root: &Path) -> Option<Pulled> {
        let text = fs::read(root.join(FILE_NAME)).ok()?;
        let receipt: Self = serde_json::from_slice(&text).ok()?;
        let folder = content(root);
        let is_there = |file: &Entry| fs::metadata(folder.join(&file.path)).is_ok_and(|meta| meta.is_file() && meta.len() == file.bytes);
        let files: Vec<PathBuf> = receipt.files.iter().map(|f| f.path.clone()).collect();
        receipt.files.iter().all(is_there).then(|| Pulled {
            licence: hf::licence_in_readme(&folder),
            kind: kind_of(&files),
            source: receipt.source,
            revision: receipt.revision,
            files,
            folder,
        })
    }

    /// Gives the folder that was made in `made` its final place, and opens it there.
    pub(crate) fn finish(mut self, made: tempfile::TempDir, root: &Path) -> Result<Pulled, HubError> {
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        let path = made.path().join(FILE_NAME);
        let text = serde_json::to_vec_pretty(&self)
            .map_err(|why| HubError::Protocol { what: path.display().to_string(), why: why.to_string() })?;
        let mut file = fs::File::create(&path).map_err(HubError::io(&path))?;
        std::io::Write::write_all(&mut file, &text).map_err(HubError::io(&path))?;
        file.sync_all().map_err(HubError::io(&path))?;
        // What stands there failed `open`: a file of it was lost.
        match fs::remove_dir_all(root) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                return Err(HubError::io(root)(why));
            }
            _ => {}
        }
        fs::rename(made.path(), root).map_err(HubError::io(root))?;
        Self::open(root).ok_or_else(|| HubError::Protocol {
            what: root.display().to_string(),
            why: "it changed while it was written; try again".to_owned(),
        })
    }
}

/// A folder with a configuration or weights is a model; anything else holds rows.
pub(crate) fn kind_of(files: &[PathBuf]) -> Kind {
    let is_model_file = |file: &PathBuf| {
        file == Path::new("config.json")
            || file == Path::new("adapter_config.json")
            || file.extension().is_some_and(|e| e == "gguf" || e == "safetensors")
    };
    if files.iter().any(is_model_file) { Kind::Model } else { Kind::Dataset }
}
