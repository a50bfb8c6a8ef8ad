//! The Hugging Face hub: repositories of models and data sets, in the cache folder that Python's client uses too.
//!
//! Called by `Hub`. `client` speaks HTTP, `download` and `partial` fetch one file, `cache` knows the folder's layout, `select` which
//! files are wanted. Links and refs are written after the last file has come, so a snapshot of ours is never half there.

mod cache;
mod client;
mod download;
mod partial;
mod select;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use futures::{StreamExt, TryStreamExt};

pub(crate) use client::HfClient;
pub(crate) use select::is_wanted;

use crate::config::HubConfig;
use crate::error::HubError;
use crate::hub::{Pulled, blocking};
use crate::progress::Report;
use crate::source::{Kind, Source};
use cache::RepoCache;

const DEFAULT_REVISION: &str = "main";
const PARALLEL_FILES: usize = 4;

/// The complete snapshot in the cache, if there is one.
pub(crate) fn cached(config: &HubConfig, repo: &str, revision: Option<&str>, kind: Option<Kind>) -> Option<Pulled> {
    let kinds = kind.map_or(vec![Kind::Model, Kind::Dataset], |kind| vec![kind]);
    kinds.into_iter().find_map(|kind| {
        let cache = RepoCache::new(&config.hf_cache, kind, repo);
        let commit = cache.commit_of(revision.unwrap_or(DEFAULT_REVISION))?;
        let files = cache.files_of(&commit, config.max_files)?;
        select::is_complete(kind, &files).then(|| pulled(&cache, repo, revision, commit, files))
    })
}

/// Downloads the wanted files of a repository.
pub(crate) async fn pull(
    client: &HfClient,
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    kind: Option<Kind>,
    report: &Report,
) -> Result<Pulled, HubError> {
    if config.offline {
        return Err(HubError::Offline);
    }
    let Some(kind) = kind else {
        let as_model = pull_kind(client, config, repo, revision, Kind::Model, report).await;
        return match as_model {
            // The hub answers a stranger's question for an absent repository with 401, not to tell what is private.
            Err(HubError::Missing { .. } | HubError::Denied { status: 401, .. }) => {
                match pull_kind(client, config, repo, revision, Kind::Dataset, report).await {
                    Err(HubError::Missing { .. } | HubError::Denied { .. }) => as_model,
                    as_dataset => as_dataset,
                }
            }
            other => other,
        };
    };
    pull_kind(client, config, repo, revision, kind, report).await
}

async fn pull_kind(
    client: &HfClient,
    config: &HubConfig,
    repo: &str,
    revision: Option<&str>,
    kind: Kind,
    report: &Report,
) -> Result<Pulled, HubError> {
    let cache = RepoCache::new(&config.hf_cache, kind, repo);
    let wanted_revision = revision.unwrap_or(DEFAULT_REVISION);
    let listing = client.listing(kind, repo, wanted_revision).await?;
    let _lock = crate::lock::acquire(&cache.repo_lock()).await?;
    // Whoever held the lock before may have fetched it all.
    if let Some(found) = cached(config, repo, Some(&listing.commit), Some(kind)) {
        cache.write_ref(wanted_revision, &listing.commit)?;
        return Ok(Pulled { source: source_text(kind, repo, revision), ..found });
    }

    let files = select::choose(kind, repo, listing.files, config)?;
    let budget = AtomicU64::new(config.max_bytes);
    let fetch = |file: client::RemoteFile| {
        let (cache, budget, commit) = (&cache, &budget, listing.commit.as_str());
        async move {
            let url = client.file_url(kind, repo, commit, &file.path)?;
            let job = download::Download { client, config, cache, budget, report, file: &file, url };
            let blob = job.run().await?;
            Ok::<_, HubError>((file.path, blob))
        }
    };
    let blobs: Vec<(String, String)> = futures::stream::iter(files).map(fetch).buffer_unordered(PARALLEL_FILES).try_collect().await?;

    let (repo, revision) = (repo.to_owned(), revision.map(str::to_owned));
    let max_files = config.max_files;
    blocking(move || {
        for (file, blob) in &blobs {
            cache.link(&listing.commit, file, blob)?;
        }
        cache.write_ref(revision.as_deref().unwrap_or(DEFAULT_REVISION), &listing.commit)?;
        let files = cache.files_of(&listing.commit, max_files).ok_or_else(|| HubError::Protocol {
            what: format!("the snapshot of {repo}"),
            why: "it vanished from the cache while it was written".to_owned(),
        })?;
        Ok(pulled(&cache, &repo, revision.as_deref(), listing.commit, files))
    })
    .await
}

fn pulled(cache: &RepoCache, repo: &str, revision: Option<&str>, commit: String, files: Vec<String>) -> Pulled {
    let folder = cache.snapshot(&commit);
    Pulled {
        licence: licence_in_readme(&folder),
        source: source_text(cache.kind(), repo, revision),
        revision: commit,
        files: files.into_iter().map(PathBuf::from).collect(),
        kind: cache.kind(),
        folder,
    }
}

fn source_text(kind: Kind, repo: &str, revision: Option<&str>) -> String {
    Source::Hf { repo: repo.to_owned(), revision: revision.map(str::to_owned), kind: Some(kind) }.to_string()
}

/// The `license:` of a card's front matter, whichever source the folder came from.
pub(crate) fn licence_in_readme(folder: &Path) -> Option<String> {
    let card = std::fs::read_to_string(folder.join("README.md")).ok()?;
    let mut lines = card.lines().map(str::trim_end);
    if lines.next()? != "---" {
        return None;
    }
    lines
        .take_while(|line| *line != "---")
        .find_map(|line| line.strip_prefix("license:"))
        .map(|licence| licence.trim().trim_matches(['"', '\'']).to_owned())
        .filter(|licence| !licence.is_empty() && licence.len() < 100)
}
