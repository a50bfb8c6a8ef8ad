//! How long a job will take on this machine, from a product timed here and now.

use std::time::{Duration, Instant};

use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Precision, matmul};

use super::prepare::Prepared;
use crate::spec::Tuning;

/// Time beside the products: attention, norms, activations, the optimiser, evaluations; seen on MiniLM.
const BESIDE_PRODUCTS: f64 = 1.5;
/// How long products are timed.
const TRIAL: Duration = Duration::from_millis(40);
/// Rows of the timed product.
const ROWS: usize = 512;

impl Prepared {
    /// Estimated seconds of training, on the current pool's threads.
    pub fn estimated_seconds(&self) -> f64 {
        // Forward, the gradient of inputs, and where weights are trained their gradient.
        let passes = match self.job.spec.tuning {
            Tuning::Full => 3.0,
            Tuning::Lora(_) => 2.1,
            Tuning::Head => 1.0,
        };
        let tokens_per_row = self.plan.train_tokens as f64 / self.plan.train_rows as f64;
        let settings = &self.job.spec.training;
        let rows_per_micro_batch = match settings.micro_batch_tokens() {
            Some(tokens) => (tokens as f64 / tokens_per_row).max(1.0),
            None => settings.per_device_train_batch_size as f64,
        };
        let rows_per_step = (rows_per_micro_batch * settings.gradient_accumulation_steps as f64).min(self.plan.train_rows as f64);
        let tokens = self.plan.total_steps as f64 * rows_per_step * tokens_per_row;
        let c = self.linear;
        tokens * 2.0 * c.elements as f64 * passes * BESIDE_PRODUCTS / rate(c.intermediate, c.hidden, self.precision)
    }
}

/// Operations per second of a product with a weight `[n, k]`.
fn rate(n: usize, k: usize, precision: Precision) -> f64 {
    let weight = Packed::new(&vec![0.5; n * k], n, k, Layout::RowMajor, precision);
    let (x, mut y) = (vec![0.5f32; ROWS * k], vec![0f32; ROWS * n]);
    let mut run = || matmul(&x, ROWS, &weight, &mut y, Epilogue::default());
    run();
    let (started, mut runs) = (Instant::now(), 0);
    while runs == 0 || started.elapsed() < TRIAL {
        run();
        runs += 1;
    }
    (runs * 2 * ROWS * n * k) as f64 / started.elapsed().as_secs_f64()
}
