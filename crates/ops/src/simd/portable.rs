//! Four lanes in plain Rust: the instruction set of processors for which no other is written, and of `TUNESMITH_ISA=scalar`.
//!
//! Compilers turn these arrays into SSE2 or the like. There is no fused multiply-add, since most such processors lack it.

use super::Simd;

/// The token of portable code; it needs no proof.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

const L: usize = 4;
type F = [f32; L];
type I = [u32; L];

#[inline(always)]
fn each(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn ieach(a: I, b: I, f: impl Fn(u32, u32) -> u32) -> I {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Portable {
    const LANES: usize = L;
    type F = F;
    type I = I;

    #[inline(always)]
    fn splat(self, v: f32) -> F {
        [v; L]
    }
    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> F {
        // SAFETY: the caller promises four readable elements; an array has the alignment of its element.
        unsafe { p.cast::<F>().read() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: F, p: *mut f32) {
        // SAFETY: the caller promises four writable elements; an array has the alignment of its element.
        unsafe { p.cast::<F>().write(v) }
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> F {
        let mut v = [0.0; L];
        v[..x.len()].copy_from_slice(x);
        v
    }
    #[inline(always)]
    fn store_partial(self, v: F, y: &mut [f32]) {
        y.copy_from_slice(&v[..y.len()]);
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        each(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        each(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        each(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        each(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        each(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        each(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        // Adding and subtracting 1.5 · 2²³ rounds |a| < 2²² to nearest even without a call into libm.
        each(a, a, |a, _| if a.abs() < 4_194_304.0 { (a + 12_582_912.0) - 12_582_912.0 } else { a.round_ties_even() })
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, yes: F, no: F) -> F {
        let pick = |i: usize| if a[i] < b[i] { yes[i] } else { no[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }
    #[inline(always)]
    fn sum(self, a: F) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn largest(self, a: F) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
    #[inline(always)]
    fn bits(self, a: F) -> I {
        [a[0].to_bits(), a[1].to_bits(), a[2].to_bits(), a[3].to_bits()]
    }
    #[inline(always)]
    fn float(self, a: I) -> F {
        [f32::from_bits(a[0]), f32::from_bits(a[1]), f32::from_bits(a[2]), f32::from_bits(a[3])]
    }
    #[inline(always)]
    fn to_int(self, a: F) -> I {
        [a[0] as i32 as u32, a[1] as i32 as u32, a[2] as i32 as u32, a[3] as i32 as u32]
    }
    #[inline(always)]
    fn isplat(self, v: u32) -> I {
        [v; L]
    }
    #[inline(always)]
    fn iota(self) -> I {
        [0, 1, 2, 3]
    }
    #[inline(always)]
    fn iadd(self, a: I, b: I) -> I {
        ieach(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    fn imul(self, a: I, b: I) -> I {
        ieach(a, b, u32::wrapping_mul)
    }
    #[inline(always)]
    fn ixor(self, a: I, b: I) -> I {
        ieach(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn iand(self, a: I, b: I) -> I {
        ieach(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn ior(self, a: I, b: I) -> I {
        ieach(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: I) -> I {
        ieach(a, a, |a, _| a << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I) -> I {
        ieach(a, a, |a, _| a >> N)
    }
    #[inline(always)]
    fn select_below(self, a: I, b: I, yes: F, no: F) -> F {
        let pick = |i: usize| if a[i] < b[i] { yes[i] } else { no[i] };
        [pick(0), pick(1), pick(2), pick(3)]
    }
    #[inline(always)]
    unsafe fn transpose(self, src: *const f32, src_ld: usize, dst: *mut f32, dst_ld: usize) {
        for c in 0..L {
            for r in 0..L {
                // SAFETY: the caller promises four rows of four elements at these strides on both sides.
                unsafe { *dst.add(c * dst_ld + r) = *src.add(r * src_ld + c) };
            }
        }
    }
}
