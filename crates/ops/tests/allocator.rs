//! Freed pages leave the process when they are told to.
#![cfg(target_os = "linux")]

use tunesmith_ops::allocator::return_freed_pages;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: usize = 1 << 20;

/// Resident memory in MiB.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| kib / 1024)
}

#[test]
fn freed_pages_go_back_and_held_ones_stay() {
    let held = vec![1u8; 64 * MIB];
    // As a model's tensors, which are of many sizes.
    drop((1..32).map(|i| vec![1u8; i * MIB]).collect::<Vec<_>>());
    return_freed_pages();
    let after = resident();
    assert!(after.is_some_and(|mib| (64..160).contains(&mib)), "{after:?} MiB");
    assert!(held.iter().all(|&byte| byte == 1));
}
