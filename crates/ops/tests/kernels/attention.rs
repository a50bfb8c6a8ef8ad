//! Attention: right against f64, gradients against finite differences, and a row's bits independent of its batch.

use crate::values::{assert_close, assert_gradient, bits, borders, cases, on_any_threads, random};
use proptest::prelude::*;
use tunesmith_ops::attention::{AttentionDropout, AttentionSpec, attention, attention_backward};
use tunesmith_ops::dropout::DropoutKey;
use tunesmith_ops::matmul::Precision;

/// The scalar twin: out `[t, heads · head_dim]` and lse `[heads, t]`, in f64.
fn twin(q: &[f64], k: &[f64], v: &[f64], spec: &AttentionSpec) -> (Vec<f64>, Vec<f64>) {
    let (dim, width) = (spec.head_dim, spec.heads * spec.head_dim);
    let tokens = q.len() / width;
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; spec.heads * tokens]);
    for sequence in spec.cu_seqlens.windows(2) {
        let (start, end) = (sequence[0] as usize, sequence[1] as usize);
        for head in 0..spec.heads {
            for i in start..end {
                let last = if spec.causal { i + 1 } else { end };
                let at = |row: usize| row * width + head * dim;
                let scores: Vec<f64> =
                    (start..last).map(|j| f64::from(spec.scale) * (0..dim).map(|d| q[at(i) + d] * k[at(j) + d]).sum::<f64>()).collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                lse[head * tokens + i] = sum.ln();
                for (column, score) in scores.iter().enumerate() {
                    let keep = match &spec.dropout {
                        Some(d) if d.key.row(d.row_ids[i], head as u32).column(column as u32) < d.key.threshold() => 0.0,
                        Some(d) => f64::from(d.key.keep_scale()),
                        None => 1.0,
                    };
                    let p = score.exp() / sum * keep;
                    for d in 0..dim {
                        out[at(i) + d] += p * v[at(start + column) + d];
                    }
                }
            }
        }
    }
    (out, lse)
}

fn run(x: &[f32], spec: &AttentionSpec) -> (Vec<f32>, Vec<f32>) {
    let n = x.len() / 3;
    attention(&x[..n], &x[n..2 * n], &x[2 * n..], spec).into()
}

fn gradients(x: &[f32], dout: &[f32], spec: &AttentionSpec) -> Vec<f32> {
    let n = x.len() / 3;
    let (q, k, v) = (&x[..n], &x[n..2 * n], &x[2 * n..]);
    let (out, lse) = run(x, spec);
    attention_backward(q, k, v, [&out, &lse], dout, spec).concat()
}

/// q, k and v of sequences of these lengths.
fn qkv(lengths: &[usize], width: usize, seed: u64) -> Vec<f32> {
    random(3 * lengths.iter().sum::<usize>() * width, seed)
}

/// As many key heads as query heads, no window, no cap.
fn plain<'a>(
    cu_seqlens: &'a [u32],
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
    dropout: Option<AttentionDropout<'a>>,
) -> AttentionSpec<'a> {
    AttentionSpec {
        cu_seqlens,
        heads,
        kv_heads: heads,
        head_dim,
        scale,
        causal,
        window: None,
        softcap: None,
        dropout,
        precision: Precision::F32,
    }
}

const KEY: DropoutKey = DropoutKey { seed: 11, step: 4, site: 7, p: 0.25 };

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn attention_equals_its_scalar_twin(
        lengths in prop::collection::vec(prop_oneof![0usize..40, 120usize..140, 250usize..260], 1..4),
        heads in 1usize..3, dim in prop_oneof![1usize..20, Just(32), Just(64), 65usize..80],
        causal: bool, drop: bool, seed in 0u64..1000,
    ) {
        let cu = borders(&lengths);
        let x = qkv(&lengths, heads * dim, seed);
        let ids: Vec<u64> = (0..x.len() as u64 / (3 * heads * dim) as u64).map(|i| i * 31 + seed).collect();
        let spec = plain(&cu, heads, dim, 0.7, causal, drop.then_some(AttentionDropout { key: KEY, row_ids: &ids }));
        let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        let n = wide.len() / 3;
        let (out, lse) = run(&x, &spec);
        let (expected_out, expected_lse) = twin(&wide[..n], &wide[n..2 * n], &wide[2 * n..], &spec);
        assert_close("out", &out, &expected_out, 3e-5);
        assert_close("lse", &lse, &expected_lse, 3e-5);
    }

    #[test]
    fn gradients_agree_with_finite_differences(
        lengths in prop::collection::vec(1usize..14, 1..3), heads in 1usize..3, dim in 1usize..9, causal: bool, drop: bool, seed in 0u64..1000,
    ) {
        check_gradients(&lengths, heads, dim, causal, drop, seed);
    }
}

fn check_gradients(lengths: &[usize], heads: usize, dim: usize, causal: bool, drop: bool, seed: u64) {
    let cu = borders(lengths);
    let x = qkv(lengths, heads * dim, seed);
    let n = x.len() / 3;
    let ids: Vec<u64> = (0..(n / (heads * dim)) as u64).collect();
    let spec = plain(&cu, heads, dim, 1.3, causal, drop.then_some(AttentionDropout { key: KEY, row_ids: &ids }));
    let dout = random(n, seed + 9);
    let loss = |x: &[f64]| -> f64 {
        let (out, _) = twin(&x[..n], &x[n..2 * n], &x[2 * n..], &spec);
        out.iter().zip(&dout).map(|(o, &d)| o * f64::from(d)).sum()
    };
    assert_gradient("dq, dk, dv", loss, &x, &gradients(&x, &dout, &spec), 2e-4);
}

#[test]
fn gradients_are_right_across_the_borders_of_key_and_query_blocks() {
    // Few dimensions, since every element costs two evaluations of the twin.
    for causal in [false, true] {
        check_gradients(&[131], 1, 1, causal, true, 3);
    }
}

fn dropping<'a>([heads, head_dim]: [usize; 2], causal: bool, cu_seqlens: &'a [u32], row_ids: &'a [u64]) -> AttentionSpec<'a> {
    plain(cu_seqlens, heads, head_dim, 0.2, causal, Some(AttentionDropout { key: KEY, row_ids }))
}

/// Checks that each sequence has the bits that it has alone, and all of them on any number of threads.
fn check_bits(lengths: &[usize], shape: [usize; 2], causal: bool, precision: Precision) {
    let (width, cu) = (shape[0] * shape[1], borders(lengths));
    let tokens = lengths.iter().sum::<usize>();
    let (x, dout, ids) = (qkv(lengths, width, 1), random(tokens * width, 2), (0..tokens as u64).collect::<Vec<_>>());
    let spec = AttentionSpec { precision, ..dropping(shape, causal, &cu, &ids) };
    let (all, all_gradients) = (on_any_threads(|| run(&x, &spec).0), on_any_threads(|| gradients(&x, &dout, &spec)));
    for (i, &len) in lengths.iter().enumerate() {
        let rows = cu[i] as usize..cu[i + 1] as usize;
        let part = |x: &[f32], which: usize| x[(which * tokens + rows.start) * width..(which * tokens + rows.end) * width].to_vec();
        let parts = |x: &[f32]| (0..3).flat_map(|which| part(x, which)).collect::<Vec<f32>>();
        let own_cu = borders(&[len]);
        let own_spec = AttentionSpec { precision, ..dropping(shape, causal, &own_cu, &ids[rows.clone()]) };
        let own = parts(&x);
        assert_eq!(bits(&run(&own, &own_spec).0), bits(&part(&all, 0)), "length {len}, causal {causal}, {precision:?}");
        let (got, expected) = (gradients(&own, &part(&dout, 0), &own_spec), parts(&all_gradients));
        assert_eq!(bits(&got), bits(&expected), "gradients, length {len}, causal {causal}, {precision:?}");
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_crowd_and_on_any_number_of_threads() {
    for shape in [[2, 32], [1, 64], [3, 20]] {
        for causal in [false, true] {
            check_bits(&[5, 1, 130, 33, 64, 300, 2], shape, causal, Precision::F32);
        }
    }
    check_bits(&[5, 131, 64, 257], [2, 36], true, Precision::Bf16);
}

#[test]
fn a_nan_in_one_sequence_stays_there() {
    let (lengths, width) = ([20, 20], 32);
    let (x, cu) = (qkv(&lengths, width, 1), borders(&lengths));
    let spec = plain(&cu, 1, 32, 0.2, false, None);
    let clean = run(&x, &spec).0;
    let mut broken = x;
    let n = 40 * width;
    for tensor in 0..3 {
        broken[tensor * n + 20 * width..][..width].fill(f32::NAN);
    }
    let out = run(&broken, &spec).0;
    assert_eq!(bits(&out[..20 * width]), bits(&clean[..20 * width]));
    assert!(out[20 * width..].iter().all(|v| v.is_nan()), "every query of the second sequence sees the NaN");
}

#[test]
fn large_scores_do_not_overflow() {
    let cu = [0, 150];
    let spec = plain(&cu, 1, 4, 1.0, false, None);
    let x: Vec<f32> = qkv(&[150], 4, 2).iter().map(|v| v * 40.0).collect();
    let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let n = wide.len() / 3;
    // The twin exponentiates without a maximum, so its range is what f64 has: scores reach 4 · 1600 at most, far beyond f32's 88.
    let shift = |q: &[f64]| q.iter().map(|v| v / 16.0).collect::<Vec<_>>();
    let (out, _) = run(&x.iter().enumerate().map(|(i, v)| if i < n { v / 16.0 } else { *v }).collect::<Vec<_>>(), &spec);
    let (expected, _) = twin(&shift(&wide[..n]), &wide[n..2 * n], &wide[2 * n..], &spec);
    assert_close("out", &out, &expected, 2e-2);
}

#[test]
#[should_panic(expected = "attention: k has 12 elements, [4, 4] needs 16")]
fn a_tensor_of_the_wrong_length_is_refused_by_name() {
    let spec = plain(&[0, 4], 1, 4, 1.0, false, None);
    attention(&[0.0; 16], &[0.0; 12], &[0.0; 16], &spec);
}
