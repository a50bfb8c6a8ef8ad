//! What decoders need beside attention: RMS norm, rotation, gates, soft caps, cross-entropy; right against f64.

use crate::values::{assert_close, assert_gradient, bits, cases, on_any_threads, random};
use proptest::prelude::*;
use tunesmith_ops::activation::Activation;
use tunesmith_ops::cross_entropy::cross_entropy;
use tunesmith_ops::elementwise::{softcap, softcap_backward};
use tunesmith_ops::glu::{gated, gated_backward};
use tunesmith_ops::norm::{rms_norm, rms_norm_backward};
use tunesmith_ops::rope::rope;

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

fn norm_twin(x: &[f64], gamma: &[f64], offset: f64) -> Vec<f64> {
    x.chunks_exact(gamma.len())
        .flat_map(|row| {
            let rstd = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + 1e-5).sqrt();
            row.iter().zip(gamma).map(move |(v, g)| v * rstd * (offset + g)).collect::<Vec<_>>()
        })
        .collect()
}

fn norm(x: &[f32], gamma: &[f32], offset: f32) -> [Vec<f32>; 2] {
    rms_norm(x, gamma, offset, 1e-5, gamma.len())
}

fn norm_gradients(x: &[f32], dy: &[f32], gamma: &[f32], offset: f32) -> Vec<f32> {
    let [_, rstd] = norm(x, gamma, offset);
    let mut dgamma = vec![1.0; gamma.len()];
    let dx = rms_norm_backward(dy, x, gamma, offset, &rstd, gamma.len(), Some(&mut dgamma));
    // The gain's gradient accumulates: 1 was there before.
    dgamma.iter_mut().for_each(|g| *g -= 1.0);
    [dx, dgamma].concat()
}

fn gate_twin(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn rms_norm_and_its_gradients_are_right(rows in 1usize..70, dim in 1usize..80, offset in prop_oneof![Just(0.0f32), Just(1.0)], seed in 0u64..1000) {
        let (x, gamma) = (random(rows * dim, seed), random(dim, seed + 1));
        assert_close("y", &norm(&x, &gamma, offset)[0], &norm_twin(&wide(&x), &wide(&gamma), f64::from(offset)), 1e-4);
        if rows <= 4 && dim > 1 {
            let (n, dy) = (rows * dim, random(rows * dim, seed + 2));
            let loss = |at: &[f64]| norm_twin(&at[..n], &at[n..], f64::from(offset)).iter().zip(&dy).map(|(y, &d)| y * f64::from(d)).sum();
            assert_gradient("dx, dgamma", loss, &[&x[..], &gamma].concat(), &norm_gradients(&x, &dy, &gamma, offset), 1e-3);
        }
    }

    #[test]
    fn a_rotation_is_right_and_turns_back(tokens in 0usize..40, heads in 1usize..4, half in 1usize..20, rest in 0usize..5, seed in 0u64..1000) {
        let (dim, width) = (2 * half + rest, heads * (2 * half + rest));
        let x = random(tokens * width, seed);
        let angles = random(tokens * half, seed + 1);
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (3.0 * a).sin_cos()).unzip();
        let mut y = x.clone();
        rope(&mut y, width, dim, 2 * half, &cos, &sin, false);
        let twin: Vec<f64> = (0..x.len()).map(|at| {
            let (t, d) = (at / width, at % width % dim);
            let value = |at: usize| f64::from(x[at]);
            let angle = |i: usize| (f64::from(cos[t * half + i]), f64::from(sin[t * half + i]));
            match d {
                d if d < half => { let (c, s) = angle(d); value(at) * c - value(at + half) * s }
                d if d < 2 * half => { let (c, s) = angle(d - half); value(at) * c + value(at - half) * s }
                _ => value(at),
            }
        }).collect();
        assert_close("y", &y, &twin, 1e-6);
        rope(&mut y, width, dim, 2 * half, &cos, &sin, true);
        assert_close("x", &y, &wide(&x), 1e-6);
    }

    #[test]
    fn gates_and_their_gradients_are_right(n in 1usize..60, seed in 0u64..1000) {
        let (gate, up, dy) = (random(n, seed), random(n, seed + 1), random(n, seed + 2));
        assert_close("y", &gated(Activation::Silu, &gate, &up), &gate_twin(&wide(&gate), &wide(&up)), 1e-6);
        let (mut dgate, mut dup) = (gate.clone(), up.clone());
        gated_backward(Activation::Silu, &mut dgate, &mut dup, &dy);
        let loss = |at: &[f64]| gate_twin(&at[..n], &at[n..]).iter().zip(&dy).map(|(y, &d)| y * f64::from(d)).sum();
        assert_gradient("dgate, dup", loss, &[gate, up].concat(), &[dgate, dup].concat(), 1e-4);
    }

    #[test]
    fn cross_entropy_and_its_gradient_are_right(rows in 1usize..5, vocab in 1usize..70, seed in 0u64..1000) {
        let logits: Vec<f32> = random(rows * vocab, seed).iter().map(|v| v * 5.0).collect();
        let targets: Vec<u32> = (0..rows).map(|i| (seed as usize * 7 + i * 13) as u32 % vocab as u32).collect();
        let weights = random(rows, seed + 1);
        let loss_of = |row: &[f64], target: u32| row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[target as usize];
        let (mut x, mut losses, mut best) = (logits.clone(), vec![0.0; rows], vec![0; rows]);
        cross_entropy(&mut x, vocab, &targets, &weights, &mut losses, &mut best, false);
        prop_assert_eq!(bits(&x), bits(&logits), "without a gradient the logits stay");
        let twin: Vec<f64> = wide(&logits).chunks_exact(vocab).zip(&targets).map(|(row, t)| loss_of(row, *t)).collect();
        assert_close("losses", &losses, &twin, 1e-5);
        for (row, best) in logits.chunks_exact(vocab).zip(&best) {
            prop_assert!(row.iter().all(|v| *v <= row[*best as usize]));
        }
        cross_entropy(&mut x, vocab, &targets, &weights, &mut losses, &mut best, true);
        let loss = |at: &[f64]| at.chunks_exact(vocab).zip(&targets).zip(&weights).map(|((row, t), w)| loss_of(row, *t) * f64::from(*w)).sum();
        assert_gradient("dlogits", loss, &logits, &x, 1e-4);
    }

    #[test]
    fn soft_caps_and_their_gradients_are_right(n in 1usize..60, cap in 0.5f32..30.0, seed in 0u64..1000) {
        let x: Vec<f32> = random(n, seed).iter().map(|v| v * 20.0).collect();
        let capped = |v: &f64| f64::from(cap) * (v / f64::from(cap)).tanh();
        let mut y = x.clone();
        softcap(&mut y, cap);
        assert_close("y", &y, &wide(&x).iter().map(capped).collect::<Vec<_>>(), 1e-5 * f64::from(cap));
        let mut dx = vec![1.0; n];
        softcap_backward(&y, &mut dx, cap);
        assert_gradient("dx", |at| at.iter().map(capped).sum(), &x, &dx, 1e-4);
    }
}

#[test]
fn a_row_of_a_norm_has_the_same_bits_in_every_crowd_and_on_any_number_of_threads() {
    for dim in [5, 16, 100, 576] {
        let (x, dy, gamma) = (random(150 * dim, 1), random(150 * dim, 2), random(dim, 3));
        let all = on_any_threads(|| norm(&x, &gamma, 1.0)[0].clone());
        let all_gradients = on_any_threads(|| norm_gradients(&x, &dy, &gamma, 1.0));
        for i in [0, 1, 31, 32, 149] {
            let row = i * dim..(i + 1) * dim;
            assert_eq!(bits(&norm(&x[row.clone()], &gamma, 1.0)[0]), bits(&all[row.clone()]));
            let own = norm_gradients(&x[row.clone()], &dy[row.clone()], &gamma, 1.0);
            assert_eq!(bits(&own[..dim]), bits(&all_gradients[row]));
        }
    }
}

#[test]
fn the_first_of_equal_logits_is_the_best_and_a_nan_shows() {
    let (mut losses, mut best) = ([0.0; 2], [9; 2]);
    let mut logits = [1.0, 3.0, 3.0, 0.0, f32::NAN, 0.0, 0.0, 0.0];
    cross_entropy(&mut logits, 4, &[1, 1], &[1.0, 1.0], &mut losses, &mut best, true);
    assert_eq!(best[0], 1);
    assert!(losses[1].is_nan());
}

#[test]
fn the_best_of_a_large_vocabulary_is_found_wherever_it_stands() {
    for vocab in [255, 256, 1000] {
        for at in [0, 1, 254, vocab / 2, vocab - 1] {
            let mut logits = random(vocab, 3);
            logits[at] = 2.0;
            logits[vocab - 1] = 2.0;
            let (mut losses, mut best) = ([0.0], [9]);
            cross_entropy(&mut logits, vocab, &[0], &[1.0], &mut losses, &mut best, false);
            assert_eq!(best[0] as usize, at);
        }
    }
}
