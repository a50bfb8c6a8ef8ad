//! Products of activations with weights in GGUF's block formats, for serving. Decoders out of GGUF files call it.
//!
//! Weights keep their bits, only their order changes; activations are rounded to int8 per row and block of 32. Sums within a block
//! are exact integers and blocks are added in order, so a row's result has the same bits whatever stands beside it. A matrix unit for int8
//! (AMX) does not serve here: each block's sums would go through memory to be scaled, at 0.8 to 1.1 of VNNI's speed (measured).

mod dots;
mod form;
mod kernel;
mod packed;
mod product;
mod rows;
mod source;

pub use form::QuantKind;
pub use packed::{QuantError, QuantPacked};

use crate::matmul::{Epilogue, Shared, written};

/// `y = f(scale · (x · Wᵀ) (+ bias) (+ y))`, with x rounded to int8. x `[rows, k]`, y `[rows, n]`.
///
/// A row's block of 32 becomes `x / d` rounded to nearest even with `d = max|x| / 127`, as in ggml's Q8_0 and Q8_1, but d stays f32.
/// Where an element is infinite or NaN, its row's results are NaN.
pub fn quant_matmul(x: &[f32], rows: usize, w: &QuantPacked, y: &mut [f32], ep: Epilogue) {
    let n = w.n();
    assert_eq!(y.len(), rows * n, "quant_matmul: y has {} elements, [{rows}, {n}] needs {}", y.len(), rows * n);
    check_inputs(x, rows, w, &ep);
    product::multiply(x, rows, w, Shared::new(y), ep);
}

/// As [`quant_matmul`] into new memory, which nobody clears first. Nothing can be added to.
pub fn quant_matmul_new(x: &[f32], rows: usize, w: &QuantPacked, ep: Epilogue) -> Vec<f32> {
    assert!(!ep.accumulate, "quant_matmul: there is nothing to add to");
    check_inputs(x, rows, w, &ep);
    // SAFETY: a product that is not added to anything writes every element.
    let [y] = unsafe { written([rows * w.n()], |[y]| product::multiply(x, rows, w, y, ep)) };
    y
}

fn check_inputs(x: &[f32], rows: usize, w: &QuantPacked, ep: &Epilogue) {
    let (n, k) = (w.n(), w.k());
    assert_eq!(x.len(), rows * k, "quant_matmul: x has {} elements, [{rows}, {k}] needs {}", x.len(), rows * k);
    if let Some(bias) = ep.bias {
        assert_eq!(bias.len(), n, "quant_matmul: bias");
    }
    assert!(ep.update.is_none(), "quant_matmul: an update is a product of its own here");
}
