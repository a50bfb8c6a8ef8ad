//! How long the kernels beside the products take at the sizes of one MiniLM layer (800 tokens in 16 sequences).
//!
//! `cargo run --release -p tunesmith-ops --example kernel_rate [threads]`. The best of several runs counts.

use std::time::Instant;
use tunesmith_ops::activation::{self, Activation};
use tunesmith_ops::attention::{AttentionDropout, AttentionSpec, attention, attention_backward};
use tunesmith_ops::dropout::{DropoutKey, dropout};
use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Precision, matmul};
use tunesmith_ops::optim::{AdamW, adamw};
use tunesmith_ops::{cpu, elementwise, norm, threads};

fn report(what: &str, bytes: usize, mut run: impl FnMut()) {
    run();
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{what:28} {:8.3} ms {:7.1} GB/s", best * 1e3, bytes as f64 / best / 1e9);
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn all() {
    const TOKENS: usize = 800;
    const HIDDEN: usize = 384;
    let n = TOKENS * HIDDEN;
    let ids: Vec<u64> = (0..TOKENS as u64).collect();
    let key = DropoutKey { seed: 1, step: 1, site: 1, p: 0.1 };
    let (x, wide, gamma) = (values(n), values(4 * n), values(HIDDEN));
    let (mut y, mut wide_y) = (vec![0.0; n], vec![0.0; 4 * n]);
    let w = Packed::new(&values(HIDDEN * 4 * HIDDEN), 4 * HIDDEN, HIDDEN, Layout::RowMajor, Precision::F32);
    report("product 384 -> 1536", n * 20, || matmul(&x, TOKENS, &w, &mut wide_y, Epilogue::default()));
    for kind in [Activation::Gelu, Activation::GeluTanh, Activation::Tanh, Activation::Silu] {
        report(&format!("{kind:?}"), n * 32, || activation::forward(kind, &wide, &mut wide_y));
    }
    report("Gelu backward", n * 48, || activation::backward(Activation::Gelu, &wide, &wide, &mut wide_y));
    report("layer_norm", n * 8, || drop(norm::layer_norm(&x, &gamma, &gamma, 1e-5, HIDDEN)));
    let [_, stats] = norm::layer_norm(&x, &gamma, &gamma, 1e-5, HIDDEN);
    let (mut dgamma, mut dbeta) = (vec![0.0; HIDDEN], vec![0.0; HIDDEN]);
    report("layer_norm backward", n * 12, || {
        drop(norm::layer_norm_backward(&x, &x, &gamma, &stats, HIDDEN, Some(&mut dgamma), Some(&mut dbeta)));
    });
    report("dropout", n * 8, || dropout(&mut y, HIDDEN, &ids, key));
    report("add", n * 12, || elementwise::add(&x, &x, &mut y));
    report("column_sums", n * 4, || elementwise::column_sums(&x, HIDDEN, &mut dgamma));
    for (length, count) in [(50, 16), (128, 16), (512, 4)] {
        let tokens = length * count;
        let borders: Vec<u32> = (0..=count as u32).map(|i| i * length as u32).collect();
        let ids: Vec<u64> = (0..tokens as u64).collect();
        let q = values(tokens * HIDDEN);
        for (dropout, precision) in
            [(None, Precision::F32), (Some(AttentionDropout { key, row_ids: &ids }), Precision::F32), (None, Precision::Bf16)]
        {
            let spec = AttentionSpec {
                cu_seqlens: &borders,
                heads: 12,
                kv_heads: 12,
                head_dim: 32,
                scale: 0.177,
                causal: false,
                window: None,
                softcap: None,
                dropout,
                precision,
            };
            let mark = match (dropout, precision) {
                (Some(_), _) => " dropout",
                (None, Precision::F32) => "",
                (None, Precision::Bf16) => " bf16",
            };
            let flops = 4 * tokens * length * HIDDEN;
            report(&format!("attention {count}x{length}{mark} (GF/s)"), flops, || drop(attention(&q, &q, &q, &spec)));
            let [out, lse] = attention(&q, &q, &q, &spec);
            report(&format!("  backward{mark} (GF/s)"), flops * 5 / 2, || {
                drop(attention_backward(&q, &q, &q, [&out, &lse], &q, &spec));
            });
        }
    }
    let m = 4_000_000;
    let (mut w, mut g) = (values(m), values(m));
    let (mut m1, mut m2) = (vec![0.0; m], vec![0.0; m]);
    let cfg = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 3 };
    report("sum_squares, 4 M", m * 4, || assert!(elementwise::sum_squares(&g) > 0.0));
    report("adamw, 4 M weights", m * 32, || adamw(&cfg, &mut w, &mut g, 1.0, &mut m1, &mut m2));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(0), |v| v.parse())?;
    let pool = threads::build_pool(threads)?;
    println!("{} with {} threads", cpu::kernel_set(), pool.current_num_threads());
    pool.install(all);
    Ok(())
}
