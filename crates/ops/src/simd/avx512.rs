//! Sixteen lanes of AVX-512. `Avx512<true>` also has the bf16 unit; it differs from `Avx512<false>` in `dot_bf16` only.

use super::Simd;
use std::arch::x86_64::*;

/// The token of AVX-512 F, BW, DQ, VL, AVX2 and FMA, and with `BF16` of AVX-512 BF16.
#[derive(Debug, Clone, Copy)]
pub struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The processor must have the features that the token stands for.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Avx512(())
    }
}

/// A mask of the first `n` lanes, n at most 16.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

/// Calls an intrinsic that needs no more than the token.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: the token proves that the processor has the feature; the intrinsic reads no memory.
        unsafe { $call }
    };
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        op!(_mm512_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m512 {
        // SAFETY: the caller promises sixteen readable elements; the load has no alignment to keep.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: __m512, p: *mut f32) {
        // SAFETY: the caller promises sixteen writable elements; the store has no alignment to keep.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m512 {
        // SAFETY: the mask covers at most the slice's elements; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first(x.len().min(16)), x.as_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, y: &mut [f32]) {
        // SAFETY: the mask covers at most the slice's elements; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(y.as_mut_ptr(), first(y.len().min(16)), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        op!(_mm512_roundscale_ps::<0x08>(a))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes))
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        op!({
            let half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        op!({
            let half = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }
    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        op!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn float(self, a: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn to_int(self, a: __m512) -> __m512i {
        op!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    fn to_bytes(self, a: __m512, out: &mut [u8]) {
        let out = &mut out[..16];
        // SAFETY: the slice has sixteen bytes; the store has no alignment to keep.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(self.to_int(a))) }
    }
    #[inline(always)]
    fn isplat(self, v: u32) -> __m512i {
        op!(_mm512_set1_epi32(v as i32))
    }
    #[inline(always)]
    fn iota(self) -> __m512i {
        op!(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
    }
    #[inline(always)]
    fn iadd(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn imul(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn ixor(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn iand(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn ior(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn select_below(self, a: __m512i, b: __m512i, yes: __m512, no: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(_mm512_cmplt_epu32_mask(a, b), no, yes))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512i, b: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: `BF16` tokens stand for the bf16 unit; both types are 512 bits without a niche.
            unsafe { _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) }
        } else {
            let top = self.isplat(0xffff_0000);
            let acc = self.fma(self.float(self.shl::<16>(a)), self.float(self.shl::<16>(b)), acc);
            self.fma(self.float(self.iand(a, top)), self.float(self.iand(b, top)), acc)
        }
    }
    #[inline(always)]
    fn bf16_pairs(self, low: __m512, high: __m512) -> __m512i {
        if BF16 {
            // SAFETY: `BF16` tokens stand for the bf16 unit; both types are 256 bits without a niche.
            op!({
                let low = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(low)));
                let high = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(high)));
                _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
            })
        } else {
            super::bf16_pairs_with(self, low, high)
        }
    }
    #[inline(always)]
    fn bf16_adjacent(self, low: __m512, high: __m512) -> __m512i {
        if BF16 {
            // SAFETY: `BF16` tokens stand for the bf16 unit; both types are 512 bits without a niche.
            op!(std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)))
        } else {
            let even = self.shl::<1>(self.iota());
            let odd = self.iadd(even, self.isplat(1));
            op!(self.bf16_pairs(_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, src_ld: usize, dst: *mut f32, dst_ld: usize) {
        // Four steps, each exchanging blocks of half the size of the one before: 8, 4, 2 and 1 elements would be the text
        // book's order; going from 1 up to 8 lets the first two steps stay within 128-bit lanes.
        // SAFETY: the caller promises sixteen rows of sixteen elements at these strides on both sides.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(src.add(i * src_ld));
            }
            let mut t = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                r[4 * i] = _mm512_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm512_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm512_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm512_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
            }
            // r[4·i + j] now holds, in its four 128-bit lanes, columns j, j+4, j+8, j+12 of rows 4·i .. 4·i+4.
            for j in 0..4 {
                t[j] = _mm512_shuffle_f32x4::<0x88>(r[j], r[4 + j]);
                t[4 + j] = _mm512_shuffle_f32x4::<0xdd>(r[j], r[4 + j]);
                t[8 + j] = _mm512_shuffle_f32x4::<0x88>(r[8 + j], r[12 + j]);
                t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(r[8 + j], r[12 + j]);
            }
            for j in 0..8 {
                _mm512_storeu_ps(dst.add(j * dst_ld), _mm512_shuffle_f32x4::<0x88>(t[j], t[8 + j]));
            }
            for j in 0..8 {
                _mm512_storeu_ps(dst.add((8 + j) * dst_ld), _mm512_shuffle_f32x4::<0xdd>(t[j], t[8 + j]));
            }
        }
    }
}
