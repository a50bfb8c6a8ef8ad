//! Products: right against f64 sums, and bit-identical for every row count, position and number of threads.

use crate::values::{assert_close, bits, cases, on_any_threads, random};
use half::bf16;
use proptest::prelude::*;
use tunesmith_ops::activation::Activation;
use tunesmith_ops::matmul::{
    Each, Epilogue, Layout, Packed, Plain, Precision, Update, add_each, matmul, matmul_new, matmul_plain, matmul_plain_new, matmul_tn,
};

fn rounded(x: &[f32], precision: Precision) -> Vec<f64> {
    x.iter()
        .map(|&v| match precision {
            Precision::F32 => f64::from(v),
            Precision::Bf16 => bf16::from_f32(v).to_f64(),
        })
        .collect()
}

/// The scalar twin of `matmul`, with w `[n, k]`.
fn product(x: &[f32], w: &[f32], [rows, n, k]: [usize; 3], precision: Precision) -> Vec<f64> {
    let (x, w) = (rounded(x, precision), rounded(w, precision));
    let mut y = vec![0.0; rows * n];
    for r in 0..rows {
        for j in 0..n {
            y[r * n + j] = (0..k).map(|i| x[r * k + i] * w[j * k + i]).sum();
        }
    }
    y
}

fn transposed(w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut t = vec![0.0; w.len()];
    for j in 0..n {
        for i in 0..k {
            t[i * n + j] = w[j * k + i];
        }
    }
    t
}

fn precisions() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::F32), Just(Precision::Bf16)]
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn a_product_equals_its_scalar_twin(
        rows in 0usize..40, n in 0usize..90, k in 0usize..70, seed in 0u64..1000,
        precision in precisions(), with_bias: bool, accumulate: bool, scale in prop_oneof![Just(1.0f32), Just(-0.5f32)],
    ) {
        let (x, w, bias, old) = (random(rows * k, seed), random(n * k, seed + 1), random(n, seed + 2), random(rows * n, seed + 3));
        let expected: Vec<f64> = product(&x, &w, [rows, n, k], precision).iter().enumerate().map(|(i, p)| {
            p * f64::from(scale)
                + if with_bias { f64::from(bias[i % n]) } else { 0.0 }
                + if accumulate { f64::from(old[i]) } else { 0.0 }
        }).collect();
        let mut previous: Option<Vec<u32>> = None;
        for (layout, w) in [(Layout::RowMajor, w.clone()), (Layout::Transposed, transposed(&w, n, k))] {
            let packed = Packed::new(&w, n, k, layout, precision);
            let mut y = old.clone();
            let ep = Epilogue { bias: with_bias.then_some(&bias[..]), scale, accumulate, ..Epilogue::default() };
            matmul(&x, rows, &packed, &mut y, ep);
            assert_close("y", &y, &expected, 3e-5);
            prop_assert!(previous.is_none_or(|p| p == bits(&y)), "the layout of the source shows in the bits");
            previous = Some(bits(&y));
            let mut plain = old.clone();
            matmul_plain(&x, rows, &Plain::new(&w, n, k, layout, precision), &mut plain, ep);
            prop_assert!(bits(&plain) == bits(&y), "packing on the way shows in the bits");
        }
    }

    #[test]
    fn updates_of_rows_with_weights_of_their_own_have_the_bits_of_two_products(
        shapes in prop::collection::vec((prop_oneof![9 => Just(1usize), 1 => 0usize..4], prop_oneof![8 => Just(8usize), 2 => 1usize..40]), 0..12),
        k in prop_oneof![Just(576usize), 1usize..70], n in 1usize..90, seed in 0u64..1000,
    ) {
        let mut at = seed;
        let mut next = |len: usize| {
            at += 1;
            random(len, at)
        };
        let pack = |w: &[f32], n, k| Packed::new(w, n, k, Layout::RowMajor, Precision::F32);
        let parts: Vec<_> = shapes
            .iter()
            .map(|&(rows, r)| (next(rows * k), pack(&next(r * k), r, k), pack(&next(n * r), n, r), next(rows * n)))
            .collect();
        let expected: Vec<Vec<u32>> = parts.iter().zip(&shapes).map(|((x, a, b, y), (rows, _))| {
            let (u, mut y) = (matmul_new(x, *rows, a, Epilogue::default()), y.clone());
            matmul(&u, *rows, b, &mut y, Epilogue { scale: 0.7, accumulate: true, ..Epilogue::default() });
            bits(&y)
        }).collect();
        let got = on_any_threads(|| {
            let mut ys: Vec<_> = parts.iter().map(|(_, _, _, y)| y.clone()).collect();
            let mut work: Vec<_> = parts.iter().zip(&mut ys).map(|((x, a, b, _), y)| Each { x, a, b, scale: 0.7, y }).collect();
            add_each(&mut work);
            ys.concat()
        });
        prop_assert_eq!(bits(&got), expected.concat());
    }

    #[test]
    fn an_update_has_the_bits_of_a_product_of_its_own(
        rows in 0usize..40, n in 0usize..90, k in 0usize..70, r in 1usize..20, seed in 0u64..1000, precision in precisions(), accumulate: bool,
    ) {
        let (x, w, old) = (random(rows * k, seed), random(n * k, seed + 1), random(rows * n, seed + 2));
        let (u, b) = (random(rows * r, seed + 3), Packed::new(&random(n * r, seed + 4), n, r, Layout::RowMajor, Precision::F32));
        let activation = Some(Activation::Relu).filter(|_| seed % 2 == 0);
        let (packed, plain) = (Packed::new(&w, n, k, Layout::RowMajor, precision), Plain::new(&w, n, k, Layout::RowMajor, precision));
        let mut apart = old.clone();
        matmul(&x, rows, &packed, &mut apart, Epilogue { accumulate, ..Epilogue::default() });
        matmul(&u, rows, &b, &mut apart, Epilogue { scale: 0.7, accumulate: true, activation, ..Epilogue::default() });
        let ep = Epilogue { accumulate, update: Some(Update { u: &u, b: &b, scale: 0.7 }), activation, ..Epilogue::default() };
        let (mut fused, mut on_the_way) = (old.clone(), old);
        matmul(&x, rows, &packed, &mut fused, ep);
        prop_assert!(bits(&fused) == bits(&apart), "a packed weight");
        matmul_plain(&x, rows, &plain, &mut on_the_way, ep);
        prop_assert!(bits(&on_the_way) == bits(&apart), "a plain weight");
        if !accumulate {
            prop_assert!(bits(&matmul_new(&x, rows, &packed, ep)) == bits(&apart), "new memory");
            prop_assert!(bits(&matmul_plain_new(&x, rows, &plain, ep)) == bits(&apart), "new memory, a plain weight");
        }
    }

    #[test]
    fn halves_give_the_bits_that_f32_gives(
        rows in 0usize..40, n in 0usize..90, k in 0usize..70, seed in 0u64..1000, with_bias: bool, accumulate: bool,
    ) {
        let w: Vec<f32> = random(n * k, seed).into_iter().map(|v| bf16::from_f32(v).to_f32()).collect();
        let (x, bias, old) = (random(rows * k, seed + 1), random(n, seed + 2), random(rows * n, seed + 3));
        let ep = Epilogue { bias: with_bias.then_some(&bias[..]), scale: 0.75, accumulate, ..Epilogue::default() };
        let product = |packed: &Packed| {
            let mut y = old.clone();
            matmul(&x, rows, packed, &mut y, ep);
            bits(&y)
        };
        let full = product(&Packed::new(&w, n, k, Layout::RowMajor, Precision::F32));
        for (layout, w) in [(Layout::RowMajor, w.clone()), (Layout::Transposed, transposed(&w, n, k))] {
            prop_assert!(product(&Packed::halves(&w, n, k, layout)) == full, "halves show in the bits");
        }
        let packed = Packed::halves(&w, n, k, Layout::RowMajor);
        for (j, expected) in w.chunks_exact(k.max(1)).enumerate() {
            let mut row = vec![0.0; k];
            packed.row(j, &mut row);
            prop_assert!(bits(&row) == bits(expected), "row {j}");
        }
    }

    #[test]
    fn a_transposed_product_equals_its_scalar_twin(
        t in 0usize..90, n in 0usize..40, k in 0usize..90, seed in 0u64..1000, precision in precisions(), accumulate: bool,
    ) {
        let (a, b, old) = (random(t * n, seed), random(t * k, seed + 1), random(n * k, seed + 2));
        let product = product(&transposed(&a, t, n), &transposed(&b, t, k), [n, k, t], precision);
        let expected: Vec<f64> = product.iter().zip(&old).map(|(p, o)| 0.25 * p + if accumulate { f64::from(*o) } else { 0.0 }).collect();
        let mut c = old.clone();
        matmul_tn(&a, &b, t, n, k, &mut c, 0.25, accumulate, precision);
        assert_close("c", &c, &expected, 3e-5);
    }
}

/// One row of a product, computed alone.
fn alone(x: &[f32], w: &Packed, bias: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; w.n()];
    matmul(x, 1, w, &mut y, Epilogue { bias: Some(bias), ..Epilogue::default() });
    y
}

#[test]
fn a_row_has_the_same_bits_in_every_crowd_and_on_any_number_of_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        // K beyond a slice and odd; N with a panel of one vector, with padding, and beyond one chunk.
        for (n, k) in [(8, 384), (70, 601), (200, 17), (333, 1025), (1, 300)] {
            let (w, bias) = (random(n * k, 5), random(n, 6));
            let packed = Packed::new(&w, n, k, Layout::RowMajor, precision);
            let x = random(200 * k, 7);
            let one_by_one: Vec<f32> = x.chunks_exact(k).flat_map(|row| alone(row, &packed, &bias)).collect();
            let expected = product(&x, &w, [200, n, k], precision);
            let expected: Vec<f64> = expected.iter().enumerate().map(|(i, p)| p + f64::from(bias[i % n])).collect();
            assert_close("y", &one_by_one, &expected, 1e-4);
            for rows in [1, 2, 3, 4, 5, 7, 12, 13, 17, 31, 64, 97, 200] {
                let start = 200 - rows;
                let y = on_any_threads(|| {
                    let mut y = vec![0.0; rows * n];
                    matmul(&x[start * k..], rows, &packed, &mut y, Epilogue { bias: Some(&bias), ..Epilogue::default() });
                    y
                });
                assert_eq!(bits(&y), bits(&one_by_one[start * n..]), "{precision:?} n {n} k {k}: {rows} rows");
            }
        }
    }
}

#[test]
fn a_transposed_product_has_the_same_bits_on_any_number_of_threads() {
    for precision in [Precision::F32, Precision::Bf16] {
        // Several slices of rows, of which the last is odd; results beyond one block, to either side.
        for (t, n, k) in [(1131, 203, 417), (37, 2101, 33), (37, 33, 2101)] {
            let (a, b) = (random(t * n, 1), random(t * k, 2));
            let expected = product(&transposed(&a, t, n), &transposed(&b, t, k), [n, k, t], precision);
            for (accumulate, old) in [(false, 0.0), (true, 1.0)] {
                let c = on_any_threads(|| {
                    let mut c = vec![1.0; n * k];
                    matmul_tn(&a, &b, t, n, k, &mut c, 0.5, accumulate, precision);
                    c
                });
                let expected: Vec<f64> = expected.iter().map(|p| old + 0.5 * p).collect();
                assert_close("c", &c, &expected, 1e-4);
            }
        }
    }
}

#[test]
fn a_weight_that_is_packed_on_the_way_gives_the_bits_of_one_packed_before() {
    // Several slices of K, several blocks of rows, a last panel of one column, a last slice of an odd length; then several pieces.
    for (rows, n, k) in [(203, 97, 1283), (5, 2209, 1283)] {
        let (x, w) = (random(rows * k, 1), random(n * k, 2));
        for precision in [Precision::F32, Precision::Bf16] {
            for layout in [Layout::RowMajor, Layout::Transposed] {
                on_any_threads(|| {
                    let (mut packed, mut plain) = (vec![0.0; rows * n], vec![0.0; rows * n]);
                    matmul(&x, rows, &Packed::new(&w, n, k, layout, precision), &mut packed, Epilogue::default());
                    matmul_plain(&x, rows, &Plain::new(&w, n, k, layout, precision), &mut plain, Epilogue::default());
                    assert_eq!(bits(&packed), bits(&plain), "{precision:?} {layout:?} n {n}");
                    plain
                });
            }
        }
    }
}

#[test]
fn a_weight_repacked_in_place_equals_one_packed_anew() {
    let (n, k) = (75, 51);
    let (old, new, x) = (random(n * k, 1), random(n * k, 2), random(9 * k, 3));
    for precision in [Precision::F32, Precision::Bf16] {
        for layout in [Layout::RowMajor, Layout::Transposed] {
            let mut packed = Packed::new(&old, n, k, layout, precision);
            packed.repack(&new);
            let run = |w: &Packed| {
                let mut y = vec![0.0; 9 * n];
                matmul(&x, 9, w, &mut y, Epilogue::default());
                bits(&y)
            };
            assert_eq!(run(&packed), run(&Packed::new(&new, n, k, layout, precision)));
        }
    }
}

#[test]
fn padding_beside_a_narrow_weight_never_reaches_the_result_even_if_a_neighbour_row_is_nan() {
    let (n, k) = (5, 33);
    let packed = Packed::new(&random(n * k, 1), n, k, Layout::RowMajor, Precision::F32);
    let mut x = random(14 * k, 2);
    x[13 * k..].fill(f32::NAN);
    let mut y = vec![0.0; 14 * n];
    matmul(&x, 14, &packed, &mut y, Epilogue::default());
    assert!(y[..13 * n].iter().all(|v| v.is_finite()));
    assert!(y[13 * n..].iter().all(|v| v.is_nan()), "a NaN must reach its own row");
}

#[test]
#[should_panic(expected = "matmul: x has 5 elements, [2, 3] needs 6")]
fn a_slice_of_the_wrong_length_is_refused_with_both_numbers() {
    let packed = Packed::new(&[0.0; 12], 4, 3, Layout::RowMajor, Precision::F32);
    matmul(&[0.0; 5], 2, &packed, &mut [0.0; 8], Epilogue::default());
}
