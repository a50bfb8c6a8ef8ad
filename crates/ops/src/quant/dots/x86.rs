//! Byte products on x86-64: with VNNI one instruction, without it three.
//!
//! The few processors with AVX-512 and without VNNI run the AVX2 code, to the same bits: every lane is on its own.

use super::Dots;
use crate::simd::{Avx2, Avx512};
use std::arch::x86_64::*;

/// Calls an intrinsic that needs no more than the token.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: the token proves that the processor has the feature; the intrinsic reads no memory.
        unsafe { $call }
    };
}

/// Defines a token of 512-bit or 256-bit vectors and all but its products.
macro_rules! token {
    (
        $(#[$doc:meta])* $name:ident, $simd:ty, $int:ty, $float:ty, $rows:literal, $bytes:literal,
        $load:ident, $halves:expr, $unsigned:expr, $signed:expr, $number:ident, $dot:ident, $dot_bytes:ident
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(in crate::quant) struct $name(());

        impl $name {
            /// # Safety
            /// The processor must have the features that the token stands for.
            #[inline(always)]
            pub unsafe fn assume() -> Self {
                $name(())
            }
        }

        impl Dots for $name {
            type S = $simd;
            const ROWS: usize = $rows;
            const BYTE_CENTRE: i32 = $bytes;

            #[inline(always)]
            fn simd(self) -> $simd {
                // SAFETY: this token stands for more features than that one.
                unsafe { <$simd>::assume() }
            }
            #[inline(always)]
            unsafe fn codes(self, p: *const u8) -> $int {
                // SAFETY: the caller promises a vector's bytes; the load has no alignment to keep.
                unsafe { $load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn halves(self, p: *const u8) -> $float {
                // SAFETY: the caller promises two bytes a lane; the load has no alignment to keep.
                unsafe { $halves(p) }
            }
            #[inline(always)]
            unsafe fn unsigned(self, p: *const u8) -> $float {
                // SAFETY: the caller promises a byte a lane; the load has no alignment to keep.
                unsafe { $number($unsigned(p)) }
            }
            #[inline(always)]
            unsafe fn signed(self, p: *const u8) -> $float {
                // SAFETY: the caller promises a byte a lane; the load has no alignment to keep.
                unsafe { $number($signed(p)) }
            }
            #[inline(always)]
            fn number(self, a: $int) -> $float {
                op!($number(a))
            }
            #[inline(always)]
            fn dot(self, acc: $int, codes: $int, x: $int) -> $int {
                // SAFETY: the token proves the features of the function.
                unsafe { $dot(acc, codes, x) }
            }
            #[inline(always)]
            fn dot_bytes(self, acc: $int, codes: $int, x: $int) -> $int {
                // SAFETY: the token proves the features of the function.
                unsafe { $dot_bytes(acc, codes, x) }
            }
        }
    };
}

token!(
    /// The token of AVX-512 F, BW, DQ, VL and VNNI.
    Vnni512, Avx512<false>, __m512i, __m512, 8, 128, _mm512_loadu_si512,
    |p: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
    |p: *const u8| _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())),
    |p: *const u8| _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())),
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_dpbusd_epi32
);
token!(
    /// The token of AVX2, FMA, F16C and AVX-VNNI.
    Vnni256, Avx2, __m256i, __m256, 4, 128, _mm256_loadu_si256,
    |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
    |p: *const u8| _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())),
    |p: *const u8| _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())),
    _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_avx_epi32
);
token!(
    /// The token of AVX2, FMA and F16C.
    Wide256, Avx2, __m256i, __m256, 4, 0, _mm256_loadu_si256,
    |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
    |p: *const u8| _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())),
    |p: *const u8| _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())),
    _mm256_cvtepi32_ps, dot_256, dot_bytes_256
);

// Products of two neighbours are added in 16 bits, which saturate: 2 · 63 · 127 and, with the signs moved, 2 · 128 · 127 fit.

/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn dot_256(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    op!(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1))))
}

/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn dot_bytes_256(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    op!({
        let values = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_sign_epi8(x, values));
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `acc + Σ (code − centre) · x`.
    fn scalar(acc: i32, codes: [u8; 4], x: [i8; 4], centre: i32) -> i32 {
        acc + codes.iter().zip(x).map(|(c, x)| (i32::from(*c) - centre) * i32::from(x)).sum::<i32>()
    }

    /// Both products of a token, over bytes that reach the limits.
    fn check<D: Dots<S = Avx2>>(d: D)
    where
        D::S: crate::simd::Simd<I = __m256i>,
    {
        for round in 0..2000u32 {
            let byte = |at: u32| (round.wrapping_mul(2_654_435_761).wrapping_add(at.wrapping_mul(40_503)) >> 7) as u8;
            let pick = |at: u32, most: u8| if round.is_multiple_of(3) { [0, most][usize::from(byte(at) & 1)] } else { byte(at) & most };
            let codes = |most: u8| -> [[u8; 4]; 8] { std::array::from_fn(|l| std::array::from_fn(|b| pick((4 * l + b) as u32, most))) };
            let x: [[i8; 4]; 8] = std::array::from_fn(|l| {
                std::array::from_fn(|b| {
                    let v = byte(1000 + (4 * l + b) as u32) as i8;
                    if round.is_multiple_of(3) { [-127, 127][usize::from(v & 1 == 0)] } else { v.max(-127) }
                })
            });
            let acc: [i32; 8] = std::array::from_fn(|l| l as i32 * 1000 - 3000);
            // SAFETY: arrays of 32 bytes are read as vectors of 32 bytes.
            let vector = |p: *const u8| unsafe { _mm256_loadu_si256(p.cast()) };
            for (most, centre) in [(63, 0), (255, 128 - D::BYTE_CENTRE)] {
                let codes = codes(most);
                let (a, c, x_all) = (vector(acc.as_ptr().cast()), vector(codes.as_ptr().cast()), vector(x.as_ptr().cast()));
                let got = if most == 63 { d.dot(a, c, x_all) } else { d.dot_bytes(a, c, x_all) };
                // SAFETY: both are 256 bits without padding.
                let got: [i32; 8] = unsafe { std::mem::transmute::<__m256i, [i32; 8]>(got) };
                let expected: [i32; 8] = std::array::from_fn(|l| scalar(acc[l], codes[l], x[l], centre));
                assert_eq!(got, expected, "codes {codes:?}, x {x:?}");
            }
        }
    }

    #[test]
    fn sums_of_four_products_are_exact_with_and_without_vnni() {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // SAFETY: the features were just found.
            check(unsafe { Wide256::assume() });
            if is_x86_feature_detected!("avxvnni") {
                // SAFETY: the features were just found.
                check(unsafe { Vnni256::assume() });
            }
        }
    }
}
