//! The thread pool that kernels run on. The trainer and the serving engines build one each and `install` their work on it.
//!
//! Its threads flush denormals to zero: gradients and moments decay towards them, and a denormal operand costs a hundred
//! cycles. The flag belongs to the thread, so a caller that also computes outside the pool calls [`flush_to_zero`] itself.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Builds a pool of `threads` threads (0 means one per core) whose arithmetic flushes denormals to zero. A pool of as many threads as there
/// are processors for it holds each thread on one of them: products wait for their slowest thread, and two on one processor take twice as
/// long. Smaller pools are left to the system, which knows where others run.
pub fn build_pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let processors = processors();
    let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let start = move |thread: usize| {
        flush_to_zero();
        if threads == processors.len() {
            stay_on(processors[thread]);
        }
    };
    ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("ops-{i}")).start_handler(start).build()
}

/// The processors that this thread may run on; none where the system does not tell.
#[cfg(target_os = "linux")]
fn processors() -> Vec<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let allowed = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()
}

#[cfg(not(target_os = "linux"))]
fn processors() -> Vec<usize> {
    Vec::new()
}

/// Holds the calling thread on a processor, where the system lets it.
#[cfg(target_os = "linux")]
fn stay_on(processor: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    // Without it the thread is slower where the system moves it, no more.
    let _refused = rustix::thread::sched_setaffinity(None, &set);
}

#[cfg(not(target_os = "linux"))]
fn stay_on(_: usize) {}

/// Lets the calling thread treat denormal operands and results as zero from now on.
#[cfg(target_arch = "x86_64")]
pub fn flush_to_zero() {
    const FLUSH_TO_ZERO: u32 = 1 << 15;
    const DENORMALS_ARE_ZERO: u32 = 1 << 6;
    let mut mxcsr: u32 = 0;
    // SAFETY: `stmxcsr` writes four bytes to a live, aligned local; SSE is part of x86-64.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
    mxcsr |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
    // SAFETY: `ldmxcsr` reads four bytes of a live local; only the two flush bits differ from the value just read, so no
    // exception is unmasked and the rounding mode stays.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags, readonly)) };
}

/// Lets the calling thread treat denormal operands and results as zero from now on.
#[cfg(target_arch = "aarch64")]
pub fn flush_to_zero() {
    const FLUSH_TO_ZERO: u64 = 1 << 24;
    let mut fpcr: u64;
    // SAFETY: reading FPCR has no effect on memory and is allowed in user mode.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
    fpcr |= FLUSH_TO_ZERO;
    // SAFETY: only the flush bit differs from the value just read; FPCR may be written in user mode.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) fpcr, options(nomem, nostack, preserves_flags)) };
}

/// Lets the calling thread treat denormal operands and results as zero: this processor has no such mode that we know of.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn flush_to_zero() {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::hint::black_box;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_for_each_processor_stays_on_it_and_fewer_are_free() {
        let all = processors();
        let pool = build_pool(all.len()).unwrap();
        let mut own: Vec<_> = pool.broadcast(|_| processors()).into_iter().flatten().collect();
        own.sort_unstable();
        assert_eq!(own, all);
        assert_eq!(build_pool(all.len() + 1).unwrap().broadcast(|_| processors()), vec![all.clone(); all.len() + 1]);
        assert_eq!(processors(), all, "the caller's own are left");
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn pool_threads_flush_denormals_and_the_caller_keeps_them() {
        let halve = || black_box(f32::MIN_POSITIVE) * black_box(0.5);
        let pool = build_pool(2).unwrap();
        assert!(pool.broadcast(|_| halve()).iter().all(|&v| v == 0.0));
        assert_ne!(halve(), 0.0);
    }
}
