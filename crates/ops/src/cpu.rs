//! What this processor can do, found once. Every kernel asks here which instructions it may use.
//!
//! The environment variable `TUNESMITH_ISA` (`scalar`, `avx2`, `avx512`) lowers the answer, for tests and for comparing
//! results with an older machine; it never raises it. `avx512` means without a matrix unit. It is read here and nowhere else.

use std::sync::OnceLock;

/// An instruction set that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Portable Rust, four lanes at a time.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C, eight lanes.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, sixteen lanes.
    Avx512,
    /// aarch64 with NEON, four lanes.
    Neon,
}

impl Isa {
    /// The name used by `TUNESMITH_ISA`, by checkpoints and by `doctor`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }
}

/// What was found at the first call.
struct Detected {
    isa: Isa,
    bf16: bool,
    vnni: bool,
    amx: bool,
}

fn detected() -> &'static Detected {
    static DETECTED: OnceLock<Detected> = OnceLock::new();
    DETECTED.get_or_init(|| {
        let wish = std::env::var("TUNESMITH_ISA").ok();
        let best = best_isa();
        let found = lower(best, hardware_bf16(), wish.as_deref());
        // A lowered set stands for an older machine, which has none.
        let amx = found.bf16 && wish.as_deref() != Some("avx512") && permitted_amx();
        Detected { vnni: found.isa == best && hardware_vnni(best), amx, ..found }
    })
}

/// What `TUNESMITH_ISA` may be.
pub const LOWERED: [&str; 3] = ["scalar", "avx2", "avx512"];

/// Applies the wish of `TUNESMITH_ISA`, one of [`LOWERED`]: it may lower what the processor has, never raise it. Another word changes nothing.
fn lower(best: Isa, bf16: bool, wish: Option<&str>) -> Detected {
    let isa = match (wish, best) {
        (Some("scalar"), _) => Isa::Scalar,
        (Some("avx2"), Isa::Avx512) => Isa::Avx2,
        _ => best,
    };
    Detected { isa, bf16: bf16 && isa == Isa::Avx512, vnni: false, amx: false }
}

#[cfg(target_arch = "x86_64")]
fn best_isa() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    // An AVX-512 kernel may use AVX2.
    match (avx512, avx2) {
        (true, true) => Isa::Avx512,
        (_, true) => Isa::Avx2,
        _ => Isa::Scalar,
    }
}

#[cfg(target_arch = "aarch64")]
fn best_isa() -> Isa {
    // NEON is part of every aarch64 target that Rust's standard library supports.
    Isa::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best_isa() -> Isa {
    Isa::Scalar
}

#[cfg(target_arch = "x86_64")]
fn hardware_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn hardware_bf16() -> bool {
    false
}

/// Whether an instruction set's vectors have sums of four byte products on this processor: AVX-512 VNNI or AVX-VNNI.
#[cfg(target_arch = "x86_64")]
fn hardware_vnni(isa: Isa) -> bool {
    match isa {
        Isa::Avx512 => is_x86_feature_detected!("avx512vnni"),
        Isa::Avx2 => is_x86_feature_detected!("avxvnni"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn hardware_vnni(_: Isa) -> bool {
    false
}

/// Whether the processor has AMX-TILE and AMX-BF16 (Intel SDM, volume 2, CPUID leaf 7).
#[cfg(target_arch = "x86_64")]
fn hardware_amx() -> bool {
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx >> 22 & 1 == 1 && leaf.edx >> 24 & 1 == 1
}

/// Whether the processor has AMX and Linux lets this process use it. A process asks once, for all of its threads
/// (`Documentation/arch/x86/xstate.rst`).
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn permitted_amx() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    hardware_amx() && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) fn permitted_amx() -> bool {
    false
}

/// The instruction set that all kernels of this process use.
pub fn isa() -> Isa {
    detected().isa
}

/// Whether bf16 products run on a bf16 unit (AVX-512 BF16). Without one they are still correct, but slower than f32.
pub fn has_bf16() -> bool {
    detected().bf16
}

/// Whether sums of byte products are one instruction here (VNNI). They are exact either way, so results are the same.
pub fn has_vnni() -> bool {
    detected().vnni
}

/// Whether bf16 products run on a matrix unit (AMX). Its sums have other bits than those of AVX-512 BF16.
pub fn has_amx() -> bool {
    detected().amx
}

/// Whether attention follows when training computes in bf16. Where there is a matrix unit it does not: attention runs on vectors, and on the
/// processors that have such a unit vectors of bf16 are slower than of f32 (measured: 12 heads of 32, 4 × 512 tokens, 19 ms against 13).
pub fn bf16_attention() -> bool {
    !has_amx()
}

/// Whether bf16 products are faster than f32 products here, for `dtype: auto`.
///
/// With AMX they are. Having AVX-512 BF16 is not enough: on Intel's processors of 2023 its instruction runs at half the rate that would pay (measured:
/// 88 GF/s a core against 160 in f32), on AMD's since Zen 4 at twice the rate of f32. Decided by vendor, not by a measurement,
/// so that a job that is resumed on the same machine decides the same.
pub fn bf16_is_faster() -> bool {
    has_amx() || (has_bf16() && vendor_is_amd())
}

#[cfg(target_arch = "x86_64")]
fn vendor_is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn vendor_is_amd() -> bool {
    false
}

/// The name of the kernels in use, for example `avx512+bf16`. Checkpoints store it: two machines with the same name give
/// the same bits.
pub fn kernel_set() -> String {
    let suffix = match (has_amx(), has_bf16()) {
        (true, _) => "+amx",
        (false, true) => "+bf16",
        (false, false) => "",
    };
    format!("{}{suffix}", isa().name())
}

/// The processor's features that matter to the kernels, whether or not `TUNESMITH_ISA` lets them be used.
pub fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! note {
            ($($name:tt),*) => { $( if is_x86_feature_detected!($name) { found.push($name); } )* };
        }
        note!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avxvnni", "avx512bf16");
        if hardware_amx() {
            found.push("amx");
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        found.push("neon");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_lowers_the_instruction_set_and_never_raises_it() {
        assert_eq!(lower(Isa::Avx512, true, Some("avx2")).isa, Isa::Avx2);
        assert_eq!(lower(Isa::Avx512, true, Some("scalar")).isa, Isa::Scalar);
        assert_eq!(lower(Isa::Avx2, false, Some("avx512")).isa, Isa::Avx2);
        assert_eq!(lower(Isa::Scalar, false, Some("avx2")).isa, Isa::Scalar);
        assert_eq!(lower(Isa::Neon, false, Some("avx2")).isa, Isa::Neon);
        assert_eq!(lower(Isa::Avx512, true, None).isa, Isa::Avx512);
    }

    #[test]
    fn a_lowered_instruction_set_has_no_bf16_unit() {
        assert!(lower(Isa::Avx512, true, None).bf16);
        assert!(!lower(Isa::Avx512, true, Some("avx2")).bf16);
    }

    #[test]
    fn bf16_is_never_faster_without_its_unit() {
        assert!(has_bf16() || !bf16_is_faster());
    }

    #[test]
    fn the_kernel_set_names_the_instruction_set() {
        assert!(kernel_set().starts_with(isa().name()));
    }
}
