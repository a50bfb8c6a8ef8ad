//! Rotary position embedding (Su et al. 2021) in the half-split form of `transformers`, with its scalings for long contexts.

use candle_core::Tensor;
use tunesmith_ops::rope::rope;

use super::ctx::Kernels;
use super::view::with_f32_mut;
use crate::error::Result;

/// How fast each pair of dimensions turns.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair, `[rotary / 2]`.
    pub inv_freq: Vec<f32>,
    /// Factor of sines and cosines: 1, or YaRN's attention factor.
    pub factor: f32,
}

impl Rope {
    /// The angles `base^(-2i/rotary)`.
    pub fn plain(base: f64, rotary: usize) -> Self {
        let inv_freq = (0..rotary / 2).map(|i| (1.0 / base.powf(2.0 * i as f64 / rotary as f64)) as f32).collect();
        Self { inv_freq, factor: 1.0 }
    }

    /// Cosines and sines of each token's position.
    pub fn table(&self, positions: &[u32]) -> RopeTable {
        let half = self.inv_freq.len();
        let (mut cos, mut sin) = (Vec::with_capacity(positions.len() * half), Vec::with_capacity(positions.len() * half));
        for position in positions {
            for freq in &self.inv_freq {
                let (s, c) = (*position as f32 * freq).sin_cos();
                cos.push(c * self.factor);
                sin.push(s * self.factor);
            }
        }
        RopeTable { cos, sin, half }
    }
}

/// The cosines and sines of a batch, `[tokens, rotary / 2]`.
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Turns each head of x `[tokens, heads·head_dim]`; on the CPU in x's memory, which nothing else may hold. `inverse` turns
    /// back, which is the backward pass.
    pub fn apply(&self, x: Tensor, head_dim: usize, inverse: bool, kernels: Kernels) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        if kernels == Kernels::Native {
            with_f32_mut(&x, |x| rope(x, width, head_dim, 2 * self.half, &self.cos, &self.sin, inverse))?;
            return Ok(x);
        }
        let table = |values: &[f32]| Tensor::from_slice(values, (tokens, 1, self.half), x.device());
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let sin = if inverse { sin.neg()? } else { sin };
        let heads = x.reshape((tokens, width / head_dim, head_dim))?;
        let (a, b) = (heads.narrow(2, 0, self.half)?, heads.narrow(2, self.half, self.half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let rest = heads.narrow(2, 2 * self.half, head_dim - 2 * self.half)?;
        Ok(Tensor::cat(&[first, second, rest], 2)?.reshape((tokens, width))?)
    }
}
