//! The models in memory: loaded on first use, found by name without a look at the database, evicted by least use.
//!
//! Adapters of one base share its weights and its queue. Loading a name that several requests want happens once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tunesmith_hub::{AllowPull, Hub, HubError};
use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{EngineLimits, ServedAdapter, ServedBase, ServedClassifier, ServedDecoder, ServedEncoder};
use tunesmith_ml::models::is_decoder;
use tunesmith_ml::peft::AdapterFacts;
use tunesmith_store::{Store, StoreError, split_checkpoint_name};

use super::batcher::{Batcher, Waiting};
use super::generator::{Generator, Requests};
use super::loaded::{Base, Language, Loaded, LoadedKind};
use super::locate::{LocateError, Place, locate};
use super::pool::Pool;
use super::template::template_of;
use super::weight_bytes::weight_bytes;
use crate::config::Config;

/// Why a name does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The name leads nowhere.
    #[error(transparent)]
    Locate(Arc<LocateError>),
    /// The base cannot be had.
    #[error(transparent)]
    Hub(Arc<HubError>),
    /// The model cannot do what is asked.
    #[error("this model is {0}")]
    WrongKind(&'static str),
    /// The files do not make a model.
    #[error(transparent)]
    Model(Arc<MlError>),
    /// The base is still being downloaded.
    #[error("{0:?} is still being downloaded; try again in a moment")]
    Loading(String),
    /// A defect of ours, or a system without threads.
    #[error("{0}")]
    Internal(String),
}

impl From<LocateError> for ServeError {
    fn from(e: LocateError) -> Self {
        Self::Locate(Arc::new(e))
    }
}

impl From<StoreError> for ServeError {
    fn from(e: StoreError) -> Self {
        LocateError::Store(e).into()
    }
}

impl From<HubError> for ServeError {
    fn from(e: HubError) -> Self {
        Self::Hub(Arc::new(e))
    }
}

impl From<MlError> for ServeError {
    fn from(e: MlError) -> Self {
        Self::Model(Arc::new(e))
    }
}

/// Tokens of prompts in one step of an engine: few enough that those who are being answered do not wait long.
const PREFILL_TOKENS: usize = 256;

/// What a look at an adapter found.
pub struct Fitted {
    /// The labels of a classifier.
    pub labels: Vec<String>,
    /// What it says of itself.
    pub facts: Option<AdapterFacts>,
    /// What a user should know of it.
    pub warnings: Vec<String>,
}

impl Fitted {
    fn of(encoder: &ServedEncoder) -> Self {
        Self { labels: Vec::new(), facts: encoder.facts.clone(), warnings: encoder.warnings.clone() }
    }
}

type Slot<T> = Arc<OnceCell<Arc<T>>>;

/// The models in memory. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    hub: Arc<Hub>,
    config: Arc<Config>,
    waiting: Arc<Waiting>,
    requests: Arc<Requests>,
    pool: Arc<Pool>,
    models: Mutex<HashMap<String, Slot<Loaded>>>,
    bases: Mutex<HashMap<PathBuf, Slot<Base>>>,
    clock: AtomicU64,
    started: Instant,
}

impl Registry {
    /// An empty registry.
    ///
    /// # Errors
    /// If the system has no threads left.
    pub fn new(store: Store, hub: Arc<Hub>, config: Arc<Config>) -> anyhow::Result<Self> {
        let pool = Arc::new(Pool::new(config.threads_of_serving(), &config.data_dir)?);
        let waiting = Arc::new(Waiting::new(config.budgets.classify_queue_rows, config.budgets.classify_queue_tokens));
        let requests = Arc::new(Requests::new(config.budgets.generation_requests));
        let (models, bases, clock) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        let inner = Inner { store, hub, config, waiting, requests, pool, models, bases, clock, started: Instant::now() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Rows that wait or run, over all models.
    pub fn waiting_rows(&self) -> usize {
        self.inner.waiting.rows()
    }

    /// The model of that name, loaded if need be. Waits for a download as long as the configuration says.
    ///
    /// # Errors
    /// If the name leads nowhere, its files are no model, or the download takes longer.
    pub async fn get(&self, name: &str) -> Result<Arc<Loaded>, ServeError> {
        let slot = lock(&self.inner.models).entry(name.to_owned()).or_default().clone();
        if let Some(loaded) = slot.get() {
            self.check_still_there(name, loaded).await?;
            self.touch(loaded);
            return Ok(loaded.clone());
        }
        // Apart from the request: a download goes on when its client leaves or is told to come again.
        let (this, wanted, filling) = (self.clone(), name.to_owned(), slot.clone());
        let load = tokio::spawn(async move { filling.get_or_try_init(|| this.load(&wanted)).await.cloned() });
        let wait = Duration::from_secs(self.inner.config.budgets.pull_wait_seconds);
        let result = match tokio::time::timeout(wait, load).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(ServeError::Internal(error.to_string())),
            Err(_) => return Err(ServeError::Loading(name.to_owned())),
        };
        match result {
            Ok(loaded) => {
                self.touch(&loaded);
                self.evict(0);
                Ok(loaded)
            }
            Err(error) => {
                self.forget_unfilled(name);
                self.evict(0);
                Err(error)
            }
        }
    }

    /// Drops a name that was deleted or replaced; running requests end on what they have.
    pub fn forget(&self, name: &str) {
        let checkpoints = format!("{name}:ckpt-step-");
        lock(&self.inner.models).retain(|n, _| n != name && !n.starts_with(&checkpoints));
        self.drop_unused_bases();
    }

    /// Loads an adapter's folder on a base, without a name, to see whether it fits.
    ///
    /// # Errors
    /// If it does not fit, or the base cannot be had.
    pub async fn try_adapter(&self, folder: PathBuf, base: &str) -> Result<Fitted, ServeError> {
        let base = self.base_of(base).await?;
        let fitted = self.adapter(folder, base).await.map(|kind| match kind {
            LoadedKind::Classifier { classifier, .. } => Fitted { labels: classifier.labels.clone(), ..Fitted::of(&classifier.encoder) },
            LoadedKind::Encoder { encoder, .. } => Fitted::of(&encoder),
            LoadedKind::Language(l) => {
                let (facts, warnings) = l.adapter.as_ref().map(|a| (a.facts.clone(), a.warnings.clone())).unzip();
                Fitted { labels: Vec::new(), facts, warnings: warnings.unwrap_or_default() }
            }
        });
        self.evict(0);
        fitted
    }

    /// Checkpoints expire while they are loaded, by a worker in another process, so their names are looked up again once a
    /// second. Other names end in this process, by [`Self::forget`].
    async fn check_still_there(&self, name: &str, loaded: &Loaded) -> Result<(), ServeError> {
        let now = self.inner.started.elapsed().as_secs();
        if split_checkpoint_name(name).is_none() || loaded.checked.swap(now, Ordering::Relaxed) == now {
            return Ok(());
        }
        match locate(&self.inner.store, name).await {
            Err(gone @ (LocateError::Expired(_) | LocateError::Store(StoreError::NotFound { .. }))) => {
                self.forget(name);
                Err(gone.into())
            }
            // A busy database is no reason to refuse what is in memory.
            _ => Ok(()),
        }
    }

    fn touch(&self, loaded: &Loaded) {
        loaded.used.store(self.inner.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    fn forget_unfilled(&self, name: &str) {
        let mut models = lock(&self.inner.models);
        if models.get(name).is_some_and(|slot| !slot.initialized()) {
            models.remove(name);
        }
    }

    async fn load(&self, name: &str) -> Result<Arc<Loaded>, ServeError> {
        let place = locate(&self.inner.store, name).await?;
        let kind = match self.load_from(&place, name).await {
            Ok(kind) => kind,
            Err(failure) => return Err(place.blame(locate(&self.inner.store, name).await, name, failure)),
        };
        let loaded = Loaded::new(kind);
        let (bytes, base_bytes, cache_bytes) = (loaded.own_bytes(), loaded.base_bytes(), loaded.cache_bytes());
        tracing::info!(name, bytes, base_bytes, cache_bytes, "loaded");
        Ok(Arc::new(loaded))
    }

    async fn load_from(&self, place: &Place, name: &str) -> Result<LoadedKind, ServeError> {
        match place {
            Place::Whole { folder_key } => self.whole(self.blob(folder_key, name)?).await,
            Place::Adapter { folder_key, base, revision } => {
                let folder = self.blob(folder_key, name)?;
                let base = self.recorded_base(base).await?;
                if let Some(revision) = revision {
                    tracing::debug!(name, revision, "the base's revision in training");
                }
                self.adapter(folder, base).await
            }
            Place::OutsideAdapter { source, base } => {
                let folder = self.pull(source).await?;
                let base = self.recorded_base(base).await?;
                self.adapter(folder, base).await
            }
            Place::Base => self.whole(self.pull(name).await?).await,
        }
    }

    async fn adapter(&self, folder: PathBuf, base: Arc<Base>) -> Result<LoadedKind, ServeError> {
        blocking(move || match &*base {
            Base::Encoder { weights, batcher } => {
                let (encoder, head) = ServedEncoder::adapter(weights.clone(), &folder)?;
                let (encoder, batcher) = (Arc::new(encoder), batcher.clone());
                let Some(head) = head else { return Ok(LoadedKind::Encoder { encoder, batcher }) };
                Ok(LoadedKind::Classifier { classifier: Arc::new(ServedClassifier::of(encoder, head, &folder)?), batcher })
            }
            Base::Decoder(language) => {
                let adapter = Some(Arc::new(ServedAdapter::load(language.model.clone(), &folder)?));
                Ok(LoadedKind::Language(Language { adapter, priors: Arc::default(), ..language.clone() }))
            }
        })
        .await
    }

    async fn whole(&self, folder: PathBuf) -> Result<LoadedKind, ServeError> {
        let base = self.base(folder.clone()).await?;
        blocking(move || match &*base {
            Base::Encoder { weights, batcher } => Ok(match ServedClassifier::whole(weights.clone(), &folder)? {
                Some(classifier) => LoadedKind::Classifier { classifier: Arc::new(classifier), batcher: batcher.clone() },
                None => LoadedKind::Encoder { encoder: Arc::new(ServedEncoder::bare(weights.clone())), batcher: batcher.clone() },
            }),
            Base::Decoder(language) => Ok(LoadedKind::Language(language.clone())),
        })
        .await
    }

    fn blob(&self, key: &str, name: &str) -> Result<PathBuf, ServeError> {
        let missing = || StoreError::not_found(tunesmith_store::Kind::Model, name);
        Ok(self.inner.store.blobs().local_path(key).ok_or_else(missing)?)
    }

    /// The base of that name: one of ours that was trained whole, or one that the hub has.
    async fn base_of(&self, name: &str) -> Result<Arc<Base>, ServeError> {
        let folder = match locate(&self.inner.store, name).await? {
            Place::Whole { folder_key } => self.blob(&folder_key, name)?,
            _ => self.pull(name).await?,
        };
        self.base(folder).await
    }

    /// The base of a model that stands here already. Naming it was allowed when the model was made, and it goes on answering when
    /// `allow_pull` has become narrower since.
    async fn recorded_base(&self, name: &str) -> Result<Arc<Base>, ServeError> {
        match self.base_of(name).await {
            Err(ServeError::Hub(error)) if !name.starts_with("file:") && matches!(*error, HubError::NotAllowed { .. }) => {
                let folder = self.inner.hub.pull(name, |_| ()).await?.model_path();
                self.base(folder).await
            }
            result => result,
        }
    }

    async fn base(&self, folder: PathBuf) -> Result<Arc<Base>, ServeError> {
        let slot = lock(&self.inner.bases).entry(folder.clone()).or_default().clone();
        let load = || async {
            let this = self.clone();
            let load = move || {
                let decoder = is_decoder(&folder);
                let cache = if decoder { this.inner.config.kv_cache_bytes() } else { 0 };
                // Before, not after: memory for both at once may not be there.
                this.evict(weight_bytes(&folder).unwrap_or(0) + cache);
                if decoder { this.decoder(&folder) } else { this.encoder(&folder) }.map(Arc::new)
            };
            blocking(load).await
        };
        slot.get_or_try_init(load).await.cloned()
    }

    fn encoder(&self, folder: &Path) -> Result<Base, ServeError> {
        let (waiting, pool, dtype) = (self.inner.waiting.clone(), self.inner.pool.clone(), self.inner.config.serve.dtype.into());
        let weights = Arc::new(pool.install(|| ServedBase::load_as(folder, dtype))?);
        let batcher = Batcher::start(waiting, pool).map_err(|e| ServeError::Internal(e.to_string()))?;
        Ok(Base::Encoder { weights, batcher: Arc::new(batcher) })
    }

    fn decoder(&self, path: &Path) -> Result<Base, ServeError> {
        let (requests, pool, config) = (self.inner.requests.clone(), self.inner.pool.clone(), &self.inner.config);
        let model = Arc::new(pool.install(|| ServedDecoder::load(path))?);
        let template = match template_of(model.tokenizer()) {
            Ok(template) => template.map(|t| Ok(Arc::new(t))),
            Err(e) => Some(Err(e.to_string())),
        };
        let limits = EngineLimits {
            cache_bytes: usize::try_from(config.kv_cache_bytes()).unwrap_or(usize::MAX),
            max_sequences: config.budgets.generation_sequences,
            prefill_tokens: PREFILL_TOKENS,
        };
        let generator = Generator::start(model.clone(), limits, requests, pool).map_err(|e| ServeError::Internal(e.to_string()))?;
        let generator = Arc::new(generator);
        Ok(Base::Decoder(Language { model, adapter: None, generator, template, priors: Arc::default() }))
    }

    async fn pull(&self, name: &str) -> Result<PathBuf, ServeError> {
        let (hub, config, wanted) = (self.inner.hub.clone(), self.inner.config.clone(), name.to_owned());
        let allowed = blocking(move || Ok(hub.allowed(&wanted, allow(&config), config.model_dir.as_deref())?)).await?;
        Ok(self.inner.hub.pull(&allowed, |_| ()).await?.model_path())
    }

    /// Drops the models that were used least recently until the rest, with `coming` bytes that are about to be loaded, fits the
    /// budget. Where nothing is coming, the model that was just asked for stays.
    fn evict(&self, coming: u64) {
        let budget = self.inner.config.models_bytes().saturating_sub(coming);
        let stay = usize::from(coming == 0);
        let mut models = lock(&self.inner.models);
        if self.loaded_bytes(&models) > budget {
            // A base that was loaded for a look, or whose last model could not be made, goes first.
            self.drop_bases_without(&models);
        }
        while self.loaded_bytes(&models) > budget {
            let filled = models.iter().filter_map(|(n, s)| Some((s.get()?.last_use(), n.clone())));
            let mut by_use: Vec<_> = filled.collect();
            by_use.sort_unstable();
            let Some((_, oldest)) = by_use.first().filter(|_| by_use.len() > stay) else { break };
            tracing::info!(name = oldest, "evicted");
            models.remove(oldest);
            self.drop_bases_without(&models);
        }
        let bytes = self.loaded_bytes(&models);
        if stay == 1 && bytes > budget {
            tracing::warn!(bytes, budget, "the model that was asked for is larger than budgets.models_bytes, and stays alone");
        }
    }

    fn drop_unused_bases(&self) {
        let models = lock(&self.inner.models);
        self.drop_bases_without(&models);
    }

    fn drop_bases_without(&self, models: &HashMap<String, Slot<Loaded>>) {
        lock(&self.inner.bases).retain(|_, slot| {
            // Besides this map, only a load that has not ended holds them; a loaded model holds their parts.
            let is_being_loaded = Arc::strong_count(slot) > 1 || slot.get().is_some_and(|base| Arc::strong_count(base) > 1);
            let is_used = |base: &Base| models.values().filter_map(|s| s.get()).any(|m| m.stands_on(base));
            is_being_loaded || slot.get().is_some_and(|base| is_used(base))
        });
    }

    fn loaded_bytes(&self, models: &HashMap<String, Slot<Loaded>>) -> u64 {
        let own: usize = models.values().filter_map(|s| s.get()).map(|m| m.own_bytes()).sum();
        let shared: usize = lock(&self.inner.bases).values().filter_map(|s| s.get()).map(|b| b.bytes()).sum();
        (own + shared) as u64
    }
}

/// Which models a request may make the server download, in the hub's terms.
pub fn allow(config: &Config) -> AllowPull {
    match config.allow_pull {
        crate::config::AllowPull::None => AllowPull::None,
        crate::config::AllowPull::Catalogue => AllowPull::Catalogue,
        crate::config::AllowPull::Hub => AllowPull::Hub,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ServeError> + Send + 'static) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ServeError::Internal(e.to_string()))?
}
