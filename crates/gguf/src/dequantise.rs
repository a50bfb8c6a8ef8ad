//! The values of the small blocks of 32, and of the two types with a table. `Kind::dequantise` calls these.
//!
//! ggml's `ggml-quants.c` (`dequantize_row_*`) is the definition.

use half::f16;

/// What the four bits of IQ4_NL and IQ4_XS stand for.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The half-precision number at a place of a block.
pub(crate) fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

pub(crate) fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for i in 0..16 {
        let q = b[2 + i];
        y[i] = d * (i32::from(q & 15) - 8) as f32;
        y[i + 16] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

pub(crate) fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for i in 0..16 {
        let q = b[4 + i];
        y[i] = d * f32::from(q & 15) + m;
        y[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits of 32 values.
fn high_bits(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(crate) fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half_at(b, 0), high_bits(b, 2));
    for i in 0..16 {
        let q = u32::from(b[6 + i]);
        let (low, top) = ((high >> i) & 1, (high >> (i + 16)) & 1);
        y[i] = d * ((q & 15 | low << 4) as i32 - 16) as f32;
        y[i + 16] = d * ((q >> 4 | top << 4) as i32 - 16) as f32;
    }
}

pub(crate) fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half_at(b, 0), half_at(b, 2), high_bits(b, 4));
    for i in 0..16 {
        let q = u32::from(b[8 + i]);
        let (low, top) = ((high >> i) & 1, (high >> (i + 16)) & 1);
        y[i] = d * (q & 15 | low << 4) as f32 + m;
        y[i + 16] = d * (q >> 4 | top << 4) as f32 + m;
    }
}

pub(crate) fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for i in 0..32 {
        y[i] = d * f32::from(b[2 + i] as i8);
    }
}

pub(crate) fn iq4_nl(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for i in 0..16 {
        let q = b[2 + i];
        y[i] = d * f32::from(TABLE[usize::from(q & 15)]);
        y[i + 16] = d * f32::from(TABLE[usize::from(q >> 4)]);
    }
}

/// A scale, eight groups' upper bits (16), their lower bits (4 × 8), and 128 bytes of values.
pub(crate) fn iq4_xs(b: &[u8; 136], y: &mut [f32; 256]) {
    let (d, high) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]));
    for group in 0..8 {
        let low = b[4 + group / 2] >> (4 * (group % 2)) & 15;
        let top = (high >> (2 * group) & 3) as u8;
        let scale = d * (i32::from(low | top << 4) - 32) as f32;
        for i in 0..16 {
            let q = b[8 + group * 16 + i];
            y[group * 32 + i] = scale * f32::from(TABLE[usize::from(q & 15)]);
            y[group * 32 + 16 + i] = scale * f32::from(TABLE[usize::from(q >> 4)]);
        }
    }
}
