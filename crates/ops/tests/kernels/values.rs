//! Numbers for the tests: reproducible, in a range where f32 sums of a few thousand terms stay comparable.

use proptest::prelude::ProptestConfig;
use tunesmith_ops::threads::build_pool;

/// A property's settings: `usual` cases, or what PROPTEST_CASES says where a tool makes each of them slow.
pub fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// `n` values in −1 .. 1 that depend on the seed.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Where sequences of these lengths begin, and where the last ends.
pub fn borders(lengths: &[usize]) -> Vec<u32> {
    std::iter::once(0)
        .chain(lengths.iter().scan(0, |sum, &l| {
            *sum += l as u32;
            Some(*sum)
        }))
        .collect()
}

/// The bits of each value.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Runs `work` on pools of 1, 2 and 3 threads and returns the result after checking that all three agree bit for bit.
pub fn on_any_threads(work: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    let run = |threads| build_pool(threads).unwrap().install(&work);
    let one = run(1);
    for threads in [2, 3] {
        assert_eq!(bits(&one), bits(&run(threads)), "{threads} threads give other bits than one");
    }
    one
}

/// Panics unless every |a − b| is at most `tolerance`.
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(g) - e).abs() <= tolerance, "{what}[{i}]: {g} is not {e} within {tolerance}");
    }
}

/// Checks a gradient against finite differences: `loss` takes the inputs in f64, `at` are the inputs, `gradient` its claimed
/// slope along each of them.
pub fn assert_gradient(what: &str, loss: impl Fn(&[f64]) -> f64, at: &[f32], gradient: &[f32], tolerance: f64) {
    let mut x: Vec<f64> = at.iter().map(|&v| f64::from(v)).collect();
    for i in 0..x.len() {
        const STEP: f64 = 1e-5;
        let here = x[i];
        x[i] = here + STEP;
        let above = loss(&x);
        x[i] = here - STEP;
        let below = loss(&x);
        x[i] = here;
        let slope = (above - below) / (2.0 * STEP);
        let got = f64::from(gradient[i]);
        assert!((got - slope).abs() <= tolerance * (1.0 + slope.abs()), "{what}[{i}]: gradient {got}, finite difference {slope}");
    }
}
