//! Eight lanes of AVX2 with FMA, for x86-64 processors since about 2013.

use super::Simd;
use std::arch::x86_64::*;

/// The token of AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor must have AVX2, FMA and F16C.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Avx2(())
    }
}

/// Calls an intrinsic that needs no more than the token.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: the token proves that the processor has the feature; the intrinsic reads no memory.
        unsafe { $call }
    };
}

/// All bits of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __m256i {
    op!(_mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)))
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        op!(_mm256_set1_ps(v))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> __m256 {
        // SAFETY: the caller promises eight readable elements; the load has no alignment to keep.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: __m256, p: *mut f32) {
        // SAFETY: the caller promises eight writable elements; the store has no alignment to keep.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m256 {
        // SAFETY: the mask covers at most the slice's elements; masked lanes are not read.
        unsafe { _mm256_maskload_ps(x.as_ptr(), first(x.len().min(8))) }
    }
    #[inline(always)]
    fn store_partial(self, v: __m256, y: &mut [f32]) {
        // SAFETY: the mask covers at most the slice's elements; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(y.as_mut_ptr(), first(y.len().min(8)), v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        op!(_mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        op!({
            let half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }
    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        op!({
            let half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        })
    }
    #[inline(always)]
    fn bits(self, a: __m256) -> __m256i {
        op!(_mm256_castps_si256(a))
    }
    #[inline(always)]
    fn float(self, a: __m256i) -> __m256 {
        op!(_mm256_castsi256_ps(a))
    }
    #[inline(always)]
    fn to_int(self, a: __m256) -> __m256i {
        op!(_mm256_cvtps_epi32(a))
    }
    #[inline(always)]
    fn isplat(self, v: u32) -> __m256i {
        op!(_mm256_set1_epi32(v as i32))
    }
    #[inline(always)]
    fn iota(self) -> __m256i {
        op!(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }
    #[inline(always)]
    fn iadd(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn imul(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn ixor(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn iand(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn ior(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m256i) -> __m256i {
        op!(_mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m256i) -> __m256i {
        op!(_mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)))
    }
    #[inline(always)]
    fn select_below(self, a: __m256i, b: __m256i, yes: __m256, no: __m256) -> __m256 {
        // a ≥ b exactly where the larger of both is a; there is no unsigned comparison.
        op!({
            let not_below = _mm256_cmpeq_epi32(_mm256_max_epu32(a, b), a);
            _mm256_blendv_ps(yes, no, _mm256_castsi256_ps(not_below))
        })
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, src_ld: usize, dst: *mut f32, dst_ld: usize) {
        // SAFETY: the caller promises eight rows of eight elements at these strides on both sides.
        unsafe {
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(src.add(i * src_ld));
            }
            let mut t = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                r[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
            }
            for j in 0..4 {
                _mm256_storeu_ps(dst.add(j * dst_ld), _mm256_permute2f128_ps::<0x20>(r[j], r[4 + j]));
            }
            for j in 0..4 {
                _mm256_storeu_ps(dst.add((4 + j) * dst_ld), _mm256_permute2f128_ps::<0x31>(r[j], r[4 + j]));
            }
        }
    }
}
