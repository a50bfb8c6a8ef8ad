//! The types of tensors: their numbers in a file, the size of a block, and the way to read one.
//!
//! ggml's `ggml.h` numbers them. The parser asks for sizes, `dequantise` for values.

use half::{bf16, f16};

use crate::dequantise::{iq4_nl, iq4_xs, q4_0, q4_1, q5_0, q5_1, q8_0};
use crate::error::{Result, unsupported};
use crate::k_quants::{q2_k, q3_k, q4_k, q5_k, q6_k, q8_k};

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names by which everybody knows the types")]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit floats.
    F64,
    /// 32 values: a scale, 4 bits each, centred.
    Q4_0,
    /// 32 values: scale and minimum, 4 bits each.
    Q4_1,
    /// 32 values: a scale, 5 bits each, centred.
    Q5_0,
    /// 32 values: scale and minimum, 5 bits each.
    Q5_1,
    /// 32 values: a scale, 8 bits each.
    Q8_0,
    /// 256 values in groups of 16, 2 bits each.
    Q2_K,
    /// 256 values in groups of 16, 3 bits each.
    Q3_K,
    /// 256 values in groups of 32, 4 bits each.
    Q4_K,
    /// 256 values in groups of 32, 5 bits each.
    Q5_K,
    /// 256 values in groups of 16, 6 bits each.
    Q6_K,
    /// 256 values: a scale, 8 bits each.
    Q8_K,
    /// 32 values: a scale, 4 bits each into a table.
    IQ4_NL,
    /// 256 values in groups of 32, 4 bits each into a table.
    IQ4_XS,
}

/// Types that ggml has and this crate has not, so that an error can name them.
const OTHERS: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Kind {
    /// Every type that can be read, with its number in a file.
    pub const ALL: &'static [(u32, Self)] = &[
        (0, Self::F32),
        (1, Self::F16),
        (2, Self::Q4_0),
        (3, Self::Q4_1),
        (6, Self::Q5_0),
        (7, Self::Q5_1),
        (8, Self::Q8_0),
        (10, Self::Q2_K),
        (11, Self::Q3_K),
        (12, Self::Q4_K),
        (13, Self::Q5_K),
        (14, Self::Q6_K),
        (15, Self::Q8_K),
        (20, Self::IQ4_NL),
        (23, Self::IQ4_XS),
        (28, Self::F64),
        (30, Self::BF16),
    ];

    /// The type of a number in the file.
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == number).map(|(_, kind)| *kind)
    }

    /// How an error calls a number that stands for no type here.
    pub(crate) fn foreign(number: u32) -> String {
        match OTHERS.iter().find(|(n, _)| *n == number) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("number {number}"),
        }
    }

    /// Values of a block.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F64 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::Q8_K | Self::IQ4_XS => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F64 => 8,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::Q8_K => 292,
            Self::IQ4_XS => 136,
        }
    }

    /// The values of whole blocks.
    ///
    /// # Errors
    /// If the bytes are not whole blocks.
    pub fn dequantise(self, bytes: &[u8]) -> Result<Vec<f32>> {
        let size = self.block_bytes();
        if !bytes.len().is_multiple_of(size) {
            return unsupported(format!("{} bytes are not whole blocks of {size} of type {self:?}", bytes.len()));
        }
        let mut out = vec![0f32; bytes.len() / size * self.block()];
        match self {
            Self::F32 => values(bytes, &mut out, f32::from_le_bytes),
            Self::F16 => values(bytes, &mut out, |b| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => values(bytes, &mut out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F64 => values(bytes, &mut out, |b| f64::from_le_bytes(b) as f32),
            Self::Q4_0 => blocks(bytes, &mut out, q4_0),
            Self::Q4_1 => blocks(bytes, &mut out, q4_1),
            Self::Q5_0 => blocks(bytes, &mut out, q5_0),
            Self::Q5_1 => blocks(bytes, &mut out, q5_1),
            Self::Q8_0 => blocks(bytes, &mut out, q8_0),
            Self::IQ4_NL => blocks(bytes, &mut out, iq4_nl),
            Self::Q2_K => blocks(bytes, &mut out, q2_k),
            Self::Q3_K => blocks(bytes, &mut out, q3_k),
            Self::Q4_K => blocks(bytes, &mut out, q4_k),
            Self::Q5_K => blocks(bytes, &mut out, q5_k),
            Self::Q6_K => blocks(bytes, &mut out, q6_k),
            Self::Q8_K => blocks(bytes, &mut out, q8_k),
            Self::IQ4_XS => blocks(bytes, &mut out, iq4_xs),
        }
        Ok(out)
    }
}

fn values<const B: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; B]) -> f32) {
    bytes.as_chunks::<B>().0.iter().zip(out).for_each(|(b, y)| *y = read(*b));
}

/// Blocks of `B` bytes to `N` values each; both are known when this is compiled, so that the loops have no bounds checks.
fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn(&[u8; B], &mut [f32; N])) {
    bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0).for_each(|(b, y)| read(b, y));
}
