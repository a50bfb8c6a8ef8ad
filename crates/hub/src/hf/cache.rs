//! The layout of the Hugging Face cache: `models--org--name/{blobs,refs,snapshots}`.
//!
//! Used by the pull and by look-ups without network. Python's client reads what is written here and the other way round:
//! blobs are named by their ETag, snapshots are folders of relative links to them, refs name the commit of a branch.

use std::fs;
use std::path::{Path, PathBuf};

use super::select;
use crate::error::HubError;
use crate::source::{Kind, is_hex};

/// One repository's part of the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    kind: Kind,
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// `repo` has passed the rules of `Source`, so it is one or two plain segments.
    pub(super) fn new(hf_cache: &Path, kind: Kind, repo: &str) -> Self {
        let prefix = match kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let name = format!("{prefix}--{}", repo.replace('/', "--"));
        Self { kind, locks: hf_cache.join(".locks").join(&name), folder: hf_cache.join(name) }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The lock that keeps two of our processes from pulling one repository at once.
    pub(super) fn repo_lock(&self) -> PathBuf {
        self.locks.join("tunesmith.lock")
    }

    /// The lock that Python's client takes for one blob.
    pub(super) fn blob_lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a branch, tag or commit names, as far as the cache knows.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_hex(revision, 40) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_hex(commit, 40).then(|| commit.to_owned())
    }

    /// Remembers what a branch or tag names.
    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_hex(revision, 40) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(HubError::io(folder))?;
        std::io::Write::write_all(&mut file, commit.as_bytes()).map_err(HubError::io(&path))?;
        file.persist(&path).map_err(|e| HubError::Io { path: path.clone(), source: e.error })?;
        Ok(())
    }

    /// The wanted files of a snapshot whose links lead somewhere, sorted; `None` if there is no such snapshot.
    pub(super) fn files_of(&self, commit: &str, max_files: usize) -> Option<Vec<String>> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        collect(&root, "", &mut files, max_files)?;
        files.retain(|file| select::is_wanted(self.kind, file));
        files.sort();
        Some(files)
    }

    /// Makes `snapshots/<commit>/<file>` a relative link to the blob.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let link = self.snapshot(commit).join(file);
        let folder = link.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{etag}");
        match fs::remove_file(&link) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                return Err(HubError::io(&link)(why));
            }
            _ => {}
        }
        self.place(&link, Path::new(&target), etag).map_err(HubError::io(&link))
    }

    #[cfg(unix)]
    fn place(&self, link: &Path, target: &Path, _etag: &str) -> std::io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    /// Python's client copies too where links need special rights.
    #[cfg(not(unix))]
    fn place(&self, link: &Path, _target: &Path, etag: &str) -> std::io::Result<()> {
        fs::copy(self.blob(etag), link).map(|_| ())
    }
}

/// Lists files below `root` with `/` between segments. Links are followed to see whether their blob is there.
fn collect(root: &Path, below: &str, files: &mut Vec<String>, max_files: usize) -> Option<()> {
    const MAX_DEPTH: usize = 8;
    for entry in fs::read_dir(root.join(below)).ok()? {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        match fs::metadata(root.join(&path)) {
            Ok(meta) if meta.is_dir() && path.matches('/').count() < MAX_DEPTH => {
                collect(root, &path, files, max_files)?;
            }
            Ok(meta) if meta.is_file() && files.len() < max_files => files.push(path),
            _ => {}
        }
    }
    Some(())
}
