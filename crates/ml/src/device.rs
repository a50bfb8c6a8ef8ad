//! Where tensors live: the CPU with our kernels, or another device with composed tensor operations.

use candle_core::Device;

use crate::error::{MlError, Result};
use crate::nn::Kernels;

/// Opens CUDA device `n`.
///
/// # Errors
/// If this binary was built without `cuda`, or there is no such device.
pub fn cuda(n: usize) -> Result<(Device, Kernels)> {
    let fail = |e: &dyn std::fmt::Display| {
        MlError::setting("device", format!("cuda:{n} cannot be used: {e}; build with `--features cuda`, or use `--device cpu`"))
    };
    Ok((Device::new_cuda(n).map_err(|e| fail(&e))?, Kernels::Composed))
}

/// Opens the Apple GPU.
///
/// # Errors
/// If this binary was built without `metal`, or there is none.
pub fn metal() -> Result<(Device, Kernels)> {
    let fail = |e: &dyn std::fmt::Display| {
        MlError::setting("device", format!("metal cannot be used: {e}; build with `--features metal`, or use `--device cpu`"))
    };
    Ok((Device::new_metal(0).map_err(|e| fail(&e))?, Kernels::Composed))
}

/// The CPU.
pub fn cpu() -> (Device, Kernels) {
    (Device::Cpu, Kernels::Native)
}

/// The best that this binary supports and this machine has.
pub fn best() -> (Device, Kernels) {
    cuda(0).or_else(|_| metal()).unwrap_or_else(|_| cpu())
}
