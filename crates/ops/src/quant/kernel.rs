//! The tile of quantised products: a few rows times a vector of outputs, held in registers while it walks along K.
//!
//! The driver calls it for every panel. Each row adds the same numbers in the same order however many rows the tile has: integers
//! within a group, which are exact, then one multiply-add a scale.

use super::dots::Dots;
use super::form::{GROUP, QuantKind, Scales, WIDTH};
use super::rows::Inputs;
use crate::simd::Simd;

/// The sums of `M` rows and the panel's outputs from `lane` on. `K` is the format's place in [`QuantKind::ALL`]; inputs `[k / 32, M]`.
#[inline(always)]
pub(super) fn tile<D: Dots, const K: usize, const M: usize>(d: D, panel: &[u8], lane: usize, inputs: &[Inputs]) -> [<D::S as Simd>::F; M] {
    let form = const { QuantKind::ALL[K].form() };
    let s = d.simd();
    assert!(lane + D::S::LANES <= WIDTH, "a panel has {WIDTH} outputs");
    let mut sums = [s.splat(0.0); M];
    let units = panel.chunks_exact(form.unit()).zip(inputs.chunks_exact(M * form.groups()));
    for (unit, inputs) in units {
        // SAFETY: a unit's head holds a half of each of the 16 outputs, twice with minima; lane + LANES is at most 16.
        let scale = unsafe { d.halves(unit.as_ptr().add(2 * lane)) };
        let minimum = if form.has_minimum() {
            // SAFETY: as above.
            unsafe { d.halves(unit.as_ptr().add(2 * (WIDTH + lane))) }
        } else {
            s.splat(0.0)
        };
        for (group, inputs) in unit[form.head()..].chunks_exact(form.group()).zip(inputs.as_chunks::<M>().0) {
            group_of::<D, K, M>(d, group, lane, scale, minimum, inputs, &mut sums);
        }
    }
    sums
}

#[inline(always)]
fn group_of<D: Dots, const K: usize, const M: usize>(
    d: D,
    group: &[u8],
    lane: usize,
    scale: <D::S as Simd>::F,
    minimum: <D::S as Simd>::F,
    inputs: &[Inputs; M],
    sums: &mut [<D::S as Simd>::F; M],
) {
    let form = const { QuantKind::ALL[K].form() };
    let s = d.simd();
    let codes = group[form.group_head()..].as_ptr();
    let (scales, low) = match form.scales {
        Scales::One => ([scale; 2], minimum),
        Scales::WithMinimum => ([scale; 2], minimum),
        Scales::Nested => {
            // SAFETY: a group's head holds two bytes of each of the 16 outputs; lane + LANES is at most 16.
            let (own, low) = unsafe { (d.unsigned(group.as_ptr().add(lane)), d.unsigned(group.as_ptr().add(WIDTH + lane))) };
            // Both products are exact: 11 bits times 6.
            ([s.mul(scale, own); 2], s.sub(s.splat(0.0), s.mul(minimum, low)))
        }
        Scales::NestedHalves => {
            // SAFETY: as above.
            let (first, second) = unsafe { (d.signed(group.as_ptr().add(lane)), d.signed(group.as_ptr().add(WIDTH + lane))) };
            ([s.mul(scale, first), s.mul(scale, second)], minimum)
        }
    };
    let mut ints = [s.isplat(0); M];
    for (int, inputs) in ints.iter_mut().zip(inputs) {
        *int = s.isplat(inputs.start[0]);
    }
    for (half, scale) in scales.into_iter().enumerate() {
        for i in 0..GROUP / 8 {
            let four = 4 * half + i;
            // SAFETY: a group holds the vectors of codes that its form has, each of four bytes for each of the 16 outputs.
            let codes = unsafe { codes_of::<D, K>(d, codes.add(4 * lane), four) };
            for (int, inputs) in ints.iter_mut().zip(inputs) {
                let x = s.isplat(inputs.codes[four]);
                *int = if form.bits == 8 { d.dot_bytes(*int, codes, x) } else { d.dot(*int, codes, x) };
            }
        }
        // The sum of the first half goes on into the second, unless each has its own scale.
        let halves = form.scales == Scales::NestedHalves;
        if half == 1 || halves {
            for ((sum, int), inputs) in sums.iter_mut().zip(&mut ints).zip(inputs) {
                let factor = s.mul(scale, s.splat(inputs.scale));
                *sum = s.fma(d.number(*int), factor, *sum);
                *int = s.isplat(inputs.start[1]);
            }
        }
    }
    if form.has_minimum() {
        for (sum, inputs) in sums.iter_mut().zip(inputs) {
            *sum = s.fma(low, s.splat(inputs.sum), *sum);
        }
    }
}

/// The codes of inputs 4 · four … 4 · four + 3 of a group.
///
/// # Safety
/// `p` must point at the group's codes, at the first lane that is read; see [`super::form::Form::group`] for what follows.
#[inline(always)]
unsafe fn codes_of<D: Dots, const K: usize>(d: D, p: *const u8, four: usize) -> <D::S as Simd>::I {
    const VECTOR: usize = 4 * WIDTH;
    let bits = const { QuantKind::ALL[K].form().bits };
    let s = d.simd();
    if bits == 8 {
        // SAFETY: eight vectors of bytes.
        return unsafe { d.codes(p.add(VECTOR * four)) };
    }
    // SAFETY: four vectors of four-bit codes.
    let both = unsafe { d.codes(p.add(VECTOR * (four % 4))) };
    let low = s.iand(if four < 4 { both } else { s.shr::<4>(both) }, s.isplat(0x0f0f_0f0f));
    match bits {
        5 => {
            // SAFETY: one vector of fifth bits follows.
            let upper = unsafe { d.codes(p.add(VECTOR * 4)) };
            let upper = match four {
                0 => s.shl::<4>(upper),
                1 => s.shl::<3>(upper),
                2 => s.shl::<2>(upper),
                3 => s.shl::<1>(upper),
                4 => upper,
                5 => s.shr::<1>(upper),
                6 => s.shr::<2>(upper),
                _ => s.shr::<3>(upper),
            };
            s.ior(low, s.iand(upper, s.isplat(0x1010_1010)))
        }
        6 => {
            // SAFETY: two vectors of upper bits follow.
            let upper = unsafe { d.codes(p.add(VECTOR * (4 + four / 4))) };
            let upper = match four % 4 {
                0 => s.shl::<4>(upper),
                1 => s.shl::<2>(upper),
                2 => upper,
                _ => s.shr::<2>(upper),
            };
            s.ior(low, s.iand(upper, s.isplat(0x3030_3030)))
        }
        _ => low,
    }
}
