//! Slices of f32 to bf16 and back, rounding to nearest, ties to even. Packing, checkpoints and model files use it.

use crate::simd::{Simd, dispatch};
use half::bf16;

dispatch! {
    /// Rounds every element of `x` to bf16. A NaN stays a NaN.
    pub fn to_bf16(x: &[f32], y: &mut [bf16]) = to_bf16_with;
}

dispatch! {
    /// Widens every element of `x` to f32, exactly.
    pub fn from_bf16(x: &[bf16], y: &mut [f32]) = from_bf16_with;
}

// The two loops below hold no vectors by name: compiled with an instruction set's features they become vector code.

#[inline(always)]
fn to_bf16_with<S: Simd>(_: S, x: &[f32], y: &mut [bf16]) {
    assert_eq!(x.len(), y.len(), "to_bf16: input and output differ in length");
    for (y, x) in y.iter_mut().zip(x) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let quiet = bits | 0x0040_0000;
        let kept = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded };
        *y = bf16::from_bits((kept >> 16) as u16);
    }
}

#[inline(always)]
fn from_bf16_with<S: Simd>(_: S, x: &[bf16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "from_bf16: input and output differ in length");
    for (y, x) in y.iter_mut().zip(x) {
        *y = f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}
