//! How fast attention out of pages runs on this machine: decoding against a plain read of the same keys and values, prefill in GF/s.
//!
//! `cargo run -p tunesmith-ops --example paged_rate [threads]`. Shapes are of SmolLM2-135M (9 heads, 3 of keys, 64 wide) and Gemma 3
//! 270M (4, 1, 256); the best of several runs counts.

use rayon::prelude::*;
use std::time::Instant;
use tunesmith_ops::paged::{PAGE, PagedSpec, paged_attention};
use tunesmith_ops::{cpu, threads};

fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (mut best, mut runs) = (f64::INFINITY, 0);
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.25 || runs < 3 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// Reads all of it in as many runs as there are threads.
fn read(x: &[u64]) -> u64 {
    let run = x.len().div_ceil(rayon::current_num_threads()).max(1);
    x.par_chunks(run).map(|x| x.iter().fold(0, |a: u64, b| a.wrapping_add(*b))).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = threads::build_pool(std::env::args().nth(1).map_or(Ok(0), |v| v.parse())?)?;
    println!("{}, {} threads", cpu::kernel_set(), pool.current_num_threads());
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (4, 1, 256), (32, 8, 128)] {
        // Sequences, rows of each, and tokens before them.
        for (sequences, rows, before) in [(1usize, 1usize, 500usize), (8, 1, 500), (1, 1, 4000), (1, 128, 0), (1, 512, 0), (1, 128, 1000)] {
            let pages = (before + rows).div_ceil(PAGE);
            // Pages that do not lie side by side.
            let all = sequences * pages;
            let step = (0..).map(|i| 2 * i + 7).find(|s| (1..all).all(|d| (d * s) % all != 0)).unwrap_or(1);
            let ids: Vec<u32> = (0..all).map(|i| (i * step % all) as u32).collect();
            let tables: Vec<&[u32]> = ids.chunks_exact(pages).collect();
            let cu_rows: Vec<u32> = (0..=sequences).map(|s| (s * rows) as u32).collect();
            let starts = vec![before as u32; sequences];
            let spec = PagedSpec {
                heads,
                kv_heads,
                head_dim,
                scale: 0.1,
                window: None,
                softcap: None,
                cu_rows: &cu_rows,
                starts: &starts,
                tables: &tables,
            };
            let kv: Vec<f32> = (0..all * PAGE * kv_heads * head_dim).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
            let v = kv.clone();
            let q: Vec<f32> = kv.iter().cycle().take(sequences * rows * heads * head_dim).copied().collect();
            let mut out = vec![0.0; q.len()];
            let time = pool.install(|| best(|| paged_attention(&q, &kv, &v, &spec, &mut out)));
            let same = vec![1u64; kv.len()];
            let plain = pool.install(|| {
                best(|| {
                    std::hint::black_box(read(&same));
                })
            });
            let seen = sequences * (0..rows).map(|r| before + r + 1).sum::<usize>();
            println!(
                "{heads:2}/{kv_heads} x {head_dim:3}, {sequences} x {rows:3} rows after {before:4}: {:9.1} us, {:6.1} GF/s, {:6.1} GB/s (a plain read {:6.1})",
                time * 1e6,
                (4 * seen * heads * head_dim) as f64 / time / 1e9,
                (kv.len() * 8) as f64 / time / 1e9,
                (kv.len() * 8) as f64 / plain / 1e9
            );
        }
    }
    Ok(())
}
