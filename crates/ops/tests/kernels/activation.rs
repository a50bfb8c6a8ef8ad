//! Activations: within 2·10⁻⁷ of f64, slopes against finite differences, and the same bits in every position.

use crate::values::{bits, on_any_threads, random};
use tunesmith_ops::activation::{Activation, backward, forward};
use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Plain, Precision, matmul, matmul_plain};
use tunesmith_ops::quant::{QuantPacked, quant_matmul};

const ALL: [Activation; 5] = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Tanh, Activation::Silu];

/// The error function to about 10⁻¹⁵: its series below 3, its continued fraction above.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        x.signum() * sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let tail = (1..=60).rev().fold(0.0, |f, n| f64::from(n) / 2.0 / (a + f));
        x.signum() * (1.0 - (-a * a).exp() / ((a + tail) * std::f64::consts::PI.sqrt()))
    }
}

fn twin(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

fn grid() -> Vec<f32> {
    (-40_000..=40_000).map(|i| i as f32 / 2_000.0).collect()
}

#[test]
fn values_are_within_two_parts_in_ten_million() {
    let x = grid();
    for kind in ALL {
        let mut y = vec![0.0; x.len()];
        forward(kind, &x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let expected = twin(kind, f64::from(x));
            assert!((f64::from(y) - expected).abs() <= 2e-7 * expected.abs().max(1.0), "{kind:?}({x}) = {y}, not {expected}");
        }
    }
}

#[test]
fn slopes_agree_with_finite_differences() {
    // 0.013 keeps off the corner of relu.
    let x: Vec<f32> = grid().iter().step_by(37).map(|x| x + 0.013).collect();
    let dy = random(x.len(), 4);
    for kind in ALL {
        let mut dx = vec![0.0; x.len()];
        backward(kind, &x, &dy, &mut dx);
        for ((&x, &dy), &dx) in x.iter().zip(&dy).zip(&dx) {
            let x = f64::from(x);
            let slope = (twin(kind, x + 1e-5) - twin(kind, x - 1e-5)) / 2e-5;
            assert!((f64::from(dx) - slope * f64::from(dy)).abs() <= 1e-6, "{kind:?}'({x}) · {dy} = {dx}, not {}", slope * f64::from(dy));
        }
    }
}

#[test]
fn an_element_has_the_same_bits_in_every_position_and_on_any_number_of_threads() {
    let x: Vec<f32> = random(40_003, 8).iter().map(|v| v * 6.0).collect();
    for kind in ALL {
        let whole = on_any_threads(|| {
            let mut y = vec![0.0; x.len()];
            forward(kind, &x, &mut y);
            y
        });
        for start in 0..33 {
            for len in [1, 2, 15, 16, 17, 33] {
                let mut y = vec![0.0; len];
                forward(kind, &x[start..start + len], &mut y);
                assert_eq!(bits(&y), bits(&whole[start..start + len]), "{kind:?}, {len} elements from {start}");
                let mut dx = vec![0.0; len];
                let mut more = vec![0.0; len + 7];
                backward(kind, &x[start..start + len], &x[..len], &mut dx);
                let dy: Vec<f32> = [&[1.0; 7][..], &x[..len]].concat();
                let before: Vec<f32> = [&[0.5; 7][..], &x[start..start + len]].concat();
                backward(kind, &before, &dy, &mut more);
                assert_eq!(bits(&dx), bits(&more[7..]), "{kind:?} backward, {len} elements from {start}");
            }
        }
    }
}

#[test]
fn extremes_stay_extremes_and_nan_stays_nan() {
    for kind in ALL {
        let x = [f32::NAN, 1e30, -1e30, 0.0];
        let mut y = [0.0; 4];
        forward(kind, &x, &mut y);
        assert!(y[0].is_nan(), "{kind:?}");
        let top = if kind == Activation::Tanh { 1.0 } else { 1e30 };
        let bottom = if kind == Activation::Tanh { -1.0 } else { 0.0 };
        assert_eq!((y[1], y[3]), (top, 0.0), "{kind:?}");
        assert!((y[2] - bottom).abs() <= 1e-6, "{kind:?}(−1e30) = {}", y[2]);
        let mut dx = [0.0; 4];
        backward(kind, &x, &[1.0; 4], &mut dx);
        assert!(dx[1..].iter().all(|v| v.is_finite()), "{kind:?}: {dx:?}");
    }
}

#[test]
fn a_product_that_ends_with_an_activation_has_the_bits_of_both_in_turn() {
    // Several slices of K, tiles and panels, the last of each not whole.
    let (rows, n, k) = (131, 75, 544);
    let (x, w, bias) = (random(rows * k, 1), random(n * k, 2), random(n, 3));
    for kind in ALL {
        let check = |what: &str, product: &dyn Fn(&mut [f32], Epilogue)| {
            let (mut plain, mut fused, mut expected) = (vec![0.0; rows * n], vec![0.0; rows * n], vec![0.0; rows * n]);
            let ep = Epilogue { bias: Some(&bias), ..Epilogue::default() };
            product(&mut plain, ep);
            product(&mut fused, Epilogue { activation: Some(kind), ..ep });
            forward(kind, &plain, &mut expected);
            assert_eq!(bits(&fused), bits(&expected), "{kind:?} {what}");
        };
        for precision in [Precision::F32, Precision::Bf16] {
            let packed = Packed::new(&w, n, k, Layout::RowMajor, precision);
            check("packed", &|y, ep| matmul(&x, rows, &packed, y, ep));
            check("plain", &|y, ep| matmul_plain(&x, rows, &Plain::new(&w, n, k, Layout::RowMajor, precision), y, ep));
        }
        let rounded = QuantPacked::rounded(&w, n, k).unwrap();
        check("int8", &|y, ep| quant_matmul(&x, rows, &rounded, y, ep));
    }
}
