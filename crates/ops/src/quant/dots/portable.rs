//! Byte products in plain Rust.

use super::Dots;
use crate::simd::{Portable, Simd};
use half::f16;

type F = <Portable as Simd>::F;
type I = <Portable as Simd>::I;

/// `acc + Σ (code − centre) · x` over four bytes.
fn four(acc: u32, codes: u32, x: u32, centre: i32) -> u32 {
    let products = codes.to_le_bytes().into_iter().zip(x.to_le_bytes()).map(|(c, x)| (i32::from(c) - centre) * i32::from(x as i8));
    acc.wrapping_add(products.sum::<i32>() as u32)
}

impl Dots for Portable {
    type S = Portable;
    const ROWS: usize = 1;
    const BYTE_CENTRE: i32 = 0;

    #[inline(always)]
    fn simd(self) -> Portable {
        self
    }
    #[inline(always)]
    unsafe fn codes(self, p: *const u8) -> I {
        // SAFETY: the caller promises four bytes for each of four lanes; an array of bytes has no alignment to keep.
        let bytes = unsafe { p.cast::<[[u8; 4]; 4]>().read() };
        bytes.map(u32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> F {
        // SAFETY: the caller promises two bytes for each of four lanes.
        let bytes = unsafe { p.cast::<[[u8; 2]; 4]>().read() };
        bytes.map(|b| f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn unsigned(self, p: *const u8) -> F {
        // SAFETY: the caller promises a byte for each of four lanes.
        unsafe { p.cast::<[u8; 4]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn signed(self, p: *const u8) -> F {
        // SAFETY: the caller promises a byte for each of four lanes.
        unsafe { p.cast::<[i8; 4]>().read() }.map(f32::from)
    }
    #[inline(always)]
    fn number(self, a: I) -> F {
        a.map(|v| v as i32 as f32)
    }
    #[inline(always)]
    fn dot(self, acc: I, codes: I, x: I) -> I {
        std::array::from_fn(|i| four(acc[i], codes[i], x[i], 0))
    }
    #[inline(always)]
    fn dot_bytes(self, acc: I, codes: I, x: I) -> I {
        std::array::from_fn(|i| four(acc[i], codes[i], x[i], 128))
    }
}
