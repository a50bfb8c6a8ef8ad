//! Layers with explicit forward and backward on packed rows.
//!
//! Hidden states are `[tokens, hidden]`: the real tokens of all sequences one after another. A layer's `forward` pushes
//! what its `backward` needs on [`Ctx`]'s tape, `backward` pops it and adds to the gradients of trainable parameters only.

mod activation;
mod attention;
mod ctx;
mod dropout;
mod embedding;
mod gated;
mod linear;
mod lora;
mod norm;
mod params;
mod rms_norm;
mod rope;
mod view;

use candle_core::Tensor;

pub use activation::Act;
pub use attention::Attention;
pub use ctx::{Batch, CachedPass, Ctx, Kernels, LayerPages, LoraRange, Mode};
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use gated::Gated;
pub use linear::{InputGrad, Linear};
pub use lora::{Adapter, LoraLayer};
pub use norm::LayerNorm;
pub use params::{Param, ParamInfo, Params, Slot, VisitParam};
pub use rms_norm::RmsNorm;
pub use rope::{Rope, RopeTable};
pub use view::{F32View, with_f32_mut};

/// `y + x` of the same shape; on the CPU in `y`'s memory, which nothing else may hold.
pub fn add(y: Tensor, x: &Tensor, kernels: Kernels) -> crate::error::Result<Tensor> {
    match kernels {
        Kernels::Native => {
            let xs = F32View::new(x)?;
            with_f32_mut(&y, |y| tunesmith_ops::elementwise::add_assign(y, &xs))?;
            Ok(y)
        }
        Kernels::Composed => Ok((y + x)?),
    }
}
