//! Layer normalisation: right against f64, gradients against finite differences, and a row's bits independent of its batch.

use crate::values::{assert_close, assert_gradient, bits, cases, on_any_threads, random};
use proptest::prelude::*;
use tunesmith_ops::norm::{layer_norm, layer_norm_backward};

const EPS: f32 = 1e-5;

/// The scalar twin over rows of `dim`.
fn twin(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let dim = gamma.len();
    let mut y = Vec::new();
    for row in x.chunks_exact(dim) {
        let mean = row.iter().sum::<f64>() / dim as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
        let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
        y.extend(row.iter().enumerate().map(|(c, v)| (v - mean) * rstd * gamma[c] + beta[c]));
    }
    y
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

fn forward(x: &[f32], gamma: &[f32], beta: &[f32]) -> [Vec<f32>; 2] {
    layer_norm(x, gamma, beta, EPS, gamma.len())
}

/// dx, dgamma and dbeta one after another; the parameters' gradients are added to `old`.
fn gradients(x: &[f32], dy: &[f32], gamma: &[f32], beta: &[f32], old: f32) -> Vec<f32> {
    let dim = gamma.len();
    let [_, stats] = forward(x, gamma, beta);
    let (mut dgamma, mut dbeta) = (vec![old; dim], vec![old; dim]);
    let dx = layer_norm_backward(dy, x, gamma, &stats, dim, Some(&mut dgamma), Some(&mut dbeta));
    [dx, dgamma, dbeta].concat()
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn layer_norm_equals_its_scalar_twin(rows in 0usize..70, dim in 1usize..80, seed in 0u64..1000) {
        let (x, gamma, beta) = (random(rows * dim, seed), random(dim, seed + 1), random(dim, seed + 2));
        // An offset, so that a variance computed from E[x²] − E[x]² would fail.
        let x: Vec<f32> = x.iter().map(|v| v + 20.0).collect();
        let [y, _] = forward(&x, &gamma, &beta);
        assert_close("y", &y, &twin(&wide(&x), &wide(&gamma), &wide(&beta)), if dim == 1 { 1e-5 } else { 2e-3 });
    }

    #[test]
    fn gradients_agree_with_finite_differences(rows in 1usize..5, dim in 2usize..40, seed in 0u64..1000) {
        let (x, gamma, beta, dy) = (random(rows * dim, seed), random(dim, seed + 1), random(dim, seed + 2), random(rows * dim, seed + 3));
        let n = rows * dim;
        let loss = |at: &[f64]| -> f64 {
            let y = twin(&at[..n], &at[n..n + dim], &at[n + dim..]);
            y.iter().zip(&dy).map(|(y, &d)| y * f64::from(d)).sum()
        };
        // The parameters' gradients accumulate: 1 was there before.
        let mut gradient = gradients(&x, &dy, &gamma, &beta, 1.0);
        gradient[n..].iter_mut().for_each(|g| *g -= 1.0);
        let at = [&x[..], &gamma, &beta].concat();
        // Two elements close together give a large 1/σ: compare what the row's scale allows.
        assert_gradient("dx, dgamma, dbeta", loss, &at, &gradient, 1e-3);
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_crowd_and_on_any_number_of_threads() {
    for dim in [5, 16, 100, 384] {
        let (x, dy, gamma, beta) = (random(150 * dim, 1), random(150 * dim, 2), random(dim, 3), random(dim, 4));
        let all = on_any_threads(|| forward(&x, &gamma, &beta)[0].clone());
        let all_gradients = on_any_threads(|| gradients(&x, &dy, &gamma, &beta, 0.0));
        for i in [0, 1, 31, 32, 149] {
            let row = i * dim..(i + 1) * dim;
            assert_eq!(bits(&forward(&x[row.clone()], &gamma, &beta)[0]), bits(&all[row.clone()]));
            let own = gradients(&x[row.clone()], &dy[row.clone()], &gamma, &beta, 0.0);
            assert_eq!(bits(&own[..dim]), bits(&all_gradients[row]));
        }
    }
}

#[test]
fn frozen_parameters_need_no_gradients_and_dx_is_the_same() {
    let (x, dy, gamma, beta) = (random(90, 1), random(90, 2), random(30, 3), random(30, 4));
    let [_, stats] = forward(&x, &gamma, &beta);
    let mut dbeta = vec![0.0; 30];
    let dx = layer_norm_backward(&dy, &x, &gamma, &stats, 30, None, None);
    let all = gradients(&x, &dy, &gamma, &beta, 0.0);
    assert_eq!(bits(&dx), bits(&all[..90]));
    let again = layer_norm_backward(&dy, &x, &gamma, &stats, 30, None, Some(&mut dbeta));
    assert_eq!(bits(&dx), bits(&again));
    assert_eq!(bits(&dbeta), bits(&all[120..]));
}
