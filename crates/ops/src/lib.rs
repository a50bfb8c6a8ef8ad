//! CPU kernels over slices for training and serving: products, attention, norms, activations, dropout, optimiser.
//!
//! `tunesmith-ml` calls these; nothing here knows of tensors, files or HTTP. The one thing to know: a row's result never
//! depends on how many rows stand beside it, where it stands, or how many threads run, bit for bit. This is also the only
//! crate of the workspace with `unsafe`.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod activation;
pub mod allocator;
pub mod attention;
pub mod burst;
pub mod cpu;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod glu;
pub mod half;
pub mod load;
pub mod matmul;
pub mod mmap;
pub mod norm;
pub mod optim;
pub mod paged;
pub mod quant;
mod rms;
pub mod rope;
mod simd;
pub mod threads;
