//! What a model's name in a request means: a model or checkpoint of this server, an adapter from outside, or a base.

use tunesmith_store::{CheckpointLookup, ModelKind, Store, StoreError, split_checkpoint_name};

use super::registry::ServeError;

/// Where a classifier's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A whole model in the blob store.
    Whole {
        /// Its folder there.
        folder_key: String,
    },
    /// An adapter in the blob store, on a base.
    Adapter {
        /// Its folder there.
        folder_key: String,
        /// The base's name as it was requested.
        base: String,
        /// The base's revision in training.
        revision: Option<String>,
    },
    /// An adapter in a folder of this machine or of a hub, on a base.
    OutsideAdapter {
        /// `file:` below the model folder, or a hub id.
        source: String,
        /// The base's name.
        base: String,
    },
    /// No name of ours: perhaps a base with a classifier of its own.
    Base,
}

impl Place {
    /// What a failed load was about: the files, or that its model was deleted while they were read, when its name leads elsewhere.
    pub fn blame(&self, now: Result<Self, LocateError>, name: &str, failure: ServeError) -> ServeError {
        match now {
            Ok(place) if place == *self => failure,
            Ok(_) => StoreError::not_found(tunesmith_store::Kind::Model, name).into(),
            Err(gone @ (LocateError::Expired(_) | LocateError::Store(StoreError::NotFound { .. }))) => gone.into(),
            Err(LocateError::Store(_)) => failure,
        }
    }
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The checkpoint's files were removed to make room.
    #[error("the checkpoint {0:?} has expired: `training.save_total_limit` says how many are kept")]
    Expired(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Looks a name up; the hub is not asked.
///
/// # Errors
/// If the checkpoint has expired, or the store fails.
pub async fn locate(store: &Store, name: &str) -> Result<Place, LocateError> {
    if split_checkpoint_name(name).is_some() {
        return checkpoint(store, name).await;
    }
    match store.model(name).await {
        Ok(row) => {
            return Ok(match row.kind {
                ModelKind::Full => Place::Whole { folder_key: row.folder_key },
                ModelKind::Adapter => Place::Adapter { folder_key: row.folder_key, base: row.base_name, revision: row.base_revision },
            });
        }
        Err(StoreError::NotFound { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    match store.adapter(name).await {
        Ok(row) => Ok(match (row.folder_key, row.source) {
            (Some(folder_key), _) => Place::Adapter { folder_key, base: row.base_model, revision: None },
            (None, source) => Place::OutsideAdapter { source: source.unwrap_or_default(), base: row.base_model },
        }),
        // A name of our own form that is not here was deleted, or never was: no source to ask the hub for.
        Err(missing @ StoreError::NotFound { .. }) if name.starts_with("ft:") => Err(missing.into()),
        Err(StoreError::NotFound { .. }) => Ok(Place::Base),
        Err(other) => Err(other.into()),
    }
}

async fn checkpoint(store: &Store, name: &str) -> Result<Place, LocateError> {
    let row = match store.checkpoint_by_name(name).await? {
        CheckpointLookup::Found(row) => row,
        CheckpointLookup::Expired(_) => return Err(LocateError::Expired(name.to_owned())),
        CheckpointLookup::NotFound => return Err(StoreError::not_found(tunesmith_store::Kind::Model, name).into()),
    };
    let job = store.job(row.job_id).await?;
    let folder_key = format!("{}/model", row.folder_key);
    Ok(match job.spec["tuning"]["type"].as_str() {
        Some("lora") => Place::Adapter { folder_key, base: job.model, revision: None },
        _ => Place::Whole { folder_key },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_fails_since_its_model_was_deleted_says_that_there_is_none() {
        let place = Place::Adapter { folder_key: "models/a".into(), base: "b".into(), revision: None };
        let failure = || ServeError::Internal("a/adapter_config.json is missing".into());
        let missing = || LocateError::Store(StoreError::not_found(tunesmith_store::Kind::Model, "a"));
        let is_missing =
            |e: &ServeError| matches!(e, ServeError::Locate(e) if matches!(**e, LocateError::Store(StoreError::NotFound { .. })));
        assert!(is_missing(&place.blame(Err(missing()), "a", failure())));
        // An adapter's name that was unloaded may be a base's.
        assert!(is_missing(&place.blame(Ok(Place::Base), "a", failure())));
        let expired = place.blame(Err(LocateError::Expired("a".into())), "a", failure());
        assert!(matches!(expired, ServeError::Locate(e) if matches!(*e, LocateError::Expired(_))));
        // Broken files stay what they are, and a busy database says nothing.
        for now in [Ok(place.clone()), Err(LocateError::Store(StoreError::Busy))] {
            assert!(matches!(place.blame(now, "a", failure()), ServeError::Internal(_)));
        }
    }
}
