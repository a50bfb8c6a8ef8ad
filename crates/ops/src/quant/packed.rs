//! A weight matrix in repacked blocks. Models out of GGUF files hold one for each linear layer, and read embeddings from it.
//!
//! It takes the bytes of the file up to 3 % (nested scales are unpacked to whole bytes), so one may read it as often as the file.

use super::form::{Form, GROUP, QuantKind, Scales, WIDTH};
use super::source::{Block, read};
use crate::matmul::Buffer;
use half::f16;
use rayon::prelude::*;

/// Why bytes are not a weight matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// Rows of blocks have whole blocks.
    #[error("a row of {k} values is not whole blocks of {block} of type {kind:?}; dequantise the matrix instead")]
    Width {
        /// The format.
        kind: QuantKind,
        /// Values of a row.
        k: usize,
        /// Values of a block.
        block: usize,
    },
    /// Too few or too many bytes.
    #[error("{got} bytes are not a matrix [{n}, {k}] of type {kind:?}, which has {expected}; the file is damaged or its shape is wrong")]
    Length {
        /// The format.
        kind: QuantKind,
        /// Rows.
        n: usize,
        /// Values of a row.
        k: usize,
        /// Bytes that were given.
        got: usize,
        /// Bytes that the shape needs.
        expected: usize,
    },
    /// A scale that is infinite or not a number.
    #[error("row {row} of a matrix of type {kind:?} has a scale that is no finite number; the file is damaged")]
    Scale {
        /// The format.
        kind: QuantKind,
        /// The row.
        row: usize,
    },
}

/// A weight matrix `[n, k]` ready for [`super::quant_matmul`].
#[derive(Debug, Clone)]
pub struct QuantPacked {
    data: Buffer,
    kind: QuantKind,
    n: usize,
    k: usize,
}

impl QuantPacked {
    /// Repacks the bytes of a matrix `[n, k]` as they stand in a GGUF file: row after row of whole blocks.
    ///
    /// # Errors
    /// Where the bytes do not fit the shape, or a scale is not finite.
    pub fn new(kind: QuantKind, bytes: &[u8], n: usize, k: usize) -> Result<QuantPacked, QuantError> {
        let block = kind.block();
        if !k.is_multiple_of(block) {
            return Err(QuantError::Width { kind, k, block });
        }
        let row_bytes = (k / block).saturating_mul(kind.block_bytes());
        let expected = n.saturating_mul(row_bytes);
        if bytes.len() != expected {
            return Err(QuantError::Length { kind, n, k, got: bytes.len(), expected });
        }
        let panel_bytes = k / block * kind.form().unit();
        let mut data = Buffer::zeros((n.div_ceil(WIDTH) * panel_bytes).div_ceil(4));
        if panel_bytes > 0 {
            let panels = data.as_mut_bytes()[..n.div_ceil(WIDTH) * panel_bytes].par_chunks_mut(panel_bytes).enumerate();
            panels.try_for_each(|(index, panel)| {
                let rows = bytes[index * WIDTH * row_bytes..].chunks_exact(row_bytes).take(WIDTH);
                for (lane, row) in rows.enumerate() {
                    pack_row(kind, row, lane, panel).map_err(|()| QuantError::Scale { kind, row: index * WIDTH + lane })?;
                }
                Ok(())
            })?;
        }
        Ok(QuantPacked { data, kind, n, k })
    }

    /// Rounds `w`, `[n, k]`, to int8 with a scale for each 32 inputs, as ggml's `quantize_row_q8_0_ref` does.
    ///
    /// # Errors
    /// Where rows are not whole blocks, or a value is not finite or beyond what a scale in half precision can tell.
    pub fn rounded(w: &[f32], n: usize, k: usize) -> Result<QuantPacked, QuantError> {
        assert_eq!(w.len(), n * k, "quantise: w has {} elements, [{n}, {k}] needs {}", w.len(), n * k);
        let kind = QuantKind::Q8_0;
        if !k.is_multiple_of(GROUP) {
            return Err(QuantError::Width { kind, k, block: GROUP });
        }
        let mut bytes = vec![0; n * k / GROUP * kind.block_bytes()];
        for (values, block) in w.as_chunks::<GROUP>().0.iter().zip(bytes.chunks_exact_mut(kind.block_bytes())) {
            // A maximum loses a NaN, a sum does not.
            let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let scale = if values.iter().sum::<f32>().is_nan() { f32::NAN } else { largest / 127.0 };
            let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            block[2..].iter_mut().zip(values).for_each(|(code, v)| *code = (v * factor).round() as i8 as u8);
        }
        Self::new(kind, &bytes, n, k)
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The format.
    pub fn kind(&self) -> QuantKind {
        self.kind
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.data.as_bytes().len()
    }

    /// The weights of one output, dequantised: an embedding, where the matrix is a tied output layer. `out` `[k]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n, "quant row: row {row} of {}", self.n);
        assert_eq!(out.len(), self.k, "quant row: out");
        if self.k > 0 {
            read_row(self.kind, self.panel(row / WIDTH), row % WIDTH, out);
        }
    }

    /// The units of 16 outputs.
    pub(super) fn panel(&self, index: usize) -> &[u8] {
        let bytes = self.k / self.kind.block() * self.kind.form().unit();
        &self.data.as_bytes()[index * bytes..][..bytes]
    }
}

fn pack_row(kind: QuantKind, row: &[u8], lane: usize, panel: &mut [u8]) -> Result<(), ()> {
    let form = kind.form();
    for (bytes, unit) in row.chunks_exact(kind.block_bytes()).zip(panel.chunks_exact_mut(form.unit())) {
        let block = read(kind, bytes);
        if !block.halves.iter().all(|h| f16::from_bits(*h).is_finite()) {
            return Err(());
        }
        pack_block(form, &block, lane, unit);
    }
    Ok(())
}

fn pack_block(form: Form, block: &Block, lane: usize, unit: &mut [u8]) {
    let (head, groups) = unit.split_at_mut(form.head());
    for (half, place) in block.halves.iter().zip(head.chunks_exact_mut(2 * WIDTH)) {
        place[2 * lane..][..2].copy_from_slice(&half.to_le_bytes());
    }
    let codes = block.codes.as_chunks::<GROUP>().0;
    for ((group, codes), nested) in groups.chunks_exact_mut(form.group()).zip(codes).zip(block.nested) {
        let (head, group) = group.split_at_mut(form.group_head());
        head.chunks_exact_mut(WIDTH).zip(nested).for_each(|(place, scale)| place[lane] = scale);
        for (i, code) in codes.iter().enumerate() {
            let (four, byte) = (i / 4, 4 * lane + i % 4);
            match form.bits {
                8 => group[64 * four + byte] = *code,
                _ => group[64 * (four % 4) + byte] |= (code & 15) << (4 * (four / 4)),
            }
            match form.bits {
                5 => group[256 + byte] |= (code >> 4) << four,
                6 => group[256 + 64 * (four / 4) + byte] |= (code >> 4) << (2 * (four % 4)),
                _ => {}
            }
        }
    }
}

fn read_row(kind: QuantKind, panel: &[u8], lane: usize, out: &mut [f32]) {
    let form = kind.form();
    for (unit, out) in panel.chunks_exact(form.unit()).zip(out.chunks_exact_mut(kind.block())) {
        let (head, groups) = unit.split_at(form.head());
        let half = |i: usize| f16::from_le_bytes([head[32 * i + 2 * lane], head[32 * i + 2 * lane + 1]]).to_f32();
        for (group, out) in groups.chunks_exact(form.group()).zip(out.as_chunks_mut::<GROUP>().0) {
            let (nested, codes) = group.split_at(form.group_head());
            for (i, out) in out.iter_mut().enumerate() {
                let code = (code(form.bits, codes, lane, i) - form.centre) as f32;
                *out = match form.scales {
                    Scales::One => half(0) * code,
                    Scales::WithMinimum => half(0) * code + half(1),
                    Scales::Nested => half(0) * f32::from(nested[lane]) * code - half(1) * f32::from(nested[WIDTH + lane]),
                    Scales::NestedHalves => half(0) * f32::from(nested[i / 16 * WIDTH + lane] as i8) * code,
                };
            }
        }
    }
}

/// The code of input i of a group.
fn code(bits: u32, group: &[u8], lane: usize, i: usize) -> i32 {
    let (four, byte) = (i / 4, 4 * lane + i % 4);
    let low = group[64 * (four % 4) + byte] >> (4 * (four / 4)) & 15;
    i32::from(match bits {
        8 => group[64 * four + byte],
        5 => low | (group[256 + byte] >> four & 1) << 4,
        6 => low | (group[256 + 64 * (four / 4) + byte] >> (2 * (four % 4)) & 3) << 4,
        _ => low,
    })
}
