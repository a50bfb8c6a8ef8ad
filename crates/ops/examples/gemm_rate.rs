//! How fast the products run on this machine, beside the rate of a loop of multiply-adds that stays in registers.
//!
//! `cargo run -p tunesmith-ops --example gemm_rate [threads]`. Rates are 2·rows·n·k per second; the best of several runs counts.

use std::time::Instant;
use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Precision, matmul, matmul_tn};
use tunesmith_ops::{cpu, threads};

fn best(mut run: impl FnMut()) -> f64 {
    run();
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 0.4 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Multiply-adds of one thread that read and write no memory.
fn peak_of_one_thread() -> f64 {
    const ROUNDS: usize = 200_000;
    let seconds = best(|| {
        std::hint::black_box(cpu::fma_burst(std::hint::black_box(ROUNDS)));
    });
    cpu::fma_burst_flops(ROUNDS) / seconds / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(0), |v| v.parse())?;
    let pool = threads::build_pool(threads)?;
    let count = pool.current_num_threads();
    let peak = pool.install(peak_of_one_thread) * count as f64;
    println!("{} with {count} threads: register-only FMA {peak:.0} GF/s", cpu::kernel_set());
    let values = |n: usize| (0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect::<Vec<_>>();
    for precision in [Precision::F32, Precision::Bf16] {
        for (rows, k, n) in [
            (2048, 384, 1536),
            (240, 384, 1536),
            (2048, 1536, 384),
            (800, 384, 1152),
            (800, 384, 384),
            (2048, 768, 3072),
            (64, 384, 1536),
            (8, 384, 1536),
            (1, 384, 1536),
            (2048, 384, 8),
            (2048, 8, 384),
        ] {
            let (x, w) = (values(rows * k), values(n * k));
            let mut y = vec![0.0; rows * n];
            let mut packed = Packed::new(&w, n, k, Layout::RowMajor, precision);
            let time = pool.install(|| best(|| matmul(&x, rows, &packed, &mut y, Epilogue::default())));
            let repack = pool.install(|| best(|| packed.repack(&w)));
            let mut dw = vec![0.0; n * k];
            let tn = pool.install(|| best(|| matmul_tn(&y, &x, rows, n, k, &mut dw, 1.0, false, precision)));
            let rate = |s: f64| 2.0 * (rows * n * k) as f64 / s / 1e9;
            println!(
                "{precision:?} {rows:5} x {k:5} x {n:5}: {:7.1} GF/s ({:5.1} %)  tn {:7.1} GF/s ({:5.1} %)  repack {:6.2} GB/s",
                rate(time),
                100.0 * rate(time) / peak,
                rate(tn),
                100.0 * rate(tn) / peak,
                (n * k * 4) as f64 / repack / 1e9
            );
        }
    }
    Ok(())
}
