//! Attention with grouped heads, windows and soft caps: right against f64, gradients against finite differences.

use crate::values::{assert_close, assert_gradient, bits, borders, cases, on_any_threads, random};
use proptest::prelude::*;
use tunesmith_ops::attention::{AttentionDropout, AttentionSpec, attention, attention_backward};
use tunesmith_ops::dropout::DropoutKey;
use tunesmith_ops::matmul::Precision;

/// The scalar twin of one causal sequence; x is q, k and v one after another.
fn twin(x: &[f64], spec: &AttentionSpec) -> Vec<f64> {
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let (q_width, kv_width) = (spec.heads * dim, spec.kv_heads * dim);
    let tokens = x.len() / (q_width + 2 * kv_width);
    let (q, rest) = x.split_at(tokens * q_width);
    let (k, v) = rest.split_at(tokens * kv_width);
    let mut out = vec![0.0; tokens * q_width];
    for head in 0..spec.heads {
        for i in 0..tokens {
            let first = spec.window.map_or(0, |w| (i + 1).saturating_sub(w));
            let kv = |j: usize, d: usize| j * kv_width + head / group * dim + d;
            let score = |j: usize| {
                let s = f64::from(spec.scale) * (0..dim).map(|d| q[i * q_width + head * dim + d] * k[kv(j, d)]).sum::<f64>();
                spec.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
            };
            let weights: Vec<f64> = (first..=i).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (j, w) in (first..=i).zip(&weights) {
                for d in 0..dim {
                    out[i * q_width + head * dim + d] += w / total * v[kv(j, d)];
                }
            }
        }
    }
    out
}

fn parts<'x>(x: &'x [f32], spec: &AttentionSpec) -> (&'x [f32], &'x [f32], &'x [f32]) {
    let tokens = x.len() / ((spec.heads + 2 * spec.kv_heads) * spec.head_dim);
    let (q, rest) = x.split_at(tokens * spec.heads * spec.head_dim);
    let (k, v) = rest.split_at(rest.len() / 2);
    (q, k, v)
}

fn run(x: &[f32], spec: &AttentionSpec) -> (Vec<f32>, Vec<f32>) {
    let (q, k, v) = parts(x, spec);
    attention(q, k, v, spec).into()
}

fn gradients(x: &[f32], dout: &[f32], spec: &AttentionSpec) -> Vec<f32> {
    let ((q, k, v), (out, lse)) = (parts(x, spec), run(x, spec));
    attention_backward(q, k, v, [&out, &lse], dout, spec).concat()
}

fn spec<'a>(
    cu: &'a [u32],
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
) -> AttentionSpec<'a> {
    AttentionSpec {
        cu_seqlens: cu,
        heads: kv_heads * group,
        kv_heads,
        head_dim,
        scale: 0.8,
        causal: true,
        window,
        softcap,
        dropout: None,
        precision: Precision::F32,
    }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn attention_equals_its_scalar_twin(
        tokens in prop_oneof![1usize..40, 120usize..140, 250usize..260], kv_heads in 1usize..3, group in 1usize..4,
        dim in prop_oneof![1usize..20, Just(64)], window in prop::option::of(1usize..200), cap in prop::option::of(0.5f32..4.0), seed in 0u64..1000,
    ) {
        let cu = [0, tokens as u32];
        let spec = spec(&cu, kv_heads, group, dim, window, cap);
        let x = random(tokens * (spec.heads + 2 * kv_heads) * dim, seed);
        let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        assert_close("out", &run(&x, &spec).0, &twin(&wide, &spec), 3e-5);
    }

    #[test]
    fn gradients_agree_with_finite_differences(
        tokens in 1usize..12, kv_heads in 1usize..3, group in 1usize..4, dim in 1usize..6,
        window in prop::option::of(1usize..8), cap in prop::option::of(0.5f32..4.0), seed in 0u64..1000,
    ) {
        let cu = [0, tokens as u32];
        let spec = spec(&cu, kv_heads, group, dim, window, cap);
        let x = random(tokens * (spec.heads + 2 * kv_heads) * dim, seed);
        let dout = random(tokens * spec.heads * dim, seed + 9);
        let loss = |x: &[f64]| twin(x, &spec).iter().zip(&dout).map(|(o, &d)| o * f64::from(d)).sum();
        assert_gradient("dq, dk, dv", loss, &x, &gradients(&x, &dout, &spec), 3e-4);
    }

    // Of operands that bf16 holds, scores are the same but for the order of their sums; probabilities and slopes are rounded on the way.
    // Slopes cancel in gradients, so these are as far apart as what was summed: values below one, and products of `dim` of them.
    #[test]
    fn bf16_is_f32_but_for_its_rounding(
        lengths in prop::collection::vec(prop_oneof![1usize..40, 120usize..140, 250usize..260], 1..3), kv_heads in 1usize..3, group in 1usize..4,
        dim in prop_oneof![1usize..20, Just(64), 65usize..80], causal: bool, window in prop::option::of(1usize..200),
        cap in prop::option::of(0.5f32..4.0), drop: bool, seed in 0u64..1000,
    ) {
        let tokens = lengths.iter().sum::<usize>();
        let cu = borders(&lengths);
        let ids: Vec<u64> = (0..tokens as u64).collect();
        let key = DropoutKey { seed, step: 4, site: 7, p: 0.25 };
        let spec = AttentionSpec { causal, window: window.filter(|_| causal), ..spec(&cu, kv_heads, group, dim, None, cap) };
        let spec = AttentionSpec { dropout: drop.then_some(AttentionDropout { key, row_ids: &ids }), ..spec };
        let rounded = |n: usize, seed: u64| random(n, seed).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<_>>();
        let (x, dout) = (rounded(tokens * (spec.heads + 2 * kv_heads) * dim, seed), rounded(tokens * spec.heads * dim, seed + 9));
        let halves = AttentionSpec { precision: Precision::Bf16, ..spec };
        let ((out, lse), (expected, expected_lse)) = (run(&x, &halves), run(&x, &spec));
        assert_close("lse", &lse, &expected_lse.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), 1e-5);
        assert_close("out", &out, &expected.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), 6e-3);
        let (got, expected) = (gradients(&x, &dout, &halves), gradients(&x, &dout, &spec));
        let largest = expected.iter().fold(0.0f32, |largest, g| largest.max(g.abs()));
        assert_close("gradients", &got, &expected.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), f64::from(largest) * 1e-2 + 3e-3 + dim as f64 * 2e-4);
    }
}

#[test]
fn gradients_are_right_across_the_borders_of_blocks() {
    let cu = [0, 140];
    for window in [Some(3), Some(130)] {
        let spec = spec(&cu, 1, 2, 1, window, Some(2.0));
        let (x, dout) = (random(140 * 4, 3), random(280, 4));
        let loss = |x: &[f64]| twin(x, &spec).iter().zip(&dout).map(|(o, &d)| o * f64::from(d)).sum();
        assert_gradient("dq, dk, dv", loss, &x, &gradients(&x, &dout, &spec), 3e-4);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let cu = [0, 70, 75, 300];
    let spec = spec(&cu, 2, 3, 20, Some(100), None);
    let (x, dout) = (random(300 * 10 * 20, 3), random(300 * 6 * 20, 4));
    let all = on_any_threads(|| gradients(&x, &dout, &spec));
    assert_eq!(bits(&all), bits(&gradients(&x, &dout, &spec)));
}
