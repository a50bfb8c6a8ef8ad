//! Quantised products: exactly what scalar code computes from the file's blocks, and a row's bits the same in every crowd.

use crate::values::{bits, cases, on_any_threads, random};
use half::f16;
use proptest::prelude::*;
use tunesmith_ops::cpu::{Isa, isa};
use tunesmith_ops::matmul::Epilogue;
use tunesmith_ops::quant::{QuantError, QuantKind, QuantPacked, quant_matmul};

/// What a format says of one group of 32 inputs: codes less their centre, scales of both halves, and what is added to each value.
struct Group {
    codes: [i32; 32],
    scales: [f32; 2],
    low: f32,
}

/// A block of the file taken apart as ggml's `dequantize_row_*` do, written down apart from the crate's own reader.
fn groups(kind: QuantKind, b: &[u8]) -> Vec<Group> {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let nibble = |at: usize, i: usize| i32::from(if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 });
    let fifth = |at: usize, i: usize| i32::from(b[at + i / 8] >> (i % 8) & 1) * 16;
    let small = |codes: [i32; 32], low: f32| vec![Group { codes, scales: [half(0); 2], low }];
    match kind {
        QuantKind::Q4_0 => small(std::array::from_fn(|i| nibble(2, i) - 8), 0.0),
        QuantKind::Q4_1 => small(std::array::from_fn(|i| nibble(4, i)), half(2)),
        QuantKind::Q5_0 => small(std::array::from_fn(|i| nibble(6, i) + fifth(2, i) - 16), 0.0),
        QuantKind::Q5_1 => small(std::array::from_fn(|i| nibble(8, i) + fifth(4, i)), half(2)),
        QuantKind::Q8_0 => small(std::array::from_fn(|i| i32::from(b[2 + i] as i8)), 0.0),
        QuantKind::Q4_K | QuantKind::Q5_K => (0..8)
            .map(|j| {
                let (six, values) = (&b[4..16], if kind == QuantKind::Q4_K { 16 } else { 48 });
                // get_scale_min_k4
                let (scale, min) = if j < 4 {
                    (six[j] & 63, six[j + 4] & 63)
                } else {
                    ((six[j + 4] & 15) | (six[j - 4] >> 6 << 4), (six[j + 4] >> 4) | (six[j] >> 6 << 4))
                };
                let codes = std::array::from_fn(|i| {
                    let byte = b[values + j / 2 * 32 + i];
                    let upper = if kind == QuantKind::Q5_K { i32::from(b[16 + i] >> j & 1) * 16 } else { 0 };
                    i32::from(if j % 2 == 0 { byte & 15 } else { byte >> 4 }) + upper
                });
                Group { codes, scales: [half(0) * f32::from(scale); 2], low: -(half(2) * f32::from(min)) }
            })
            .collect(),
        QuantKind::Q6_K => (0..8)
            .map(|j| {
                let (n, quarter) = (j / 4, j % 4);
                let codes = std::array::from_fn(|l| {
                    let byte = b[n * 64 + l + if quarter % 2 == 1 { 32 } else { 0 }];
                    let four = if quarter < 2 { byte & 15 } else { byte >> 4 };
                    i32::from(four | (b[128 + n * 32 + l] >> (2 * quarter) & 3) << 4) - 32
                });
                let scale = |part: usize| half(208) * f32::from(b[192 + n * 8 + 2 * quarter + part] as i8);
                Group { codes, scales: [scale(0), scale(1)], low: 0.0 }
            })
            .collect(),
    }
}

/// Random blocks: any bits, but scales of a sensible size, of which every third is a denormal half.
fn matrix(kind: QuantKind, n: usize, k: usize, seed: u64) -> Vec<u8> {
    let count = n * k / kind.block();
    let mut bytes: Vec<u8> = random(count * kind.block_bytes(), seed).iter().map(|v| ((v + 1.0) * 128.0) as u8).collect();
    for (i, b) in bytes.chunks_exact_mut(kind.block_bytes()).enumerate() {
        let places: &[usize] = match kind {
            QuantKind::Q4_0 | QuantKind::Q5_0 | QuantKind::Q8_0 => &[0],
            QuantKind::Q6_K => &[208],
            _ => &[0, 2],
        };
        for at in places {
            let size = if i % 3 == 0 { 4e-5 } else { 0.01 };
            let scale = f16::from_f32((f32::from(b[*at]) / 256.0 - 0.4) * size);
            b[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// The instruction set's multiply-add.
fn fma(a: f32, b: f32, c: f32) -> f32 {
    if isa() == Isa::Scalar { a * b + c } else { a.mul_add(b, c) }
}

/// A group of a row as int8, its scale, and the sum of what it stands for.
fn rounded(x: &[f32]) -> ([i32; 32], f32, f32) {
    let highest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if highest == 0.0 {
        return ([0; 32], 0.0, 0.0);
    }
    let (factor, scale) = (127.0 / highest, highest / 127.0);
    let codes: [i32; 32] = std::array::from_fn(|i| (x[i] * factor).round_ties_even() as i32);
    (codes, scale, scale * codes.iter().sum::<i32>() as f32)
}

/// The scalar twin: the same numbers in the same order.
fn twin(kind: QuantKind, bytes: &[u8], x: &[f32], rows: usize, n: usize, k: usize) -> Vec<f32> {
    let row_bytes = k / kind.block() * kind.block_bytes();
    let mut y = Vec::new();
    for x in x.chunks_exact(k).take(rows) {
        for row in bytes.chunks_exact(row_bytes).take(n) {
            let mut sum = 0.0f32;
            let all = row.chunks_exact(kind.block_bytes()).flat_map(|b| groups(kind, b));
            for (group, x) in all.zip(x.chunks_exact(32)) {
                let (codes, scale, total) = rounded(x);
                let dot = |range: std::ops::Range<usize>| range.map(|i| group.codes[i] * codes[i]).sum::<i32>() as f32;
                if kind == QuantKind::Q6_K {
                    sum = fma(dot(0..16), group.scales[0] * scale, sum);
                    sum = fma(dot(16..32), group.scales[1] * scale, sum);
                } else {
                    sum = fma(dot(0..32), group.scales[0] * scale, sum);
                }
                if matches!(kind, QuantKind::Q4_1 | QuantKind::Q5_1 | QuantKind::Q4_K | QuantKind::Q5_K) {
                    sum = fma(group.low, total, sum);
                }
            }
            y.push(sum);
        }
    }
    y
}

fn product(kind: QuantKind, bytes: &[u8], x: &[f32], rows: usize, n: usize, k: usize) -> Vec<f32> {
    let w = QuantPacked::new(kind, bytes, n, k).unwrap();
    let mut y = vec![f32::NAN; rows * n];
    quant_matmul(x, rows, &w, &mut y, Epilogue::default());
    y
}

fn kinds() -> impl Strategy<Value = QuantKind> {
    prop::sample::select(QuantKind::ALL.to_vec())
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn a_product_equals_its_scalar_twin_exactly(kind in kinds(), rows in 1usize..24, n in 1usize..50, blocks in 1usize..5, seed in 0u64..1000) {
        let k = blocks * kind.block();
        let (bytes, mut x) = (matrix(kind, n, k, seed), random(rows * k, seed + 1));
        // Groups of zeros and of very different sizes.
        for (i, group) in x.chunks_exact_mut(32).enumerate() {
            let size = [1.0, 0.0, 1e-6, 300.0][(seed as usize + i) % 4];
            group.iter_mut().for_each(|v| *v *= size);
        }
        prop_assert_eq!(bits(&product(kind, &bytes, &x, rows, n, k)), bits(&twin(kind, &bytes, &x, rows, n, k)));
    }

    #[test]
    fn a_row_reads_back_as_the_file_says(kind in kinds(), n in 1usize..40, blocks in 1usize..4, seed in 0u64..1000) {
        let k = blocks * kind.block();
        let bytes = matrix(kind, n, k, seed);
        let w = QuantPacked::new(kind, &bytes, n, k).unwrap();
        for (i, row) in bytes.chunks_exact(k / kind.block() * kind.block_bytes()).enumerate() {
            let mut out = vec![f32::NAN; k];
            w.row(i, &mut out);
            let value = |g: &Group, i: usize| g.scales[i / 16] * g.codes[i] as f32 + g.low;
            let expected = row.chunks_exact(kind.block_bytes()).flat_map(|b| groups(kind, b));
            let expected: Vec<f32> = expected.flat_map(|g| std::array::from_fn::<f32, 32, _>(|i| value(&g, i))).collect();
            prop_assert_eq!(out, expected, "row {}", i);
        }
    }
}

#[test]
fn the_largest_codes_and_activations_do_not_overflow() {
    for kind in QuantKind::ALL {
        let (n, k) = (17, 256);
        let mut bytes = matrix(kind, n, k, 3);
        for fill in [0xff, 0x00, 0x80, 0x7f] {
            for b in bytes.chunks_exact_mut(kind.block_bytes()) {
                b.fill(fill);
                let places: &[usize] = if kind == QuantKind::Q6_K { &[208] } else { &[0] };
                places.iter().for_each(|at| b[*at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes()));
                if matches!(kind, QuantKind::Q4_1 | QuantKind::Q5_1 | QuantKind::Q4_K | QuantKind::Q5_K) {
                    b[2..4].copy_from_slice(&f16::ONE.to_le_bytes());
                }
            }
            for sign in [1.0, -1.0] {
                let x = vec![sign; 3 * k];
                assert_eq!(bits(&product(kind, &bytes, &x, 3, n, k)), bits(&twin(kind, &bytes, &x, 3, n, k)), "{kind:?} of {fill:#x}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_crowd_and_on_any_number_of_threads() {
    for kind in QuantKind::ALL {
        let (n, k, rows) = (60, 256, 261);
        let (bytes, x) = (matrix(kind, n, k, 5), random(rows * k, 6));
        let all = on_any_threads(|| product(kind, &bytes, &x, rows, n, k));
        for range in [0..1, 7..8, 1..3, 5..8, 100..107, 120..137, 130..194, 260..261] {
            let part = product(kind, &bytes, &x[range.start * k..range.end * k], range.len(), n, k);
            assert_eq!(bits(&part), bits(&all[range.start * n..range.end * n]), "{kind:?}, rows {range:?}");
        }
    }
}

#[test]
fn bias_scale_and_what_was_there_are_added_in_order() {
    let (n, k, rows) = (21, 64, 3);
    let kind = QuantKind::Q8_0;
    let (bytes, x, bias, before) = (matrix(kind, n, k, 1), random(rows * k, 2), random(n, 3), random(rows * n, 4));
    let w = QuantPacked::new(kind, &bytes, n, k).unwrap();
    let mut y = before.clone();
    quant_matmul(&x, rows, &w, &mut y, Epilogue { bias: Some(&bias), scale: 0.3, accumulate: true, ..Epilogue::default() });
    let plain = twin(kind, &bytes, &x, rows, n, k);
    let expected: Vec<f32> = (0..rows * n).map(|i| plain[i] * 0.3 + bias[i % n] + before[i]).collect();
    assert_eq!(bits(&y), bits(&expected));
}

#[test]
fn a_nan_or_an_infinity_shows_in_its_row_and_in_no_other() {
    for kind in QuantKind::ALL {
        let (n, k, rows) = (20, 256, 9);
        let (bytes, x) = (matrix(kind, n, k, 7), random(rows * k, 8));
        let clean = product(kind, &bytes, &x, rows, n, k);
        for value in [f32::NAN, f32::INFINITY] {
            let mut broken = x.clone();
            broken[4 * k + 77] = value;
            let y = product(kind, &bytes, &broken, rows, n, k);
            assert!(y[4 * n..5 * n].iter().all(|v| v.is_nan()), "{kind:?}");
            assert_eq!(bits(&y[..4 * n]), bits(&clean[..4 * n]));
            assert_eq!(bits(&y[5 * n..]), bits(&clean[5 * n..]));
        }
    }
}

#[test]
fn rounded_weights_are_within_half_a_step() {
    let (n, k) = (19, 96);
    let w: Vec<f32> = random(n * k, 5).iter().enumerate().map(|(i, v)| if i < 32 { 0.0 } else { v * 0.03 }).collect();
    let packed = QuantPacked::rounded(&w, n, k).unwrap();
    let mut row = vec![0.0; k];
    for (i, exact) in w.chunks_exact(k).enumerate() {
        packed.row(i, &mut row);
        for (block, exact) in row.chunks_exact(32).zip(exact.chunks_exact(32)) {
            let step = exact.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0;
            // The scale itself is kept in half precision.
            assert!(block.iter().zip(exact).all(|(a, b)| (a - b).abs() <= 0.57 * step), "row {i}");
        }
    }
    for bad in [f32::NAN, f32::INFINITY, 1e8] {
        let mut w = w.clone();
        w[40] = bad;
        assert!(matches!(QuantPacked::rounded(&w, n, k), Err(QuantError::Scale { row: 0, .. })), "{bad}");
    }
    assert!(matches!(QuantPacked::rounded(&w[..40], 1, 40), Err(QuantError::Width { .. })));
}

#[test]
fn damaged_matrices_are_refused_with_the_reason() {
    let kind = QuantKind::Q4_K;
    let bytes = matrix(kind, 4, 512, 1);
    let message = |error: QuantError| error.to_string();
    let width = QuantPacked::new(kind, &bytes, 4, 576).unwrap_err();
    assert!(message(width).starts_with("a row of 576 values is not whole blocks of 256 of type Q4_K"));
    let length = QuantPacked::new(kind, &bytes[1..], 4, 512).unwrap_err();
    assert!(message(length).starts_with("1151 bytes are not a matrix [4, 512] of type Q4_K, which has 1152"));
    assert!(QuantPacked::new(kind, &bytes, usize::MAX, 512).is_err());
    let mut broken = bytes;
    broken[2 * 288..2 * 288 + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    assert_eq!(QuantPacked::new(kind, &broken, 4, 512).unwrap_err(), QuantError::Scale { kind, row: 2 });
}

#[test]
fn empty_products_are_empty_or_the_bias() {
    let none = QuantPacked::new(QuantKind::Q4_0, &[], 0, 64).unwrap();
    quant_matmul(&[0.0; 128], 2, &none, &mut [], Epilogue::default());
    let narrow = QuantPacked::new(QuantKind::Q4_0, &[], 3, 0).unwrap();
    let mut y = [f32::NAN; 6];
    quant_matmul(&[], 2, &narrow, &mut y, Epilogue { bias: Some(&[1.0, 2.0, 3.0]), ..Epilogue::default() });
    assert_eq!(y, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
}
