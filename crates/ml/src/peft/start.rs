//! A new adapter, as PEFT starts one: A from a uniform distribution, B zero.

use candle_core::{DType, Device, Tensor};

use super::targets::target_layers;
use crate::error::Result;
use crate::models::kaiming_uniform;
use crate::nn::{Adapter, Linear, LoraLayer, Param};
use crate::spec::LoraSpec;

impl LoraSpec {
    /// The factor of the update.
    pub fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }
}

/// The adapter that a job starts from, on these layers of its base, and the full names of its modules.
///
/// # Errors
/// If the targets match nothing.
pub fn new_adapter(linears: &[&Linear], spec: &LoraSpec, seed: u64, device: &Device) -> Result<(Adapter, Vec<String>)> {
    let targets = target_layers(linears, &spec.target_modules)?;
    let mut adapter = Adapter::default();
    for linear in linears.iter().filter(|l| targets.iter().any(|(id, _)| *id == l.id)) {
        let (out, input) = linear.shape();
        let name = |part| format!("{}.lora_{part}.weight", linear.name());
        let a = Param::new(name("A"), kaiming_uniform(&[spec.r, input], seed, &name("A"), device)?);
        let b = Param::new(name("B"), Tensor::zeros((out, spec.r), DType::F32, device)?);
        adapter.insert(linear.id, LoraLayer::new(linear.id, a, b, spec.scale() as f32, spec.lora_dropout as f32)?);
    }
    Ok((adapter, targets.into_iter().map(|(_, name)| name).collect()))
}
