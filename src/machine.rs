//! What this machine offers: memory, free disk, processor features, a Python.
//!
//! The memory budget, `doctor` and the memory estimates read it. Linux' files are asked first; where they do not exist the
//! answers are `None` or a cautious default, never an error.

use std::path::Path;

/// Bytes that this process may use: the smaller of the machine's memory and its control group's limit.
pub fn memory_limit() -> u64 {
    let machine = machine_memory();
    let group = group_limit();
    match (machine, group) {
        (Some(m), Some(g)) => m.min(g),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        // Elsewhere than on Linux: small enough for a laptop.
        (None, None) => 8 << 30,
    }
}

fn machine_memory() -> Option<u64> {
    meminfo("MemTotal:")
}

/// Bytes that could be allocated now without swapping.
pub fn memory_available() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Version 2 first, then version 1, whose "no limit" is a huge number.
fn group_limit() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
        .filter(|&bytes: &u64| bytes < 1 << 60)
}

/// The most memory in bytes that this process has had since [`reset_peak_memory`].
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Lets [`peak_memory`] begin anew, where the kernel allows it.
pub fn reset_peak_memory() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!(%error, "the peak of memory counts from the process's start");
    }
}

/// How often the kernel has killed a process of this control group, or of the machine, for want of memory.
pub fn memory_kills() -> u64 {
    ["/sys/fs/cgroup/memory.events", "/proc/vmstat"]
        .iter()
        .find_map(|path| {
            let text = std::fs::read_to_string(path).ok()?;
            let line = text.lines().find(|l| l.starts_with("oom_kill "))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}

/// Bytes that an unprivileged process may still write below `path`.
pub fn free_disk(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Processor features that the kernels look for, and whether each is there.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        vec![
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
            ("amx-tile", cpu_flag("amx_tile")),
            ("amx-bf16", cpu_flag("amx_bf16")),
            ("amx-int8", cpu_flag("amx_int8")),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![
            ("neon", true),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

/// AMX detection is not stable in `std`, so the kernel's own list is read.
#[cfg(target_arch = "x86_64")]
fn cpu_flag(name: &str) -> bool {
    std::fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.split_whitespace().any(|f| f == name)))
}

/// The processor's name as the system tells it.
pub fn cpu_name() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_limits_are_plausible() {
        assert!(memory_limit() > 64 << 20);
        assert!(cores() >= 1);
        assert!(!cpu_name().is_empty());
    }

    #[test]
    fn free_disk_is_known_for_a_folder_and_unknown_for_none() {
        assert!(free_disk(&std::env::temp_dir()).unwrap() > 0);
        assert_eq!(free_disk(Path::new("/no/such/folder")), None);
    }
}
