//! Vectors behind one trait: a kernel is written once, generic over [`Simd`], and compiled once per instruction set.
//!
//! A token (`Avx512`, `Avx2`, `Neon`, `Portable`) stands for an instruction set; holding one proves that the processor has
//! it, so the operations are safe to call. Kernels and everything that they call with vectors are `#[inline(always)]`, so that
//! they become part of the function with the right `target_feature` that [`dispatch!`] makes; closures that take vectors
//! are avoided for the same reason.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

/// [`Simd::bf16_pairs`] where no instruction rounds.
#[inline(always)]
fn bf16_pairs_with<S: Simd>(s: S, low: S::F, high: S::F) -> S::I {
    s.ior(s.shr::<16>(bf16_bits(s, low)), s.iand(bf16_bits(s, high), s.isplat(0xffff_0000)))
}

/// The bf16 nearest to each lane, in the lane's upper half; the lower half is left as it comes.
#[inline(always)]
fn bf16_bits<S: Simd>(s: S, v: S::F) -> S::I {
    let bits = s.bits(v);
    let odd = s.iand(s.shr::<16>(bits), s.isplat(1));
    let rounded = s.iadd(s.iadd(bits, s.isplat(0x7fff)), odd);
    // A NaN could round into infinity or zero; a quiet bit set in place keeps it a NaN.
    let magnitude = s.iand(bits, s.isplat(0x7fff_ffff));
    let quiet = s.float(s.ior(bits, s.isplat(0x0040_0000)));
    s.bits(s.select_below(s.isplat(0x7f80_0000), magnitude, quiet, s.float(rounded)))
}

/// Asks for the cache line at `p`, which may be any address. Without effect where Rust has no instruction for it.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of every x86-64 target, and a hint reads nothing that a program could see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// As [`prefetch`], for a line that is written next.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_to_write(p: *const f32) {
    // SAFETY: as in `prefetch`; a processor without this hint does nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(p.cast());
    }
}

/// Operations on vectors of f32 and of u32 with the same number of lanes.
pub trait Simd: Copy + Send + Sync {
    /// Lanes of a vector.
    const LANES: usize;
    /// A vector of f32.
    type F: Copy;
    /// A vector of u32.
    type I: Copy;

    /// The same value in every lane.
    fn splat(self, v: f32) -> Self::F;
    /// Reads the vector at `p`.
    ///
    /// # Safety
    /// `p` must be valid for reading `LANES` elements.
    unsafe fn load_ptr(self, p: *const f32) -> Self::F;
    /// Writes the vector at `p`.
    ///
    /// # Safety
    /// `p` must be valid for writing `LANES` elements.
    unsafe fn store_ptr(self, v: Self::F, p: *mut f32);
    /// Reads fewer than `LANES` elements; the other lanes are 0.
    fn load_partial(self, x: &[f32]) -> Self::F;
    /// Writes the first `y.len()` lanes, at most `LANES`.
    fn store_partial(self, v: Self::F, y: &mut [f32]);

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a − b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The smaller; where `b` is NaN, the result is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; where `b` is NaN, the result is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even. |a| must be below 2³¹.
    fn round(self, a: Self::F) -> Self::F;
    /// `yes` where `a < b`, else `no`.
    fn select_lt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// The sum of the lanes, in a fixed order.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane.
    fn largest(self, a: Self::F) -> f32;

    /// The bits of each lane.
    fn bits(self, a: Self::F) -> Self::I;
    /// The floats with these bits.
    fn float(self, a: Self::I) -> Self::F;
    /// Each lane, which holds an integer, as a two's complement integer.
    fn to_int(self, a: Self::F) -> Self::I;
    /// Each lane, which holds an integer from −128 to 127, as a byte, into the first `LANES` of `out`.
    #[inline(always)]
    fn to_bytes(self, a: Self::F, out: &mut [u8]) {
        let mut ints = [0.0; 16];
        self.store(self.float(self.to_int(a)), &mut ints);
        for (byte, int) in out[..Self::LANES].iter_mut().zip(ints) {
            *byte = int.to_bits() as u8;
        }
    }
    /// The same integer in every lane.
    fn isplat(self, v: u32) -> Self::I;
    /// 0, 1, 2, …
    fn iota(self) -> Self::I;
    /// Wrapping sum.
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I;
    /// Low 32 bits of the product.
    fn imul(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn ixor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn iand(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn ior(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift to the left.
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shift to the right, filling with zeros.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// `yes` where `a < b` as unsigned integers, else `no`.
    fn select_below(self, a: Self::I, b: Self::I, yes: Self::F, no: Self::F) -> Self::F;

    /// Transposes a `LANES` × `LANES` block: `dst[c · dst_ld + r] = src[r · src_ld + c]`. Rows of dst are written in order, so where
    /// they overlap, the later one stays.
    ///
    /// # Safety
    /// Both pointers must be valid for `LANES` rows of `LANES` elements at their stride, and must not overlap.
    unsafe fn transpose(self, src: *const f32, src_ld: usize, dst: *mut f32, dst_ld: usize);

    /// `acc + lo(a)·lo(b) + hi(a)·hi(b)`, where each 32-bit lane of a and b holds two bf16.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::I, b: Self::I) -> Self::F {
        let top = self.isplat(0xffff_0000);
        let acc = self.fma(self.float(self.shl::<16>(a)), self.float(self.shl::<16>(b)), acc);
        self.fma(self.float(self.iand(a, top)), self.float(self.iand(b, top)), acc)
    }

    /// Two numbers in each lane, rounded to bf16: `low` in its lower and `high` in its upper half. A unit for it, which multiplies
    /// subnormal numbers as zeros, rounds them to zero too.
    #[inline(always)]
    fn bf16_pairs(self, low: Self::F, high: Self::F) -> Self::I {
        bf16_pairs_with(self, low, high)
    }

    /// Two neighbours in each lane, rounded to bf16: elements 2i and 2i + 1 of `low` followed by `high`.
    #[inline(always)]
    fn bf16_adjacent(self, low: Self::F, high: Self::F) -> Self::I {
        let (mut all, mut even, mut odd) = ([0.0; 32], [0.0; 16], [0.0; 16]);
        self.store(low, &mut all);
        self.store(high, &mut all[Self::LANES..]);
        for ((pair, even), odd) in all.as_chunks::<2>().0.iter().zip(&mut even).zip(&mut odd) {
            [*even, *odd] = *pair;
        }
        self.bf16_pairs(self.load(&even), self.load(&odd))
    }

    /// Reads the first `LANES` elements.
    #[inline(always)]
    fn load(self, x: &[f32]) -> Self::F {
        assert!(x.len() >= Self::LANES);
        // SAFETY: the length was just checked.
        unsafe { self.load_ptr(x.as_ptr()) }
    }

    /// Writes the first `LANES` elements.
    #[inline(always)]
    fn store(self, v: Self::F, y: &mut [f32]) {
        assert!(y.len() >= Self::LANES);
        // SAFETY: the length was just checked.
        unsafe { self.store_ptr(v, y.as_mut_ptr()) }
    }

    /// Reads a vector, or what is left of a slice.
    #[inline(always)]
    fn load_some(self, x: &[f32]) -> Self::F {
        if x.len() >= Self::LANES { self.load(x) } else { self.load_partial(x) }
    }

    /// Writes a vector, or what a slice has room for.
    #[inline(always)]
    fn store_some(self, v: Self::F, y: &mut [f32]) {
        if y.len() >= Self::LANES { self.store(v, y) } else { self.store_partial(v, y) }
    }
}

/// Makes a function that runs a generic kernel with the best instruction set: `dispatch! { fn name(args) = kernel; }`, where
/// `kernel` is `#[inline(always)] fn kernel<S: Simd>(s: S, args)`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:path;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            match $crate::cpu::isa() {
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx512 => {
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                    #[allow(clippy::too_many_arguments)]
                    fn run(s: $crate::simd::Avx512<false>, $($arg: $ty),*) $(-> $ret)? {
                        $kernel(s, $($arg),*)
                    }
                    // SAFETY: `isa` found these features on this processor.
                    unsafe { run($crate::simd::Avx512::assume(), $($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx2 => {
                    #[target_feature(enable = "avx2,fma")]
                    #[allow(clippy::too_many_arguments)]
                    fn run(s: $crate::simd::Avx2, $($arg: $ty),*) $(-> $ret)? {
                        $kernel(s, $($arg),*)
                    }
                    // SAFETY: `isa` found these features on this processor.
                    unsafe { run($crate::simd::Avx2::assume(), $($arg),*) }
                }
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::Isa::Neon => {
                    #[target_feature(enable = "neon")]
                    #[allow(clippy::too_many_arguments)]
                    fn run(s: $crate::simd::Neon, $($arg: $ty),*) $(-> $ret)? {
                        $kernel(s, $($arg),*)
                    }
                    // SAFETY: NEON is part of every aarch64 target with a standard library.
                    unsafe { run($crate::simd::Neon::assume(), $($arg),*) }
                }
                _ => $kernel($crate::simd::Portable, $($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;

/// As [`dispatch!`], with the token of the bf16 unit where there is one.
macro_rules! dispatch_bf16 {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $kernel:path;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            if $crate::cpu::has_bf16() {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn run(s: $crate::simd::Avx512<true>, $($arg: $ty),*) $(-> $ret)? {
                    $kernel(s, $($arg),*)
                }
                // SAFETY: `has_bf16` found these features on this processor.
                return unsafe { run($crate::simd::Avx512::assume(), $($arg),*) };
            }
            $crate::simd::dispatch! {
                fn without($($arg: $ty),*) $(-> $ret)? = $kernel;
            }
            without($($arg),*)
        }
    };
}
pub(crate) use dispatch_bf16;
