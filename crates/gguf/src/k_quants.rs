//! The values of the K-types: blocks of 256 in groups whose scales are themselves packed. `Kind::dequantise` calls these.
//!
//! ggml's `ggml-quants.c` (`dequantize_row_q*_K`) is the definition; layouts are from `ggml-common.h`.

use crate::dequantise::half_at;

/// 16 bytes of scale and minimum (4 bits each), 64 of values, two halves.
pub(crate) fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (scales, qs, d, m) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
    for group in 0..16 {
        // Halves of 128, four shifts each, 32 bytes a shift in two groups of 16.
        let (half, shift, part) = (group / 8, group % 8 / 2 * 2, group % 2);
        let scale = d * f32::from(scales[group] & 15);
        let min = m * f32::from(scales[group] >> 4);
        for i in 0..16 {
            let q = qs[half * 32 + part * 16 + i] >> shift & 3;
            y[group * 16 + i] = scale * f32::from(q) - min;
        }
    }
}

/// 32 bytes of upper bits, 64 of lower ones, 12 of scales (6 bits each), a half.
pub(crate) fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let (upper, qs, packed, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
    for group in 0..16 {
        let low = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = d * (i32::from(low | high << 4) - 32) as f32;
        let (half, shift, part) = (group / 8, group % 8 / 2, group % 2);
        for i in 0..16 {
            let at = part * 16 + i;
            let q = qs[half * 32 + at] >> (2 * shift) & 3;
            let top = upper[at] >> (half * 4 + shift) & 1;
            y[group * 16 + i] = scale * (i32::from(q | top << 2) - 4) as f32;
        }
    }
}

/// Scale and minimum of group `j` of Q4_K and Q5_K, six bits each in twelve bytes.
fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (scale, min) = match j {
        0..4 => (s[j] & 63, s[j + 4] & 63),
        _ => ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4),
    };
    (f32::from(scale), f32::from(min))
}

/// Two halves, 12 bytes of scales, 128 of values: the lower and upper four bits of 32 bytes are two groups.
pub(crate) fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin, scales, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..]);
    for pair in 0..4 {
        let ((s0, m0), (s1, m1)) = (scale_min(2 * pair, scales), scale_min(2 * pair + 1, scales));
        let (s0, m0, s1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        for i in 0..32 {
            let q = qs[pair * 32 + i];
            y[pair * 64 + i] = s0 * f32::from(q & 15) - m0;
            y[pair * 64 + 32 + i] = s1 * f32::from(q >> 4) - m1;
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the values.
pub(crate) fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin, scales, high, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48], &b[48..]);
    for pair in 0..4 {
        let ((s0, m0), (s1, m1)) = (scale_min(2 * pair, scales), scale_min(2 * pair + 1, scales));
        let (s0, m0, s1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        for i in 0..32 {
            let q = qs[pair * 32 + i];
            let (low, top) = (high[i] >> (2 * pair) & 1, high[i] >> (2 * pair + 1) & 1);
            y[pair * 64 + i] = s0 * f32::from(q & 15 | low << 4) - m0;
            y[pair * 64 + 32 + i] = s1 * f32::from(q >> 4 | top << 4) - m1;
        }
    }
}

/// 128 bytes of lower bits, 64 of upper ones, 16 signed scales, a half.
pub(crate) fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for half in 0..2 {
        let (ql, qh, sc) = (&low[half * 64..half * 64 + 64], &high[half * 32..half * 32 + 32], &scales[half * 8..half * 8 + 8]);
        for i in 0..32 {
            let value = |bits: u8, shift: u8| (i32::from(bits | (qh[i] >> shift & 3) << 4) - 32) as f32;
            let scale = |group: usize| d * f32::from(sc[group + i / 16] as i8);
            y[half * 128 + i] = scale(0) * value(ql[i] & 15, 0);
            y[half * 128 + 32 + i] = scale(2) * value(ql[i + 32] & 15, 2);
            y[half * 128 + 64 + i] = scale(4) * value(ql[i] >> 4, 4);
            y[half * 128 + 96 + i] = scale(6) * value(ql[i + 32] >> 4, 6);
        }
    }
}

/// A 32-bit scale, 256 bytes of values, and 32 of sums that only products need.
pub(crate) fn q8_k(b: &[u8; 292], y: &mut [f32; 256]) {
    let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for i in 0..256 {
        y[i] = d * f32::from(b[4 + i] as i8);
    }
}
