//! The drivers with the unit's tiles, against the same products on vectors.

#![allow(clippy::unwrap_used)]

use super::super::pack::{Plain, packed_len, panel_count};
use super::super::{Buffer, Epilogue, Layout, PAIRS, Packed, Precision, Shared, Update, matmul_plain, matmul_tn, product, tn};
use super::{Amx, SIDE, interpreter};
use crate::cpu;

/// Numbers from −1 to 1.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / 2_147_483_648.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn token() -> Amx {
    interpreter::stand_in();
    // SAFETY: what the processor lacks, or may not do, is interpreted.
    unsafe { Amx::assume() }
}

/// `x · Wᵀ` on the unit.
fn on_unit(x: &[f32], rows: usize, w: &Plain, y: &mut [f32], ep: Epilogue) {
    let panels = 0..panel_count(w.n, SIDE);
    let mut packed = Buffer::zeros(packed_len(w.n, Precision::Bf16.steps(w.k), SIDE) + SIDE);
    w.pack(panels.clone(), SIDE, packed.as_mut_slice());
    let right = product::Right { data: packed.as_slice(), panels, n: w.n, k: w.k, precision: Precision::Bf16 };
    product::multiply::<_, PAIRS>(token(), x, rows, right, Shared::new(y), ep);
}

/// Both add the same products of bf16 in f32, in another order.
fn assert_near(got: &[f32], expected: &[f32], k: usize, what: &str) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = 1e-6 * (4.0 + k as f32);
        assert!((got - expected).abs() <= bound, "{what}: element {i} is {got}, on vectors {expected}");
    }
}

#[test]
fn products_are_those_of_vectors() {
    // Whole tiles and parts of them, one panel and more, one slice of K and more, no inputs at all.
    for (case, [rows, n, k]) in
        [[1, 1, 1], [16, 16, 32], [32, 32, 64], [33, 40, 70], [5, 16, 31], [70, 95, 33], [17, 8, 1100], [3, 33, 513], [2, 3, 0]]
            .into_iter()
            .enumerate()
    {
        let seed = 10 * case as u32;
        let (x, w, bias, old) = (numbers(rows * k, seed), numbers(n * k, seed + 1), numbers(n, seed + 2), numbers(rows * n, seed + 3));
        let plain = Plain::new(&w, n, k, Layout::RowMajor, Precision::Bf16);
        let (u, b) = (numbers(rows * 3, seed + 4), numbers(n * 3, seed + 5));
        let b = Packed::new(&b, n, 3, Layout::RowMajor, Precision::F32);
        let ended = Epilogue { bias: Some(&bias), scale: -0.5, accumulate: true, ..Epilogue::default() };
        // Beside the unit there are wide vectors, which updates are added on.
        let update = Some(Update { u: &u, b: &b, scale: 0.5 }).filter(|_| cpu::has_bf16() && n > SIDE);
        // What is not scaled begins with what is added.
        let begun = [(true, false), (false, true), (true, true)].map(|(biased, accumulate)| Epilogue {
            bias: Some(&bias[..]).filter(|_| biased),
            accumulate,
            ..Epilogue::default()
        });
        for ep in [Epilogue::default(), ended, Epilogue { update, ..ended }].into_iter().chain(begun) {
            let (mut expected, mut got) = (old.clone(), old.clone());
            matmul_plain(&x, rows, &plain, &mut expected, ep);
            on_unit(&x, rows, &plain, &mut got, ep);
            assert_near(&got, &expected, k, &format!("[{rows}, {n}, {k}]"));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone() {
    let (rows, n, k) = (49, 50, 600);
    let (x, w) = (numbers(rows * k, 1), numbers(n * k, 2));
    let plain = Plain::new(&w, n, k, Layout::RowMajor, Precision::Bf16);
    let bias = numbers(n, 3);
    for ep in [Epilogue::default(), Epilogue { bias: Some(&bias), ..Epilogue::default() }] {
        let mut all = vec![0.0; rows * n];
        on_unit(&x, rows, &plain, &mut all, ep);
        for row in 0..rows {
            let mut alone = vec![0.0; n];
            on_unit(&x[row * k..][..k], 1, &plain, &mut alone, ep);
            assert_eq!(bits(&alone), bits(&all[row * n..][..n]), "row {row}");
        }
    }
}

#[test]
fn gradients_of_weights_are_those_of_vectors() {
    for (case, [t, n, k]) in [[1, 1, 1], [32, 32, 32], [70, 40, 100], [33, 100, 17], [1100, 35, 33], [2049, 16, 16]].into_iter().enumerate()
    {
        let seed = 100 + 10 * case as u32;
        let (a, b, old) = (numbers(t * n, seed), numbers(t * k, seed + 1), numbers(n * k, seed + 2));
        for (scale, accumulate) in [(0.5, false), (0.5, true), (1.0, false), (1.0, true)] {
            let (mut expected, mut got) = (old.clone(), old.clone());
            matmul_tn(&a, &b, t, n, k, &mut expected, scale, accumulate, Precision::Bf16);
            tn::multiply::<_, PAIRS>(token(), &tn::Transposed { a: &a, b: &b, t, n, k, scale, accumulate }, &mut got);
            assert_near(&got, &expected, t, &format!("[{t}, {n}, {k}]"));
        }
    }
}

#[test]
fn a_number_that_is_none_stays_in_its_row() {
    let (rows, n, k) = (20, 20, 40);
    let (mut x, w) = (numbers(rows * k, 1), numbers(n * k, 2));
    x[3 * k + 7] = f32::NAN;
    let plain = Plain::new(&w, n, k, Layout::RowMajor, Precision::Bf16);
    let mut y = vec![0.0; rows * n];
    on_unit(&x, rows, &plain, &mut y, Epilogue::default());
    assert!(y.chunks(n).enumerate().all(|(row, y)| y.iter().all(|v| v.is_nan() == (row == 3))));
}
