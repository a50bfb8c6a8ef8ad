//! Four lanes of NEON, for aarch64.

use super::Simd;
use std::arch::aarch64::*;

/// The token of NEON.
#[derive(Debug, Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// # Safety
    /// The processor must have NEON.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Neon(())
    }
}

/// Calls an intrinsic that needs no more than the token.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: the token proves that the processor has the feature; the intrinsic reads no memory.
        unsafe { $call }
    };
}

impl Simd for Neon {
    const LANES: usize = 4;
    type F = float32x4_t;
    type I = uint32x4_t;

    #[inline(always)]
    fn splat(self, v: f32) -> float32x4_t {
        op!(vdupq_n_f32(v))
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller promises four readable elements.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: float32x4_t, p: *mut f32) {
        // SAFETY: the caller promises four writable elements.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> float32x4_t {
        let mut v = [0.0; 4];
        v[..x.len()].copy_from_slice(x);
        // SAFETY: the array has four elements.
        unsafe { vld1q_f32(v.as_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: float32x4_t, y: &mut [f32]) {
        let mut all = [0.0; 4];
        // SAFETY: the array has four elements.
        unsafe { vst1q_f32(all.as_mut_ptr(), v) };
        y.copy_from_slice(&all[..y.len()]);
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vminq_f32(a, b))
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        op!(vrndnq_f32(a))
    }
    #[inline(always)]
    fn select_lt(self, a: float32x4_t, b: float32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcltq_f32(a, b), yes, no))
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        op!(vaddvq_f32(a))
    }
    #[inline(always)]
    fn largest(self, a: float32x4_t) -> f32 {
        op!(vmaxvq_f32(a))
    }
    #[inline(always)]
    fn bits(self, a: float32x4_t) -> uint32x4_t {
        op!(vreinterpretq_u32_f32(a))
    }
    #[inline(always)]
    fn float(self, a: uint32x4_t) -> float32x4_t {
        op!(vreinterpretq_f32_u32(a))
    }
    #[inline(always)]
    fn to_int(self, a: float32x4_t) -> uint32x4_t {
        op!(vreinterpretq_u32_s32(vcvtnq_s32_f32(a)))
    }
    #[inline(always)]
    fn isplat(self, v: u32) -> uint32x4_t {
        op!(vdupq_n_u32(v))
    }
    #[inline(always)]
    fn iota(self) -> uint32x4_t {
        let lanes = [0u32, 1, 2, 3];
        // SAFETY: the array has four elements.
        unsafe { vld1q_u32(lanes.as_ptr()) }
    }
    #[inline(always)]
    fn iadd(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        op!(vaddq_u32(a, b))
    }
    #[inline(always)]
    fn imul(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        op!(vmulq_u32(a, b))
    }
    #[inline(always)]
    fn ixor(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        op!(veorq_u32(a, b))
    }
    #[inline(always)]
    fn iand(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        op!(vandq_u32(a, b))
    }
    #[inline(always)]
    fn ior(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        op!(vorrq_u32(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: uint32x4_t) -> uint32x4_t {
        op!(vshlq_u32(a, vdupq_n_s32(N as i32)))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: uint32x4_t) -> uint32x4_t {
        // A shift to the left by a negative number of bits.
        op!(vshlq_u32(a, vdupq_n_s32(-(N as i32))))
    }
    #[inline(always)]
    fn select_below(self, a: uint32x4_t, b: uint32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcltq_u32(a, b), yes, no))
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, src_ld: usize, dst: *mut f32, dst_ld: usize) {
        // SAFETY: the caller promises four rows of four elements at these strides on both sides.
        unsafe {
            let (r0, r1) = (vld1q_f32(src), vld1q_f32(src.add(src_ld)));
            let (r2, r3) = (vld1q_f32(src.add(2 * src_ld)), vld1q_f32(src.add(3 * src_ld)));
            let (a, b) = (vzip1q_f32(r0, r2), vzip2q_f32(r0, r2));
            let (c, d) = (vzip1q_f32(r1, r3), vzip2q_f32(r1, r3));
            vst1q_f32(dst, vzip1q_f32(a, c));
            vst1q_f32(dst.add(dst_ld), vzip2q_f32(a, c));
            vst1q_f32(dst.add(2 * dst_ld), vzip1q_f32(b, d));
            vst1q_f32(dst.add(3 * dst_ld), vzip2q_f32(b, d));
        }
    }
}
