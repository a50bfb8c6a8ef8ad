//! The micro-kernel: a few rows times a few vectors of outputs, held in registers while it walks along K.
//!
//! Attention calls it through [`Kernels`], the drivers of products through [`Tiles`], where a matrix unit may stand in its place. Every
//! shape of tile runs the same multiply-adds per output element in the same sequence, which is what makes a row's bits independent of
//! its neighbours.

// Rows and vectors are counted, since they index several arrays and pointers at once and every loop must unroll.
#![allow(clippy::needless_range_loop)]

use crate::simd::Simd;

/// How a tile reads its operands: a number, since that may stand among const generics.
pub(crate) type Mode = u8;
/// f32 on both sides.
pub(crate) const FULL: Mode = 0;
/// Pairs of bf16 on both sides, multiplied by the processor's unit for them.
pub(crate) const PAIRS: Mode = 1;
/// f32 on the left; on the right bf16 of two columns in a word, which become f32 on the way, to the bits of [`FULL`].
pub(crate) const HALVES: Mode = 2;

/// Where a tile's operands are and what becomes of its sums.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Steps along K (for bf16: pairs).
    pub k: usize,
    /// Element (row 0, step 0) of the left side.
    pub a: *const f32,
    /// Elements from one row to the next.
    pub a_row: usize,
    /// Elements from one step to the next.
    pub a_step: usize,
    /// Element (step 0, column 0) of the right side; columns are adjacent.
    pub b: *const f32,
    /// Elements from one step to the next.
    pub b_step: usize,
    /// Element (row 0, column 0) of the result.
    pub c: *mut f32,
    /// Elements from one row to the next.
    pub c_row: usize,
    /// Columns to store; the others are padding of b.
    pub cols: usize,
    /// What the sums begin with.
    pub start: Start,
    /// What is done with them.
    pub finish: Finish,
}

/// What a tile's sums begin with.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Zero: the first block of K.
    Zero,
    /// What the block of K before left: full vectors, row after row.
    Spilled(*const f32),
}

/// What is done with a tile's sums.
#[derive(Clone, Copy)]
pub(crate) enum Finish {
    /// Kept for the next block of K: full vectors, row after row.
    Spill(*mut f32),
    /// `c = sums · scale (+ bias) (+ c)`; bias is null or points at column 0.
    Store { scale: f32, bias: *const f32, accumulate: bool },
}

/// The tiles of one instruction set.
pub(crate) trait Kernels: Simd {
    /// Most rows of a tile.
    const MR: usize;

    /// Runs the tile of `M` rows and `N` vectors.
    ///
    /// # Safety
    /// See [`run_tile`].
    unsafe fn tile<const M: usize, const N: usize, const MODE: Mode>(self, tile: &Tile);
}

/// What a driver of products knows of the tiles that it calls.
pub(super) trait Tiles: Copy + Send + Sync {
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a panel's vector.
    const LANES: usize;
    /// Steps along K that are read at a time. If more than one, the left side is packed by `pack_rows`: rows beyond the last may hold
    /// anything, steps beyond the last hold zeros. [`Tile::a_row`] is then a row's elements, of which 16 rows lie together, and
    /// [`Tile::a_step`] is this number.
    const STEPS: usize;
    /// Steps of K that a tile walks at a time: so much of both sides stays in the caches.
    const SLICE: usize;

    /// Runs a tile of any number of rows up to `MR` and one or two vectors.
    ///
    /// # Safety
    /// See [`run_tile`] and [`Tiles::STEPS`]; rows must be in 1 ..= MR and vectors in 1 ..= 2.
    unsafe fn run<const MODE: Mode>(self, rows: usize, vectors: usize, tile: &Tile);
}

impl<S: Kernels> Tiles for S {
    const MR: usize = <S as Kernels>::MR;
    const LANES: usize = <S as Simd>::LANES;
    const STEPS: usize = 1;
    // A panel's slice (AVX-512: 256 × 32 × 4 bytes) fits the first-level cache.
    const SLICE: usize = 256;

    #[inline(always)]
    unsafe fn run<const MODE: Mode>(self, rows: usize, vectors: usize, t: &Tile) {
        // SAFETY: passed on to the caller.
        unsafe { tile::<S, MODE>(self, rows, vectors, t) }
    }
}

/// The generic micro-kernel.
///
/// # Safety
/// With L lanes: a must be readable at every (row < M, step < k), b for N·L columns of every step (L words with [`HALVES`]), a spill area for M·N·L
/// elements; c must be writable (and readable if it accumulates) for M rows of `cols` columns, bias readable for `cols`. Nothing
/// else may write these during the call.
#[inline(always)]
pub(super) unsafe fn run_tile<S: Simd, const M: usize, const N: usize, const MODE: Mode>(s: S, t: &Tile) {
    let lanes = S::LANES;
    let mut acc = [[s.splat(0.0); N]; M];
    if let Start::Spilled(from) = t.start {
        for r in 0..M {
            for v in 0..N {
                // SAFETY: the spill area holds M·N·L elements.
                acc[r][v] = unsafe { s.load_ptr(from.add((r * N + v) * lanes)) };
            }
        }
    }
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.k {
        let mut right = [s.splat(0.0); N];
        if MODE == HALVES {
            // SAFETY: b has L words at every step below k.
            let words = s.bits(unsafe { s.load_ptr(b) });
            right[0] = s.float(s.shl::<16>(words));
            if N > 1 {
                right[N - 1] = s.float(s.iand(words, s.isplat(0xffff_0000)));
            }
        } else {
            for v in 0..N {
                // SAFETY: b has N·L columns at every step below k.
                right[v] = unsafe { s.load_ptr(b.add(v * lanes)) };
            }
        }
        for r in 0..M {
            // SAFETY: a has row r at every step below k.
            let left = unsafe { *a.add(r * t.a_row) };
            if MODE == PAIRS {
                let left = s.isplat(left.to_bits());
                for v in 0..N {
                    acc[r][v] = s.dot_bf16(acc[r][v], left, s.bits(right[v]));
                }
            } else {
                let left = s.splat(left);
                for v in 0..N {
                    acc[r][v] = s.fma(left, right[v], acc[r][v]);
                }
            }
        }
        a = a.wrapping_add(t.a_step);
        b = b.wrapping_add(t.b_step);
    }
    match t.finish {
        Finish::Spill(to) => {
            for r in 0..M {
                for v in 0..N {
                    // SAFETY: the spill area holds M·N·L elements.
                    unsafe { s.store_ptr(acc[r][v], to.add((r * N + v) * lanes)) };
                }
            }
        }
        Finish::Store { scale, bias, accumulate } => {
            if t.cols == N * lanes {
                let factor = s.splat(scale);
                for row in &mut acc {
                    for value in row {
                        *value = s.mul(*value, factor);
                    }
                }
                // SAFETY: passed on to the caller; every column is stored.
                unsafe { store_full(s, t, &mut acc, bias, accumulate) };
            } else {
                // The sums leave the registers here as a whole: an array of them that a loop walks with a bound known only at run
                // time would be kept in memory from its first use on.
                let mut sums = [0.0f32; MAX_TILE];
                for r in 0..M {
                    for v in 0..N {
                        s.store(acc[r][v], &mut sums[(r * N + v) * lanes..]);
                    }
                }
                // SAFETY: passed on to the caller.
                unsafe { store_part(s, t, t.finish, M, N, &sums) };
            }
        }
    }
}

/// Elements of the largest tile: 12 rows of 2 vectors of 16 lanes.
const MAX_TILE: usize = 12 * 2 * 16;

/// Adds bias and c and stores, all columns.
///
/// # Safety
/// As [`run_tile`], with `cols` = N·L.
#[inline(always)]
unsafe fn store_full<S: Simd, const M: usize, const N: usize>(
    s: S,
    t: &Tile,
    acc: &mut [[S::F; N]; M],
    bias: *const f32,
    accumulate: bool,
) {
    let lanes = S::LANES;
    if !bias.is_null() {
        for v in 0..N {
            // SAFETY: bias has N·L elements.
            let bias = unsafe { s.load_ptr(bias.add(v * lanes)) };
            for row in acc.iter_mut() {
                row[v] = s.add(row[v], bias);
            }
        }
    }
    if accumulate {
        for r in 0..M {
            for v in 0..N {
                // SAFETY: every row of c has N·L elements.
                acc[r][v] = s.add(acc[r][v], unsafe { s.load_ptr(t.c.add(r * t.c_row + v * lanes)) });
            }
        }
    }
    for r in 0..M {
        for v in 0..N {
            // SAFETY: every row of c has N·L elements, and no one else has them now.
            unsafe { s.store_ptr(acc[r][v], t.c.add(r * t.c_row + v * lanes)) };
        }
    }
}

/// Ends sums that lie in memory, row after row, as `finish` says, where the tile has columns of padding or its sums were never in vectors.
///
/// # Safety
/// As [`run_tile`].
#[inline(always)]
pub(super) unsafe fn store_part<S: Simd>(s: S, t: &Tile, finish: Finish, rows: usize, vectors: usize, sums: &[f32]) {
    let Finish::Store { scale, bias, accumulate } = finish else { return };
    let (lanes, factor) = (S::LANES, s.splat(scale));
    for from in (0..t.cols).step_by(lanes) {
        let width = (t.cols - from).min(lanes);
        for r in 0..rows {
            let mut value = s.mul(s.load(&sums[r * vectors * lanes + from..]), factor);
            // SAFETY: bias and every row of c have `cols` elements, of which from .. from + width are a part, and no one else has
            // these of c now.
            let c = unsafe {
                if !bias.is_null() {
                    value = s.add(value, s.load_some(std::slice::from_raw_parts(bias.add(from), width)));
                }
                std::slice::from_raw_parts_mut(t.c.add(r * t.c_row + from), width)
            };
            if accumulate {
                value = s.add(value, s.load_some(c));
            }
            s.store_some(value, c);
        }
    }
}

/// Implements [`Kernels`] for an instruction set: one function per tile shape, compiled with its features.
macro_rules! kernels {
    ($(#[$cfg:meta])* $token:ty, $rows:expr, $features:literal) => {
        $(#[$cfg])*
        impl Kernels for $token {
            const MR: usize = $rows;

            #[inline(always)]
            unsafe fn tile<const M: usize, const N: usize, const MODE: Mode>(self, tile: &Tile) {
                #[target_feature(enable = $features)]
                unsafe fn run<const M: usize, const N: usize, const MODE: Mode>(s: $token, tile: &Tile) {
                    // SAFETY: passed on to the caller.
                    unsafe { run_tile::<$token, M, N, MODE>(s, tile) }
                }
                // SAFETY: the token proves the features; the rest is passed on to the caller.
                unsafe { run::<M, N, MODE>(self, tile) }
            }
        }
    };
}

kernels!(
    #[cfg(target_arch = "x86_64")]
    crate::simd::Avx512<true>, 12, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"
);
kernels!(
    #[cfg(target_arch = "x86_64")]
    crate::simd::Avx512<false>, 12, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
);
kernels!(
    #[cfg(target_arch = "x86_64")]
    crate::simd::Avx2,
    6,
    "avx2,fma"
);
kernels!(
    #[cfg(target_arch = "aarch64")]
    crate::simd::Neon,
    8,
    "neon"
);

impl Kernels for crate::simd::Portable {
    const MR: usize = 4;

    #[inline(always)]
    unsafe fn tile<const M: usize, const N: usize, const MODE: Mode>(self, tile: &Tile) {
        // SAFETY: passed on to the caller.
        unsafe { run_tile::<Self, M, N, MODE>(self, tile) }
    }
}

/// Runs a tile of any number of rows up to `MR` and one or two vectors.
///
/// # Safety
/// See [`run_tile`]; rows must be in 1 ..= MR and vectors in 1 ..= 2.
#[inline(always)]
pub(crate) unsafe fn tile<S: Kernels, const MODE: Mode>(s: S, rows: usize, vectors: usize, t: &Tile) {
    macro_rules! pick {
        ($($m:literal)*) => {
            match (rows, vectors) {
                // The test is known at compile time: shapes above an instruction set's MR are never compiled.
                $(
                    // SAFETY: passed on to the caller.
                    ($m, 1) if const { $m <= S::MR } => unsafe { s.tile::<$m, 1, MODE>(t) },
                    // SAFETY: passed on to the caller.
                    ($m, 2) if const { $m <= S::MR } => unsafe { s.tile::<$m, 2, MODE>(t) },
                )*
                _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
            }
        };
    }
    pick!(1 2 3 4 5 6 7 8 9 10 11 12)
}
