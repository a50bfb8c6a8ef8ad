//! How many threads a job takes: all of them, and fewer while the server of this machine is busy.
//!
//! The rule was measured (see [`Seen::wanted`]). Results do not depend on the number of threads, so a job that gives some up trains the
//! same model.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use tunesmith_ops::load::{Load, LoadPage};

use crate::serve::load_page;

/// Over how long the server's load is averaged (an exponential average's time constant).
const MEMORY: Duration = Duration::from_secs(1);
/// A pass that has run for so long fills the time since, though it has not been added up.
const LONG_PASS: Duration = Duration::from_millis(500);
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
    load: Load,
    at: Instant,
    /// When a pass was last seen to begin.
    begun_at: Instant,
    /// The part of the time that passes filled lately, 0 to 1.
    busy: f64,
}

impl Share {
    /// Of a worker with `all` threads.
    pub fn new(data_dir: &Path, all: usize) -> Self {
        let page = load_page(data_dir).inspect_err(|error| tracing::debug!(%error, "the server's load cannot be read")).ok();
        let load = page.as_ref().map_or_else(Load::default, LoadPage::read);
        Self { page, all, fewer: None, seen: Seen::new(load, Instant::now()) }
    }

    /// The threads for the next micro-batch, where they are not all of them.
    pub fn pool(&mut self) -> Option<Arc<ThreadPool>> {
        let load = self.page.as_ref()?.read();
        let wanted = self.seen.wanted(load, self.all, Instant::now());
        if wanted == self.all {
            return None;
        }
        if self.fewer.as_ref().is_none_or(|pool| pool.current_num_threads() != wanted) {
            self.fewer = tunesmith_ops::threads::build_pool(wanted).map(Arc::new).ok();
        }
        self.fewer.clone()
    }
}

impl Seen {
    fn new(load: Load, now: Instant) -> Self {
        Self { load, at: now, begun_at: now, busy: 0.0 }
    }

    /// Half as large a part of the threads as the server's passes fill of the time is given up: half of them while it is always busy.
    ///
    /// Measured on two threads (`benches/beside.py`): at ten short requests a second giving up one halved the job's speed for a
    /// millisecond of latency; without a pause between requests it costs the job 15 % and the server answers 7 % more.
    fn wanted(&mut self, load: Load, all: usize, now: Instant) -> usize {
        if load.begun != self.load.begun {
            self.begun_at = now;
        }
        let time = (now - self.at).as_secs_f64();
        let runs = load.running > 0 && (LONG_PASS..LONGEST_PASS).contains(&(now - self.begun_at));
        let filled = if runs { 1.0 } else { load.taken.saturating_sub(self.load.taken).as_secs_f64() / time.max(1e-6) };
        self.busy += (filled.min(1.0) - self.busy) * (1.0 - (-time / MEMORY.as_secs_f64()).exp());
        (self.load, self.at) = (load, now);
        let given = (self.busy * all as f64 / 2.0).round() as usize;
        all.saturating_sub(given).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every tenth of a second of `tenths` while passes fill a part `busy` of the time.
    fn look(seen: &mut Seen, all: usize, busy: f64, start: Instant, tenths: std::ops::Range<u64>) -> usize {
        let mut wanted = all;
        for tenth in tenths {
            let load = Load { running: 0, begun: seen.load.begun + 1, taken: seen.load.taken + Duration::from_secs_f64(busy / 10.0) };
            wanted = seen.wanted(load, all, start + Duration::from_millis(100 * tenth));
        }
        wanted
    }

    #[test]
    fn threads_are_given_up_as_the_server_is_busy_and_taken_back_after() {
        let start = Instant::now();
        let mut seen = Seen::new(Load { running: 0, begun: 7, taken: Duration::from_secs(3) }, start);
        assert_eq!(look(&mut seen, 16, 0.0, start, 1..2), 16);
        // A light load leaves a small machine's job alone and costs a large one's little.
        assert_eq!(look(&mut seen, 16, 0.1, start, 2..60), 15);
        assert_eq!(look(&mut seen, 2, 0.1, start, 60..80), 2);
        assert_eq!(look(&mut seen, 16, 1.0, start, 80..140), 8);
        assert_eq!(look(&mut seen, 2, 1.0, start, 140..160), 1);
        assert_eq!(look(&mut seen, 1, 1.0, start, 160..180), 1);
        assert_eq!(look(&mut seen, 16, 0.0, start, 180..240), 16);
    }

    #[test]
    fn a_long_pass_counts_as_long_as_it_may_last() {
        let start = Instant::now();
        let mut seen = Seen::new(Load::default(), start);
        let load = Load { running: 1, begun: 1, taken: Duration::ZERO };
        let wanted: Vec<usize> = (1..80).map(|half| seen.wanted(load, 8, start + Duration::from_millis(500 * half))).collect();
        assert_eq!((wanted[0], wanted[9], wanted[50], wanted[75]), (8, 4, 4, 8), "{wanted:?}");
    }
}
