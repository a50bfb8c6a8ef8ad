//! Low-rank updates of a batch whose rows have one of their own each, as adapters that answer side by side.
//!
//! A single row's A is a short read and a chain of sums: memory and multiplier mostly wait. So some rows walk through theirs together,
//! and ask for their B on the way.

use super::pack::{MAX_LANES, Packed};
use super::{Epilogue, Precision, matmul, matmul_new};
use crate::simd::{Simd, dispatch, prefetch};
use rayon::prelude::*;

/// Rows that walk together.
const TOGETHER: usize = 4;

/// Rows and their low-rank update: `y += scale · (x · A) · B`.
pub struct Each<'a> {
    /// `[rows, k]`.
    pub x: &'a [f32],
    /// Gives r outputs of k inputs, in f32.
    pub a: &'a Packed,
    /// Gives n outputs of r inputs, in f32.
    pub b: &'a Packed,
    /// Factor.
    pub scale: f32,
    /// `[rows, n]`.
    pub y: &'a mut [f32],
}

/// Adds all updates, to the bits that two products for each give.
pub fn add_each(work: &mut [Each<'_>]) {
    for e in work.iter() {
        assert_eq!((e.b.k(), e.rows() * e.a.k(), e.rows() * e.b.n()), (e.a.n(), e.x.len(), e.y.len()), "add_each: shapes");
    }
    let at_once = work.len().div_ceil(rayon::current_num_threads()).clamp(1, TOGETHER);
    work.par_chunks_mut(at_once).for_each(|work| {
        if !walks_together(work) {
            return work.iter_mut().for_each(|e| e.add(&matmul_new(e.x, e.rows(), e.a, Epilogue::default())));
        }
        let mut sums = [[0.0; MAX_LANES]; TOGETHER];
        walk(work, &mut sums);
        for (e, sums) in work.iter_mut().zip(&sums) {
            e.add(&sums[..e.a.n()]);
        }
    });
}

impl Each<'_> {
    fn rows(&self) -> usize {
        self.y.len() / self.b.n().max(1)
    }

    fn add(&mut self, u: &[f32]) {
        matmul(u, self.rows(), self.b, self.y, Epilogue { scale: self.scale, accumulate: true, ..Epilogue::default() });
    }
}

/// Whether these are single rows of the same length whose A has one vector of outputs.
fn walks_together(work: &[Each<'_>]) -> bool {
    let (k, lanes) = (work[0].a.k(), work[0].a.lanes());
    work.iter().all(|Each { x, a, .. }| {
        (x.len(), a.k(), a.lanes(), a.precision()) == (k, k, lanes, Precision::F32) && (1..=lanes).contains(&a.n()) && !a.is_halves()
    })
}

dispatch! {
    /// `x · A` of each row.
    fn walk(work: &[Each<'_>], sums: &mut [[f32; MAX_LANES]; TOGETHER]) = walk_with;
}

#[inline(always)]
fn walk_with<S: Simd>(s: S, work: &[Each<'_>], sums: &mut [[f32; MAX_LANES]; TOGETHER]) {
    #[cfg(target_arch = "x86_64")]
    if (S::LANES, work[0].a.lanes()) == (16, 8) {
        // SAFETY: a processor with AVX-512 counts as such only if it has AVX2 too.
        return walk_lanes(unsafe { crate::simd::Avx2::assume() }, work, sums);
    }
    walk_lanes(s, work, sums);
}

#[inline(always)]
fn walk_lanes<S: Simd>(s: S, work: &[Each<'_>], sums: &mut [[f32; MAX_LANES]; TOGETHER]) {
    match work.len() {
        1 => walk_rows::<S, 1>(s, work, sums),
        2 => walk_rows::<S, 2>(s, work, sums),
        3 => walk_rows::<S, 3>(s, work, sums),
        _ => walk_rows::<S, TOGETHER>(s, work, sums),
    }
}

/// Sums one row's products in the sequence of a tile.
#[inline(always)]
fn walk_rows<S: Simd, const R: usize>(s: S, work: &[Each<'_>], sums: &mut [[f32; MAX_LANES]; TOGETHER]) {
    let k = work[0].a.k();
    let x: [&[f32]; R] = std::array::from_fn(|r| &work[r].x[..k]);
    let a: [&[f32]; R] = std::array::from_fn(|r| &work[r].a.data()[..k * S::LANES]);
    let b: [&[f32]; R] = std::array::from_fn(|r| work[r].b.data());
    let mut acc = [s.splat(0.0); R];
    for i in 0..k {
        for r in 0..R {
            acc[r] = s.fma(s.splat(x[r][i]), s.load(&a[r][i * S::LANES..]), acc[r]);
            // A line for every second step: most ranks and layers have asked for all of B then.
            if i % 2 == 0 && i * 8 < b[r].len() {
                prefetch(b[r].as_ptr().wrapping_add(i * 8));
            }
        }
    }
    for r in 0..R {
        s.store(acc[r], &mut sums[r]);
    }
}
