//! Products of bf16 on AMX, Intel's matrix unit: 16 × 16 sums and 32 inputs an instruction (Intel SDM, volume 1, chapter 18).
//!
//! A tile of a product is up to 2 × 2 of the unit's tiles. Panels of weights lie as the unit reads its right side already; the left
//! side is packed row after row for it ([`Tiles::STEPS`]). Rows of a tile never meet, so a row has the same bits wherever it stands.
//! Where the unit is missing, the tests run the same instructions through an interpreter.

#[cfg(test)]
mod interpreter;
#[cfg(test)]
mod tests;

use super::pack::{PANEL_VECTORS, UNIT};
use super::tile::{FULL, Finish, Kernels, Mode, PAIRS, Start, Tile, Tiles, store_part, tile};
use crate::simd::{Avx512, Simd, dispatch, prefetch_to_write};
use std::arch::asm;
use std::cell::Cell;
use std::mem::MaybeUninit;

/// The token of AMX-TILE and AMX-BF16, for a process that may use them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Amx(());

/// Rows of a tile of the unit, and f32 of its rows.
const SIDE: usize = UNIT;
/// Rows of a product's tile.
const ROWS: usize = 2 * SIDE;
/// f32 in a row of a product's tile.
const COLUMNS: usize = PANEL_VECTORS * SIDE;

impl Amx {
    /// # Safety
    /// The processor must have the features, and the process the system's permission to use them.
    pub unsafe fn assume() -> Self {
        Amx(())
    }

    /// Products of zeros that stay in the tiles: `rounds` times one into each of the four sums. Returns their floating point operations.
    pub fn burst(self, rounds: usize) -> f64 {
        configure();
        // SAFETY: the token proves that the unit may be used; its tiles, configured above, and a counter are all that changes.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "test {n}, {n}",
                "jz 3f",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {n}",
                "jnz 2b",
                "3:",
                n = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack)
            );
        }
        (rounds * 4 * 2 * SIDE * SIDE * 2 * SIDE) as f64
    }
}

/// What LDTILECFG reads: palette 1, rows and bytes a row of each tile.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Makes the unit's tiles of this thread 16 rows of 64 bytes. They stay so: Linux keeps them over a switch of threads.
fn configure() {
    thread_local! {
        static DONE: Cell<bool> = const { Cell::new(false) };
    }
    if !DONE.get() {
        // SAFETY: a token is at hand, so the unit may be used; the configuration is one of palette 1 and outlives the call.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
        DONE.set(true);
    }
}

/// Operands of the walks below: the assembly reads them in this order. Strides are in bytes.
#[repr(C)]
struct Walk {
    /// Rows 0 to 15 and 16 to 31 of the left side.
    a: [*const f32; 2],
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    /// Whole tiles along K.
    whole: usize,
    /// The right side of a last tile, as `b` but padded with zeros, or null.
    last: *const f32,
    /// What the sums begin with, rows 0 to 15 and 16 to 31; null if they begin with zeros.
    start: [*const f32; 2],
    start_stride: usize,
    end: [*mut f32; 2],
    end_stride: usize,
}

/// Makes a function that walks along K with the sums in tiles 0 to 3 (rows, then columns), the left side in 4 and 5, the right in 6 and 7.
macro_rules! walk {
    ($name:ident, zero: [$($zero:literal)*], load: [$($load:literal)*], step: [$($step:literal)*], store: [$($store:literal)*]) => {
        /// # Safety
        /// The tiles must be configured; the operands of the walk that the tiles of this shape read must be readable, 16 rows of 64
        /// bytes each, and those that they write writable by nobody else.
        unsafe fn $name(walk: &Walk) {
            // SAFETY: memory as the caller promises; the tiles, which nothing else uses, and the named registers are all that changes.
            unsafe {
                asm!(
                    $($zero,)*
                    "mov {x}, [{w} + 56]",
                    "test {x}, {x}",
                    "jz 5f",
                    "mov {y}, [{w} + 64]",
                    "mov {s}, [{w} + 72]",
                    $($load,)*
                    "5:",
                    "mov {x}, [{w}]",
                    "mov {y}, [{w} + 8]",
                    "mov {s}, [{w} + 16]",
                    "mov {b}, [{w} + 24]",
                    "mov {t}, [{w} + 32]",
                    "mov {n}, [{w} + 40]",
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    $($step,)*
                    "add {x}, 1024",
                    "add {y}, 1024",
                    "mov {u}, {t}",
                    "shl {u}, 4",
                    "add {b}, {u}",
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "mov {b}, [{w} + 48]",
                    "test {b}, {b}",
                    "jz 4f",
                    $($step,)*
                    "4:",
                    "mov {x}, [{w} + 80]",
                    "mov {y}, [{w} + 88]",
                    "mov {s}, [{w} + 96]",
                    $($store,)*
                    w = in(reg) std::ptr::from_ref(walk),
                    x = out(reg) _, y = out(reg) _, s = out(reg) _, b = out(reg) _, t = out(reg) _, n = out(reg) _, u = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

// All loads of a step stand first: on a machine whose unit at times ran loads and products one after the other instead of side by side,
// that was 6 % faster then, and the same otherwise.
walk!(walk_1_1,
    zero: ["tilezero tmm0"],
    load: ["tileloadd tmm0, [{x} + {s}]"],
    step: ["tileloadd tmm4, [{x} + {s}]" "tileloadd tmm6, [{b} + {t}]" "tdpbf16ps tmm0, tmm4, tmm6"],
    store: ["tilestored [{x} + {s}], tmm0"]
);
walk!(walk_1_2,
    zero: ["tilezero tmm0" "tilezero tmm1"],
    load: ["tileloadd tmm0, [{x} + {s}]" "tileloadd tmm1, [{x} + {s} + 64]"],
    step: [
        "tileloadd tmm4, [{x} + {s}]" "tileloadd tmm6, [{b} + {t}]" "tileloadd tmm7, [{b} + {t} + 64]"
        "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
    ],
    store: ["tilestored [{x} + {s}], tmm0" "tilestored [{x} + {s} + 64], tmm1"]
);
walk!(walk_2_1,
    zero: ["tilezero tmm0" "tilezero tmm2"],
    load: ["tileloadd tmm0, [{x} + {s}]" "tileloadd tmm2, [{y} + {s}]"],
    step: [
        "tileloadd tmm4, [{x} + {s}]" "tileloadd tmm6, [{b} + {t}]" "tileloadd tmm5, [{y} + {s}]"
        "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm2, tmm5, tmm6"
    ],
    store: ["tilestored [{x} + {s}], tmm0" "tilestored [{y} + {s}], tmm2"]
);
walk!(walk_2_2,
    zero: ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
    load: [
        "tileloadd tmm0, [{x} + {s}]" "tileloadd tmm1, [{x} + {s} + 64]"
        "tileloadd tmm2, [{y} + {s}]" "tileloadd tmm3, [{y} + {s} + 64]"
    ],
    step: [
        "tileloadd tmm4, [{x} + {s}]" "tileloadd tmm6, [{b} + {t}]" "tileloadd tmm7, [{b} + {t} + 64]" "tileloadd tmm5, [{y} + {s}]"
        "tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7" "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"
    ],
    store: [
        "tilestored [{x} + {s}], tmm0" "tilestored [{x} + {s} + 64], tmm1"
        "tilestored [{y} + {s}], tmm2" "tilestored [{y} + {s} + 64], tmm3"
    ]
);

impl Tiles for Amx {
    const MR: usize = ROWS;
    const LANES: usize = SIDE;
    const STEPS: usize = SIDE;
    // Both sides come from the second-level cache, which costs less than to store the sums and load them again.
    const SLICE: usize = 1024;

    unsafe fn run<const MODE: Mode>(self, rows: usize, vectors: usize, t: &Tile) {
        if MODE == FULL {
            // The unit does not multiply f32: an update in f32 is for vectors.
            // SAFETY: processors with the unit have AVX-512 with its bf16; `has_amx` asks for both.
            let s = unsafe { Avx512::<true>::assume() };
            let high = <Avx512<true> as Kernels>::MR;
            for first in (0..rows).step_by(high) {
                let part = Tile { a: t.a.wrapping_add(first * t.a_row), c: t.c.wrapping_add(first * t.c_row), ..*t };
                // SAFETY: passed on to the caller; sums are not spilled in this mode.
                unsafe { tile::<_, FULL>(s, high.min(rows - first), vectors, &part) };
            }
            return;
        }
        const { assert!(MODE == FULL || MODE == PAIRS, "there is one way to read bf16") };
        assert!(t.a_step == Self::STEPS && (1..=ROWS).contains(&rows) && (1..=PANEL_VECTORS).contains(&vectors));
        let width = vectors * SIDE;
        let (whole, left) = (t.k / SIDE, t.k % SIDE);
        let last = (left > 0).then(|| {
            let mut last = [0.0f32; SIDE * COLUMNS];
            for (i, step) in last.chunks_exact_mut(width).take(left).enumerate() {
                // SAFETY: b has the panel's columns at each of its k steps.
                step.copy_from_slice(unsafe { std::slice::from_raw_parts(t.b.add((whole * SIDE + i) * t.b_step), width) });
            }
            last
        });
        // The last tile has its own stride where panels lie apart from their width.
        assert!(left == 0 || t.b_step == width);
        let mut sums = MaybeUninit::<[f32; ROWS * COLUMNS]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        let ends = Ends::of(t, rows, width, sums);
        if let Some(from) = ends.copied {
            // SAFETY: `sums` has room for the rows; they are those of c, or the bias, which the caller promises.
            unsafe { copy(from, t.cols, sums, rows, width) };
        }
        let walk = Walk {
            a: [t.a, t.a.wrapping_add(SIDE * t.a_row)],
            a_stride: 4 * SIDE,
            b: t.b,
            b_stride: 4 * t.b_step,
            whole,
            last: last.as_ref().map_or(std::ptr::null(), |last| last.as_ptr()),
            start: [ends.start.0, ends.start.0.wrapping_add(SIDE * ends.start.1)],
            start_stride: 4 * ends.start.1,
            end: [ends.end.0, ends.end.0.wrapping_add(SIDE * ends.end.1)],
            end_stride: 4 * ends.end.1,
        };
        configure();
        if let Finish::Store { .. } = t.finish {
            // Stores wait for their lines, so these come while the tile is multiplied.
            for (r, v) in (0..rows).flat_map(|r| (0..vectors).map(move |v| (r, v))) {
                prefetch_to_write(t.c.wrapping_add(r * t.c_row + v * SIDE));
            }
        }
        // SAFETY: the left side has whole tiles of rows and of steps, padded with anything and with zeros; the right side has a panel's
        // columns at each step, or `last` has; the spill area and `sums` have room for all rows of two vectors, and c is where sums begin
        // or end only if it has whole tiles.
        unsafe {
            match (rows > SIDE, vectors) {
                (false, 1) => walk_1_1(&walk),
                (false, _) => walk_1_2(&walk),
                (true, 1) => walk_2_1(&walk),
                (true, _) => walk_2_2(&walk),
            }
        }
        if let Some(rest) = ends.rest {
            // SAFETY: the walk has written whole tiles, of which these rows are a part.
            let sums = unsafe { std::slice::from_raw_parts(sums, rows * width) };
            store(t, rest, sums, rows, width);
        }
    }
}

/// Where a tile's sums begin and end: pointers to the first row, with the elements from one row to the next.
///
/// A sum that is not scaled begins with its bias or, without one, with what c held: that costs nothing, and happens for whole tiles and
/// parts of them alike, so that they have the same bits. Whole tiles are then loaded and stored where they belong.
struct Ends {
    start: (*const f32, usize),
    end: (*mut f32, usize),
    /// Rows that are copied to `start` first.
    copied: Option<(*const f32, usize)>,
    /// What is to be done with what then stands at `end`.
    rest: Option<Finish>,
}

impl Ends {
    fn of(t: &Tile, rows: usize, width: usize, sums: *mut f32) -> Ends {
        let start = match t.start {
            Start::Zero => (std::ptr::null(), 0),
            Start::Spilled(from) => (from, width),
        };
        let (scale, bias, accumulate) = match t.finish {
            Finish::Spill(to) => return Ends { start, end: (to, width), copied: None, rest: None },
            Finish::Store { scale, bias, accumulate } => (scale, bias, accumulate),
        };
        if !start.0.is_null() || scale != 1.0 {
            return Ends { start, end: (sums, width), copied: None, rest: Some(t.finish) };
        }
        let (from, accumulate) = match (bias.is_null(), accumulate) {
            (false, _) => (Some((bias, 0)), accumulate),
            (true, true) => (Some((t.c.cast_const(), t.c_row)), false),
            (true, false) => (None, false),
        };
        if rows.is_multiple_of(SIDE) && t.cols == width && !accumulate {
            return Ends { start: from.unwrap_or(start), end: (t.c, t.c_row), copied: None, rest: None };
        }
        let rest = Some(Finish::Store { scale, bias: std::ptr::null(), accumulate });
        Ends { start: if from.is_some() { (sums, width) } else { start }, end: (sums, width), copied: from, rest }
    }
}

/// Copies rows of `cols` elements to rows of `width`, with zeros behind them.
///
/// # Safety
/// The rows must be readable and `sums` writable; they may not overlap.
unsafe fn copy((from, stride): (*const f32, usize), cols: usize, sums: *mut f32, rows: usize, width: usize) {
    for r in 0..rows {
        // SAFETY: passed on to the caller.
        unsafe {
            sums.add(r * width).copy_from_nonoverlapping(from.add(r * stride), cols);
            sums.add(r * width + cols).write_bytes(0, width - cols);
        }
    }
}

dispatch! {
    /// What becomes of a tile's sums.
    fn store(t: &Tile, rest: Finish, sums: &[f32], rows: usize, width: usize) = store_with;
}

#[inline(always)]
fn store_with<S: Simd>(s: S, t: &Tile, rest: Finish, sums: &[f32], rows: usize, width: usize) {
    // SAFETY: the caller of `run` promises that c and the bias have this tile's rows and columns, and that nothing else uses them.
    unsafe { store_part(s, t, rest, rows, width / S::LANES, sums) };
}
