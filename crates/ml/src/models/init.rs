//! Initial values of new weights, drawn by seed and name, so that a job's start depends on nothing else.

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::error::Result;

/// A SplitMix64 stream (Steele et al. 2014).
pub struct Stream(u64);

impl Stream {
    /// The stream of a seed and a name.
    pub fn new(seed: u64, name: &str) -> Self {
        let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_le_bytes(first))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, without bias that could matter (n is far below 2^64).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

/// Values from a normal distribution with mean 0 (Box & Muller 1958).
pub fn normal(shape: &[usize], std: f64, seed: u64, name: &str, device: &Device) -> Result<Tensor> {
    let mut stream = Stream::new(seed, name);
    let n: usize = shape.iter().product();
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let (radius, angle) = ((-2.0 * stream.uniform().ln()).sqrt() * std, std::f64::consts::TAU * stream.uniform());
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(n);
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// `kaiming_uniform(a = sqrt(5))` of a `[out, in]` weight, as PEFT draws LoRA's A: uniform in ±1/sqrt(in).
pub fn kaiming_uniform(shape: &[usize], seed: u64, name: &str, device: &Device) -> Result<Tensor> {
    let mut stream = Stream::new(seed, name);
    let bound = 1.0 / (shape[shape.len() - 1] as f64).sqrt();
    let n: usize = shape.iter().product();
    let values = (0..n).map(|_| ((stream.uniform() * 2.0 - 1.0) * bound) as f32).collect::<Vec<_>>();
    Ok(Tensor::from_vec(values, shape, device)?)
}
