//! Sums of byte products per instruction set. The kernel of quantised products is generic over [`Dots`].
//!
//! Codes are unsigned and activations signed, as VNNI wants them. All sums are exact, so how an instruction set adds them up is its own affair.

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Vnni256, Vnni512, Wide256};

use crate::simd::Simd;

/// Integer operations of a token that stands for an instruction set, beside the vectors of `S`.
pub(super) trait Dots: Copy + Send + Sync {
    /// The vectors.
    type S: Simd;
    /// Most rows of a tile: their sums stay in registers.
    const ROWS: usize;
    /// What [`Dots::dot_bytes`] leaves of the centre of 128 that eight-bit codes have.
    const BYTE_CENTRE: i32;

    /// The token of the vectors.
    fn simd(self) -> Self::S;
    /// Four codes of each output.
    ///
    /// # Safety
    /// `p` must be valid for reading four bytes a lane.
    unsafe fn codes(self, p: *const u8) -> <Self::S as Simd>::I;
    /// Widens half-precision numbers, which must be finite.
    ///
    /// # Safety
    /// `p` must be valid for reading two bytes a lane.
    unsafe fn halves(self, p: *const u8) -> <Self::S as Simd>::F;
    /// Unsigned bytes as numbers.
    ///
    /// # Safety
    /// `p` must be valid for reading a byte a lane.
    unsafe fn unsigned(self, p: *const u8) -> <Self::S as Simd>::F;
    /// Signed bytes as numbers.
    ///
    /// # Safety
    /// `p` must be valid for reading a byte a lane.
    unsafe fn signed(self, p: *const u8) -> <Self::S as Simd>::F;
    /// Two's complement integers as numbers.
    fn number(self, a: <Self::S as Simd>::I) -> <Self::S as Simd>::F;
    /// `acc + Σ code · x` over the four bytes of each lane; codes are at most 63.
    fn dot(self, acc: <Self::S as Simd>::I, codes: <Self::S as Simd>::I, x: <Self::S as Simd>::I) -> <Self::S as Simd>::I;
    /// `acc + Σ (code − 128 + BYTE_CENTRE) · x` over the four bytes of each lane; x is not −128.
    fn dot_bytes(self, acc: <Self::S as Simd>::I, codes: <Self::S as Simd>::I, x: <Self::S as Simd>::I) -> <Self::S as Simd>::I;
}

/// Makes a function that runs a generic kernel with the best instruction set, as `simd::dispatch!` does:
/// `dispatch_dots! { fn name(args) = kernel; }` with `#[inline(always)] fn kernel<D: Dots>(d: D, args)`.
macro_rules! dispatch_dots {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:path;) => {
        $(#[$meta])*
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            macro_rules! run {
                ($token:ident, $features:literal) => {{
                    #[target_feature(enable = $features)]
                    fn run(d: $crate::quant::dots::$token, $($arg: $ty),*) $(-> $ret)? {
                        $kernel(d, $($arg),*)
                    }
                    // SAFETY: `isa` and `has_vnni` found these features on this processor.
                    unsafe { run($crate::quant::dots::$token::assume(), $($arg),*) }
                }};
            }
            match ($crate::cpu::isa(), $crate::cpu::has_vnni()) {
                #[cfg(target_arch = "x86_64")]
                ($crate::cpu::Isa::Avx512, true) => run!(Vnni512, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"),
                #[cfg(target_arch = "x86_64")]
                ($crate::cpu::Isa::Avx2, true) => run!(Vnni256, "avx2,fma,f16c,avxvnni"),
                #[cfg(target_arch = "x86_64")]
                ($crate::cpu::Isa::Avx2 | $crate::cpu::Isa::Avx512, false) => run!(Wide256, "avx2,fma,f16c"),
                #[cfg(target_arch = "aarch64")]
                ($crate::cpu::Isa::Neon, _) => {
                    #[target_feature(enable = "neon")]
                    fn run(d: $crate::simd::Neon, $($arg: $ty),*) $(-> $ret)? {
                        $kernel(d, $($arg),*)
                    }
                    // SAFETY: NEON is part of every aarch64 target with a standard library.
                    unsafe { run($crate::simd::Neon::assume(), $($arg),*) }
                }
                _ => $kernel($crate::simd::Portable, $($arg),*),
            }
        }
    };
}
pub(super) use dispatch_dots;
