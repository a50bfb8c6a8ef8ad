//! Tensors in Hugging Face's form: its names, its order of rows, its axes.
//!
//! llama.cpp's converters move rows of q and k for ggml's interleaved rotation, add one to Gemma's gains and turn GPT-2's matrices
//! round; this undoes it. A quantised row is a run of whole blocks, so rows can also be moved without reading their values.

use std::borrow::Cow;

use crate::error::{Result, unsupported};
use crate::file::GgufFile;
use crate::kind::Kind;
use crate::names::{Change, change};

/// A tensor as it is stored, with its rows in Hugging Face's order.
#[derive(Debug, Clone, PartialEq)]
pub struct RawTensor<'a> {
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub kind: Kind,
    /// The blocks, row after row.
    pub bytes: Cow<'a, [u8]>,
}

impl GgufFile {
    /// The shape that [`GgufFile::hf_tensor`] gives, without reading a value; nothing if the file has no such tensor.
    pub fn hf_shape(&self, hf_name: &str) -> Option<Vec<usize>> {
        let own = self.own_name(hf_name)?;
        let mut shape = self.raw(own)?.0.shape.clone();
        if change(self.architecture(), own) == Change::Transpose {
            shape.reverse();
        }
        Some(shape)
    }

    /// The type in which the file has the tensor of that name, if it has it.
    pub fn hf_kind(&self, hf_name: &str) -> Option<Kind> {
        Some(self.raw(self.own_name(hf_name)?)?.0.kind)
    }

    /// A tensor by Hugging Face's name, as f32 in Hugging Face's order, with its shape; nothing if the file has none.
    ///
    /// # Errors
    /// If its rows do not make whole heads, or it has not the dimensions that the change needs.
    pub fn hf_tensor(&self, hf_name: &str) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        let Some(own) = self.own_name(hf_name) else { return Ok(None) };
        let (shape, mut values) = self.dequantise(own)?;
        match change(self.architecture(), own) {
            Change::None => Ok(Some((shape, values))),
            Change::LessOne => {
                values.iter_mut().for_each(|v| *v -= 1.0);
                Ok(Some((shape, values)))
            }
            Change::UnpermuteQuery | Change::UnpermuteKey => {
                let order = self.row_order(own, &shape)?;
                Ok(Some((shape, moved(&values, &order))))
            }
            Change::Transpose => match shape[..] {
                [rows, columns] => Ok(Some((vec![columns, rows], transposed(&values, rows, columns)))),
                _ => unsupported(format!("the tensor {own} of shape {shape:?} is no matrix")),
            },
        }
    }

    /// A tensor by Hugging Face's name in its stored type, rows in Hugging Face's order. Nothing if the file has none, or if no
    /// order of whole rows is Hugging Face's tensor: Gemma's gains, GPT-2's matrices.
    ///
    /// # Errors
    /// As [`GgufFile::hf_tensor`].
    pub fn hf_raw(&self, hf_name: &str) -> Result<Option<RawTensor<'_>>> {
        let Some((own, (info, bytes))) = self.own_name(hf_name).and_then(|own| Some((own, self.raw(own)?))) else { return Ok(None) };
        let bytes = match change(self.architecture(), own) {
            Change::None => Cow::Borrowed(bytes),
            Change::UnpermuteQuery | Change::UnpermuteKey => {
                if info.shape.len() < 2 && info.kind.block() > 1 {
                    return Ok(None);
                }
                Cow::Owned(moved(bytes, &self.row_order(own, &info.shape)?))
            }
            Change::LessOne | Change::Transpose => return Ok(None),
        };
        Ok(Some(RawTensor { shape: info.shape.clone(), kind: info.kind, bytes }))
    }

    /// Where each row of Hugging Face's lies in the file: ggml turns neighbours (2i, 2i + 1) of a head, Hugging Face (i, i + half).
    fn row_order(&self, own: &str, shape: &[usize]) -> Result<Vec<usize>> {
        let heads = match change(self.architecture(), own) {
            Change::UnpermuteKey => self.count("attention.head_count_kv")?,
            _ => None,
        };
        let heads = match heads {
            Some(heads) => heads,
            None => self.needed("attention.head_count")?,
        };
        let rows = shape.first().copied().unwrap_or(0);
        if heads == 0 || rows == 0 || !rows.is_multiple_of(2) || !(rows / 2).is_multiple_of(heads) {
            return unsupported(format!("the tensor {own} has {rows} rows, which do not make {heads} heads of an even size"));
        }
        let (head, half) = (rows / heads, rows / heads / 2);
        Ok((0..rows).map(|row| row / head * head + row % head % half * 2 + row % head / half).collect())
    }
}

/// The equal parts of `values` in another order.
fn moved<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
    let width = values.len() / order.len();
    let mut out = Vec::with_capacity(values.len());
    for from in order {
        out.extend_from_slice(&values[from * width..(from + 1) * width]);
    }
    out
}

/// A matrix turned round, in tiles that stay in the cache.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0f32; values.len()];
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in left..columns.min(left + TILE) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_turned_round_across_tiles() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let turned = transposed(&values, rows, columns);
        assert_eq!(turned[3 * rows + 36], values[36 * columns + 3]);
        assert_eq!(transposed(&turned, columns, rows), values);
    }
}
