//! What every handler can reach: the configuration, the store, the hub and the sign that the server ends.
//!
//! Cloned for each request, so everything in it is cheap to clone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tunesmith_hub::Hub;
use tunesmith_store::Store;

use super::auth::Keys;
use super::jobs::tail::Tail;
use super::responses::Background;
use crate::config::Config;
use crate::serve::Registry;

/// The state behind the routes.
#[derive(Clone)]
pub struct AppState {
    /// The server's configuration.
    pub config: Arc<Config>,
    /// Rows and blobs.
    pub store: Store,
    /// Where base models come from.
    pub hub: Arc<Hub>,
    /// The models in memory.
    pub registry: Registry,
    /// The keys that clients may present.
    pub keys: Arc<Keys>,
    /// Turns for work that parses files or reads models' files: as many as there are cores.
    pub parsing: Arc<Semaphore>,
    /// Tells event streams that there is something new.
    pub tail: Tail,
    /// Responses that are made while nobody waits.
    pub background: Arc<Background>,
    /// Cancelled when the server begins to end; event streams stop on it.
    pub shutdown: CancellationToken,
    /// Cancelled when answers that are being written may go on no longer.
    pub last_words: CancellationToken,
}

/// How long answers may go on after the server was told to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

impl AppState {
    /// Puts the parts together. Must be called inside a runtime, since it starts to follow the events.
    pub fn new(config: Arc<Config>, store: Store, hub: Arc<Hub>, registry: Registry, shutdown: CancellationToken) -> Self {
        let (ending, last_words) = (shutdown.clone(), CancellationToken::new());
        let told = last_words.clone();
        // One clock for all answers: a wait that each began anew with its next token would never end.
        tokio::spawn(async move {
            ending.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
            told.cancel();
        });
        Self {
            registry,
            keys: Arc::new(Keys::new(&config.api_key)),
            parsing: Arc::new(Semaphore::new(crate::machine::cores())),
            background: Arc::default(),
            tail: Tail::follow(store.clone(), shutdown.clone()),
            config,
            store,
            hub,
            shutdown,
            last_words,
        }
    }
}
