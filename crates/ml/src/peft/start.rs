//! A new adapter, as PEFT starts one: A from a uniform distribution, B zero.

use candle_core::{DType, Tensor};

use super::targets::target_layers;
use crate::error::Result;
use crate::models::{Encoder, kaiming_uniform};
use crate::nn::{Adapter, LoraLayer, Param};
use crate::spec::LoraSpec;

impl LoraSpec {
    /// The factor of the update.
    pub fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }
}

/// The adapter that a job starts from, and the full names of its modules.
///
/// # Errors
/// If the targets match nothing.
pub fn new_adapter(encoder: &Encoder, spec: &LoraSpec, seed: u64) -> Result<(Adapter, Vec<String>)> {
    let targets = target_layers(encoder, &spec.target_modules)?;
    let device = encoder.params().next().map_or(&candle_core::Device::Cpu, |p| p.value.device());
    let mut adapter = Adapter::default();
    for linear in encoder.linears().filter(|l| targets.iter().any(|(id, _)| *id == l.id)) {
        let (out, input) = linear.shape();
        let name = |part| format!("{}.lora_{part}.weight", linear.name());
        let a = Param::new(name("A"), kaiming_uniform(&[spec.r, input], seed, &name("A"), device)?);
        let b = Param::new(name("B"), Tensor::zeros((out, spec.r), DType::F32, device)?);
        adapter.insert(linear.id, LoraLayer::new(linear.id, a, b, spec.scale() as f32, spec.lora_dropout as f32)?);
    }
    Ok((adapter, targets.into_iter().map(|(_, name)| name).collect()))
}
