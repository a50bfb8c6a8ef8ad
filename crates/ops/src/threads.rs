//! The thread pool that kernels run on. The trainer and the serving engines build one each and `install` their work on it.
//!
//! Its threads flush denormals to zero: gradients and moments decay towards them, and a denormal operand costs a hundred
//! cycles. The flag belongs to the thread, so a caller that also computes outside the pool calls [`flush_to_zero`] itself.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// Builds a pool of `threads` threads (0 means one per core) whose arithmetic flushes denormals to zero.
pub fn build_pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("ops-{i}")).start_handler(|_| flush_to_zero()).build()
}

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
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn pool_threads_flush_denormals_and_the_caller_keeps_them() {
        let halve = || black_box(f32::MIN_POSITIVE) * black_box(0.5);
        let pool = build_pool(2).unwrap();
        assert!(pool.broadcast(|_| halve()).iter().all(|&v| v == 0.0));
        assert_ne!(halve(), 0.0);
    }
}
