//! Byte products with NEON: widening products, since sums of four are no part of every aarch64 processor.

use super::Dots;
use crate::simd::{Neon, Simd};
use half::f16;
use std::arch::aarch64::*;

/// Calls an intrinsic that needs no more than the token.
macro_rules! op {
    ($call:expr) => {
        // SAFETY: the token proves that the processor has NEON; the intrinsic reads no memory.
        unsafe { $call }
    };
}

/// `acc + Σ code · x` over four bytes of each lane. Two products of at most 128 · 127 fit 16 bits.
#[inline(always)]
fn four(acc: uint32x4_t, codes: int8x16_t, x: uint32x4_t) -> uint32x4_t {
    op!({
        let x = vreinterpretq_s8_u32(x);
        let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
        let pairs = vpaddq_s16(low, vmull_high_s8(codes, x));
        vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(acc), pairs))
    })
}

impl Dots for Neon {
    type S = Neon;
    const ROWS: usize = 8;
    const BYTE_CENTRE: i32 = 0;

    #[inline(always)]
    fn simd(self) -> Neon {
        self
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> uint32x4_t {
        // SAFETY: the caller promises four bytes for each of four lanes.
        unsafe { vreinterpretq_u32_u8(vld1q_u8(p)) }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> float32x4_t {
        // SAFETY: the caller promises two bytes for each of four lanes.
        let bytes = unsafe { p.cast::<[[u8; 2]; 4]>().read() };
        self.load(&bytes.map(|b| f16::from_le_bytes(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn unsigned(self, p: *const u8) -> float32x4_t {
        // SAFETY: the caller promises a byte for each of four lanes.
        self.load(&unsafe { p.cast::<[u8; 4]>().read() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn signed(self, p: *const u8) -> float32x4_t {
        // SAFETY: the caller promises a byte for each of four lanes.
        self.load(&unsafe { p.cast::<[i8; 4]>().read() }.map(f32::from))
    }
    #[inline(always)]
    fn number(self, a: uint32x4_t) -> float32x4_t {
        op!(vcvtq_f32_s32(vreinterpretq_s32_u32(a)))
    }
    #[inline(always)]
    fn dot(self, acc: uint32x4_t, codes: uint32x4_t, x: uint32x4_t) -> uint32x4_t {
        four(acc, op!(vreinterpretq_s8_u32(codes)), x)
    }
    #[inline(always)]
    fn dot_bytes(self, acc: uint32x4_t, codes: uint32x4_t, x: uint32x4_t) -> uint32x4_t {
        four(acc, op!(vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(codes), vdupq_n_u8(0x80)))), x)
    }
}
