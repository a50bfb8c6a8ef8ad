//! How fast quantised products run on this machine: one row against a plain read of the same bytes, many rows against f32.
//!
//! `cargo run -p tunesmith-ops --example quant_rate [threads]`. GB/s are of the weight's bytes, GF/s are 2·rows·n·k; the best of several
//! runs counts. Shapes that fit the last-level cache are read from there.

use rayon::prelude::*;
use std::time::Instant;
use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Precision, matmul};
use tunesmith_ops::quant::{QuantKind, QuantPacked, quant_matmul};
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

/// Blocks of varied codes with scales of 1/256.
fn blocks(kind: QuantKind, n: usize, k: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..n * k / kind.block() * kind.block_bytes()).map(|i| ((i * 7919) >> 3) as u8).collect();
    let halves: &[usize] = if kind == QuantKind::Q6_K { &[208] } else { &[0, 2] };
    for b in bytes.chunks_exact_mut(kind.block_bytes()) {
        halves.iter().for_each(|at| b[*at..at + 2].copy_from_slice(&[0, 0x1c]));
    }
    bytes
}

/// Reads all of it in as many runs as there are threads.
fn read(x: &[u64]) -> u64 {
    let run = x.len().div_ceil(rayon::current_num_threads()).max(1);
    x.par_chunks(run).map(|x| x.iter().fold(0, |a: u64, b| a.wrapping_add(*b))).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = threads::build_pool(std::env::args().nth(1).map_or(Ok(0), |v| v.parse())?)?;
    println!("{} (VNNI: {}), {} threads", cpu::kernel_set(), cpu::has_vnni(), pool.current_num_threads());
    for (n, k) in [(576, 576), (1536, 576), (49152, 576), (2048, 2048)] {
        let many = if n > 40_000 { [1, 8, 64] } else { [1, 8, 512] };
        let x: Vec<f32> = (0..many[2] * k).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
        let mut y = vec![0.0; many[2] * n];
        let rate = |rows: usize, s: f64| 2.0 * (rows * n * k) as f64 / s / 1e9;
        let packed = Packed::new(&vec![0.01; n * k], n, k, Layout::RowMajor, Precision::F32);
        let f32s = many.map(|rows| {
            let s = pool.install(|| best(|| matmul(&x[..rows * k], rows, &packed, &mut y[..rows * n], Epilogue::default())));
            rate(rows, s)
        });
        println!("{n:5} x {k:4} f32   {:6.1} GF/s of 1 row, {:6.1} of 8, {:6.1} of {}", f32s[0], f32s[1], f32s[2], many[2]);
        for kind in QuantKind::ALL.into_iter().filter(|kind| k % kind.block() == 0) {
            let w = QuantPacked::new(kind, &blocks(kind, n, k), n, k)?;
            let same = vec![1u64; w.bytes() / 8];
            let plain = pool.install(|| {
                best(|| {
                    std::hint::black_box(read(&same));
                })
            });
            let times =
                many.map(|rows| pool.install(|| best(|| quant_matmul(&x[..rows * k], rows, &w, &mut y[..rows * n], Epilogue::default()))));
            println!(
                "{n:5} x {k:4} {kind:?}  {:6.1} GF/s of 1 row ({:5.1} GB/s, a plain read {:5.1}), {:6.1} of 8, {:6.1} of {}",
                rate(1, times[0]),
                w.bytes() as f64 / times[0] / 1e9,
                w.bytes() as f64 / plain / 1e9,
                rate(8, times[1]),
                rate(many[2], times[2]),
                many[2]
            );
        }
    }
    Ok(())
}
