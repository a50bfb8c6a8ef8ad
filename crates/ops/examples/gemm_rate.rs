//! How fast the products run on this machine, beside the rate of a loop of multiply-adds that stays in registers: JSON lines.
//!
//! `cargo run --release -p tunesmith-ops --example gemm_rate -- [threads]`. Rates are 2·rows·n·k per second, in GF/s; `product` is
//! `x · Wᵀ` with a packed W, `product tn` a weight's gradient.

use std::time::Instant;
use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Precision, matmul, matmul_tn};
use tunesmith_ops::{burst, cpu, threads};

/// Seconds of the fastest run and of the median one.
fn times(mut run: impl FnMut()) -> (f64, f64) {
    run();
    let (mut times, begin) = (Vec::new(), Instant::now());
    while begin.elapsed().as_secs_f64() < 0.4 || times.len() < 3 {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

/// GF/s of multiply-adds that read and write no memory, on all threads at once: they may share a core's units.
fn peak(pool: &rayon::ThreadPool, precision: Precision) -> f64 {
    const ROUNDS: usize = 200_000;
    let mut flops = 0.0;
    let (best, _) = times(|| flops = pool.broadcast(|_| burst::burst(precision, std::hint::black_box(ROUNDS))).iter().sum());
    flops / best / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(0), |v| v.parse())?;
    let pool = threads::build_pool(threads)?;
    let count = pool.current_num_threads();
    let values = |n: usize| (0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect::<Vec<_>>();
    for precision in [Precision::F32, Precision::Bf16] {
        // Without a unit for it bf16 is there for its bits, not for its speed.
        if precision == Precision::Bf16 && !cpu::has_bf16() {
            continue;
        }
        let peak = peak(&pool, precision);
        let dtype = if precision == Precision::F32 { "f32" } else { "bf16" };
        for (rows, k, n) in [
            (2048, 2048, 2048),
            (1024, 1024, 1024),
            (2048, 384, 1536),
            (2048, 1536, 384),
            (2048, 768, 3072),
            (800, 384, 1152),
            (800, 384, 384),
            (240, 384, 1536),
            (64, 384, 1536),
            (8, 384, 1536),
            (1, 384, 1536),
            (2048, 384, 8),
            (2048, 8, 384),
        ] {
            let (x, w) = (values(rows * k), values(n * k));
            let mut y = vec![0.0; rows * n];
            let packed = Packed::new(&w, n, k, Layout::RowMajor, precision);
            let report = |name: &str, (best, median): (f64, f64)| {
                let rate = |s: f64| 2.0 * (rows * n * k) as f64 / s / 1e9;
                println!(
                    "{{\"name\": \"{name}\", \"unit\": \"GF/s\", \"dtype\": \"{dtype}\", \"shape\": \"{rows} x {k} x {n}\", \"best\": {:.1}, \
                     \"median\": {:.1}, \"peak\": {peak:.1}, \"threads\": {count}, \"kernels\": \"{}\"}}",
                    rate(best),
                    rate(median),
                    cpu::kernel_set()
                );
            };
            report("product", pool.install(|| times(|| matmul(&x, rows, &packed, &mut y, Epilogue::default()))));
            let mut dw = vec![0.0; n * k];
            report("product tn", pool.install(|| times(|| matmul_tn(&y, &x, rows, n, k, &mut dw, 1.0, false, precision))));
        }
    }
    Ok(())
}
