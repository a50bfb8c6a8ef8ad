//! How many threads a job takes: all of them, and fewer while the server of this machine is asked.
//!
//! The rule was measured (see [`Share::wanted`]). Results do not depend on the number of threads, so a job that gives some up trains
//! the same model.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use tunesmith_ops::load::{Load, LoadPage};

use crate::serve::load_page;

/// How long after a pass the server still counts as busy: requests of a client that asks one after another come closer together.
const HOLD: Duration = Duration::from_millis(500);
/// A pass that seems to run for longer belongs to a server that was killed.
const LONGEST_PASS: Duration = Duration::from_secs(30);

/// What one job trains on.
pub struct Share {
    page: Option<LoadPage>,
    all: usize,
    fewer: Option<Arc<ThreadPool>>,
    seen: Seen,
}

/// What was last seen of the server.
#[derive(Debug, Clone, Copy)]
struct Seen {
    begun: u64,
    /// When a pass was last seen to begin.
    at: Option<Instant>,
}

impl Share {
    /// Of a worker with `all` threads.
    pub fn new(data_dir: &Path, all: usize) -> Self {
        let page = load_page(data_dir).inspect_err(|error| tracing::debug!(%error, "the server's load cannot be read")).ok();
        let begun = page.as_ref().map_or(0, |page| page.read().begun);
        Self { page, all, fewer: None, seen: Seen { begun, at: None } }
    }

    /// The threads for the next micro-batch, where they are not all of them.
    pub fn pool(&mut self) -> Option<Arc<ThreadPool>> {
        let load = self.page.as_ref()?.read();
        let wanted = self.seen.wanted(load, self.all, Instant::now());
        if wanted == self.all {
            return None;
        }
        if self.fewer.is_none() {
            self.fewer = tunesmith_ops::threads::build_pool(wanted).map(Arc::new).ok();
        }
        self.fewer.clone()
    }
}

impl Seen {
    /// Half of the threads while the server is busy, at least one.
    fn wanted(&mut self, load: Load, all: usize, now: Instant) -> usize {
        if load.begun != self.begun {
            *self = Self { begun: load.begun, at: Some(now) };
        }
        let since = self.at.map_or(Duration::MAX, |at| now - at);
        let busy = since < HOLD || (load.running > 0 && since < LONGEST_PASS);
        if busy { (all / 2).max(1) } else { all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_given_up_while_the_server_is_asked_and_taken_back_after() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut seen = Seen { begun: 7, at: None };
        let load = |running, begun| Load { running, begun };
        assert_eq!(seen.wanted(load(0, 7), 8, start), 8);
        assert_eq!(seen.wanted(load(1, 8), 8, after(10)), 4);
        // Between two requests of one client.
        assert_eq!(seen.wanted(load(0, 8), 8, after(300)), 4);
        assert_eq!(seen.wanted(load(0, 8), 8, after(600)), 8);
        // A long pass counts as long as it may last, then it is a dead server's.
        assert_eq!(seen.wanted(load(1, 9), 1, after(700)), 1);
        assert_eq!(seen.wanted(load(1, 9), 8, after(9_000)), 4);
        assert_eq!(seen.wanted(load(1, 9), 8, after(40_000)), 8);
    }
}
