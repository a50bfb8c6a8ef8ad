//! GGUF's blocks taken apart: unsigned codes in the order of the inputs, and their scales. Packing calls it.
//!
//! ggml's `ggml-common.h` and `dequantize_row_*` of `ggml-quants.c` are the definition.

use super::form::QuantKind;

/// One block.
pub(super) struct Block {
    /// A code for each input; 32 or 256 are in use.
    pub codes: [u8; 256],
    /// The bits of the scale and, where there is one, of the minimum, in half precision.
    pub halves: [u16; 2],
    /// Nested scales of each group of 32 inputs.
    pub nested: [[u8; 2]; 8],
}

/// Takes a block apart; `b` has the format's `block_bytes`.
pub(super) fn read(kind: QuantKind, b: &[u8]) -> Block {
    let mut block = Block { codes: [0; 256], halves: [0; 2], nested: [[0; 2]; 8] };
    match kind {
        QuantKind::Q4_0 => {
            block.halves[0] = half(b, 0);
            four_bits(&b[2..], &mut block.codes);
        }
        QuantKind::Q4_1 => {
            block.halves = [half(b, 0), half(b, 2)];
            four_bits(&b[4..], &mut block.codes);
        }
        QuantKind::Q5_0 => {
            block.halves[0] = half(b, 0);
            four_bits(&b[6..], &mut block.codes);
            fifth_bits(&b[2..6], &mut block.codes);
        }
        QuantKind::Q5_1 => {
            block.halves = [half(b, 0), half(b, 2)];
            four_bits(&b[8..], &mut block.codes);
            fifth_bits(&b[4..8], &mut block.codes);
        }
        QuantKind::Q8_0 => {
            block.halves[0] = half(b, 0);
            // Signed in the file; kept as value + 128.
            block.codes.iter_mut().zip(&b[2..34]).for_each(|(code, value)| *code = value ^ 0x80);
        }
        QuantKind::Q4_K | QuantKind::Q5_K => {
            block.halves = [half(b, 0), half(b, 2)];
            block.nested = std::array::from_fn(|group| six_bits(group, &b[4..16]));
            let (upper, values) = if kind == QuantKind::Q4_K { (None, &b[16..144]) } else { (Some(&b[16..48]), &b[48..176]) };
            for (i, code) in block.codes.iter_mut().enumerate() {
                // 32 bytes hold two groups of 32 inputs, one in the lower and one in the upper bits.
                let (group, at) = (i / 32, i % 32);
                let four = values[group / 2 * 32 + at] >> (4 * (group % 2)) & 15;
                *code = four | upper.map_or(0, |bits| (bits[at] >> group & 1) << 4);
            }
        }
        QuantKind::Q6_K => {
            block.halves[0] = half(b, 208);
            block.nested = std::array::from_fn(|group| [b[192 + 2 * group], b[193 + 2 * group]]);
            for (i, code) in block.codes.iter_mut().enumerate() {
                // Two halves of 128 inputs: four rows of 32, of which rows 0 and 2, and 1 and 3, share their bytes of lower bits.
                let (half, row, at) = (i / 128, i % 128 / 32, i % 32);
                let four = b[half * 64 + row % 2 * 32 + at] >> (4 * (row / 2)) & 15;
                let two = b[128 + half * 32 + at] >> (2 * row) & 3;
                *code = four | two << 4;
            }
        }
    }
    block
}

fn half(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

/// Sixteen bytes: inputs 0 … 15 in the lower, 16 … 31 in the upper bits.
fn four_bits(b: &[u8], codes: &mut [u8; 256]) {
    for i in 0..16 {
        codes[i] = b[i] & 15;
        codes[i + 16] = b[i] >> 4;
    }
}

/// A bit for each of 32 inputs.
fn fifth_bits(b: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes.iter_mut().take(32).enumerate() {
        *code |= (b[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// Scale and minimum of a group of Q4_K and Q5_K: six bits each, packed in twelve bytes.
fn six_bits(group: usize, b: &[u8]) -> [u8; 2] {
    match group {
        0..4 => [b[group] & 63, b[group + 4] & 63],
        _ => [(b[group + 4] & 15) | (b[group - 4] >> 6) << 4, (b[group + 4] >> 4) | (b[group] >> 6) << 4],
    }
}
