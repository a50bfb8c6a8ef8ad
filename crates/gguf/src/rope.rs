//! Position encodings: `rope_theta` and `rope_scaling` of config.json from the metadata, or from the factors that a file keeps instead.
//!
//! `config` calls this. Llama 3's scaling is not in the metadata: llama.cpp's converter computes a factor for each pair of dimensions
//! and stores those as `rope_freqs.weight`, so the four numbers behind them are found again and then proved by the factors.

use serde_json::{Value as Json, json};

use crate::error::{Result, unsupported};
use crate::file::GgufFile;

/// What every published Llama 3 has as `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: u64 = 8192;

impl GgufFile {
    /// `rope_theta`.
    pub(crate) fn rope_base(&self) -> f64 {
        self.number("rope.freq_base").unwrap_or(10_000.0)
    }

    /// `rope_scaling`, where there is any.
    pub(crate) fn rope_scaling(&self, head_dim: usize) -> Result<Option<Json>> {
        if self.raw("rope_freqs.weight").is_some() {
            let (_, factors) = self.dequantise("rope_freqs.weight")?;
            if factors.len() != head_dim / 2 {
                return unsupported(format!("rope_freqs.weight has {} factors for heads of {head_dim} dimensions", factors.len()));
            }
            return llama3(&factors, self.rope_base());
        }
        let kind = self.text(&format!("{}.rope.scaling.type", self.architecture())).unwrap_or("none");
        // Files of before August 2023 have only a linear scale.
        let old = self.number("rope.scale_linear").filter(|factor| *factor != 1.0);
        let factor = self.number("rope.scaling.factor");
        match (kind, factor.or(old)) {
            ("none" | "", _) if old.is_none() => Ok(None),
            ("none" | "" | "linear", Some(factor)) => Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
            ("yarn", Some(factor)) => {
                if self.number("rope.scaling.attn_factor").is_some_and(|f| f != 1.0) {
                    return unsupported("rope.scaling.attn_factor is not supported");
                }
                let mut yarn = json!({"rope_type": "yarn", "factor": factor});
                if let Some(original) = self.count("rope.scaling.original_context_length")? {
                    yarn["original_max_position_embeddings"] = json!(original);
                }
                for (name, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                    if let Some(value) = self.number(&format!("rope.scaling.{key}")) {
                        yarn[name] = json!(value);
                    }
                }
                Ok(Some(yarn))
            }
            ("linear" | "yarn", None) => unsupported(format!("rope.scaling.type is {kind:?}, and rope.scaling.factor is missing")),
            (other, _) => unsupported(format!("rope.scaling.type {other:?} is not supported; supported: none, linear, yarn")),
        }
    }
}

/// Llama 3's scaling behind its factors; nothing where they change nothing.
fn llama3(factors: &[f32], base: f64) -> Result<Option<Json>> {
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    for (i, found) in factors.iter().enumerate() {
        let wavelength = std::f64::consts::TAU * base.powf(i as f64 / factors.len() as f64);
        let smooth = ((ORIGINAL as f64 / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        let close = (expected - f64::from(*found)).abs() <= 1e-2 * expected;
        if !close {
            return unsupported(format!("rope_freqs.weight[{i}] is {found}, and Llama 3's scaling has {expected:.3} there"));
        }
    }
    Ok((factor > 1.0).then(|| {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL,
        })
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As `transformers` computes them, for heads of 64 dimensions.
    fn factors(factor: f64) -> Vec<f32> {
        let pair = |i: usize| {
            let wavelength = std::f64::consts::TAU * 500_000f64.powf(i as f64 / 32.0);
            if wavelength < 8192.0 / 4.0 {
                return 1.0;
            }
            if wavelength > 8192.0 {
                return factor as f32;
            }
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        (0..32).map(pair).collect()
    }

    #[test]
    fn llama_3s_factor_is_found_again() {
        for factor in [8.0, 32.0] {
            let found = llama3(&factors(factor), 500_000.0).unwrap().unwrap();
            assert_eq!(found["factor"], factor);
            assert_eq!(found["rope_type"], "llama3");
        }
        assert_eq!(llama3(&[1.0; 32], 500_000.0).unwrap(), None);
    }

    #[test]
    fn factors_of_another_scaling_are_refused() {
        let mut other = factors(8.0);
        other[15] *= 1.5;
        assert!(llama3(&other, 500_000.0).unwrap_err().to_string().contains("rope_freqs.weight["));
        assert!(llama3(&[f32::NAN; 32], 500_000.0).is_err());
        assert!(llama3(&[f32::INFINITY; 32], 500_000.0).is_err());
    }
}
