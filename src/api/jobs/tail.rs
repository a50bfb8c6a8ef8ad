//! One look at the store for all open event streams.
//!
//! However many clients follow jobs, one task asks for the newest event's number, and the streams read their rows only
//! when it has grown. It rests while nobody listens.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tunesmith_store::Store;

/// Time between two looks. Workers write from other processes, so there is nothing to wait on but the store.
const EVERY: Duration = Duration::from_millis(200);

/// The number of the newest event, as it grows.
#[derive(Clone)]
pub struct Tail {
    newest: watch::Sender<i64>,
}

impl Tail {
    /// Begins to follow the store's events, until the shutdown.
    pub fn follow(store: Store, shutdown: CancellationToken) -> Self {
        let (newest, _) = watch::channel(0);
        let sender = newest.clone();
        tokio::spawn(async move {
            // Cancelling drops the question where it stands; there is nothing to finish.
            shutdown.run_until_cancelled(look(store, sender)).await;
        });
        Self { newest }
    }

    /// A receiver whose `changed` resolves when there is something new.
    pub fn listen(&self) -> watch::Receiver<i64> {
        self.newest.subscribe()
    }
}

async fn look(store: Store, newest: watch::Sender<i64>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if newest.is_closed() {
            continue;
        }
        match store.last_event_seq().await {
            Ok(seq) => {
                newest.send_if_modified(|last| {
                    let grew = *last != seq;
                    *last = seq;
                    grew
                });
            }
            Err(error) => tracing::warn!(%error, "event streams cannot look for news; trying again"),
        }
    }
}
