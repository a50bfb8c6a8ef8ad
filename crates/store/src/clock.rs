//! Time as an input: wall time for rows, monotonic time for leases, both replaceable in tests.
//!
//! Called by everything that stamps a row or judges a lease. The one thing to know: wall time is
//! only ever shown, never compared between machines; whether a worker lives is judged by
//! [`Clock::monotonic`] alone.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a process takes its time from.
pub trait Clock: Send + Sync + 'static {
    /// Wall time in milliseconds since 1970. It may jump in both directions.
    fn now_ms(&self) -> i64;

    /// Time since some fixed moment of this process. It never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// Starts counting monotonic time now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        // A clock before 1970 or after the year 292277026 is a broken machine: such times show as
        // 0.
        SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(0)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that tests move by hand; its wall time can jump while its monotonic time goes on.
#[derive(Debug)]
pub struct TestClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicU64,
}

impl TestClock {
    /// Starts at the wall time given, with monotonic time zero.
    pub fn at(wall_ms: i64) -> Self {
        Self { wall_ms: AtomicI64::new(wall_ms), monotonic_ms: AtomicU64::new(0) }
    }

    /// Lets time pass: both clocks move forward.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
        self.wall_ms.fetch_add(i64::try_from(ms).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Moves the wall time alone, as a correction by NTP or by hand does; negative is backwards.
    pub fn jump_wall(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> i64 {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }
}
