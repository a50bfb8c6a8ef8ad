//! Products of activations with weights in GGUF's block formats, for serving. Decoders out of GGUF files call it.
//!
//! Weights keep their bits, only their order changes; activations are rounded to int8 per row and block of 32. Sums within a block
//! are exact integers and blocks are added in order, so a row's result has the same bits whatever stands beside it.

mod dots;
mod form;
mod kernel;
mod packed;
mod product;
mod rows;
mod source;

pub use form::QuantKind;
pub use packed::{QuantError, QuantPacked};

use crate::matmul::Epilogue;

/// `y = f(scale · (x · Wᵀ) (+ bias) (+ y))`, with x rounded to int8. x `[rows, k]`, y `[rows, n]`.
///
/// A row's block of 32 becomes `x / d` rounded to nearest even with `d = max|x| / 127`, as in ggml's Q8_0 and Q8_1, but d stays f32.
/// Where an element is infinite or NaN, its row's results are NaN.
pub fn quant_matmul(x: &[f32], rows: usize, w: &QuantPacked, y: &mut [f32], ep: Epilogue) {
    let (n, k) = (w.n(), w.k());
    assert_eq!(x.len(), rows * k, "quant_matmul: x has {} elements, [{rows}, {k}] needs {}", x.len(), rows * k);
    assert_eq!(y.len(), rows * n, "quant_matmul: y has {} elements, [{rows}, {n}] needs {}", y.len(), rows * n);
    if let Some(bias) = ep.bias {
        assert_eq!(bias.len(), n, "quant_matmul: bias");
    }
    assert!(ep.update.is_none(), "quant_matmul: an update is a product of its own here");
    product::multiply(x, rows, w, y, ep);
}
