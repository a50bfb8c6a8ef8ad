//! Every type of block against candle's reading of it, on random bytes.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use proptest::prelude::*;
use tunesmith_gguf::Kind;

const KINDS: [(Kind, GgmlDType); 12] = [
    (Kind::F32, GgmlDType::F32),
    (Kind::F16, GgmlDType::F16),
    (Kind::Q4_0, GgmlDType::Q4_0),
    (Kind::Q4_1, GgmlDType::Q4_1),
    (Kind::Q5_0, GgmlDType::Q5_0),
    (Kind::Q5_1, GgmlDType::Q5_1),
    (Kind::Q8_0, GgmlDType::Q8_0),
    (Kind::Q2_K, GgmlDType::Q2K),
    (Kind::Q3_K, GgmlDType::Q3K),
    (Kind::Q4_K, GgmlDType::Q4K),
    (Kind::Q5_K, GgmlDType::Q5K),
    (Kind::Q6_K, GgmlDType::Q6K),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_read_as_candle_reads_them(which in 0..KINDS.len(), blocks in 1usize..6, seed in any::<u64>()) {
        let (kind, theirs) = KINDS[which];
        let mut state = seed | 1;
        let bytes: Vec<u8> = (0..blocks * kind.block_bytes()).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        }).collect();
        let n = blocks * kind.block();
        let expected = qtensor_from_ggml(theirs, &bytes, vec![n], &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        let expected: Vec<f32> = expected.to_vec1().unwrap();
        let ours = kind.dequantise(&bytes).unwrap();
        for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
            let close = (a - b).abs() <= 1e-5 * b.abs().max(1e-30) || (a.is_nan() && b.is_nan()) || a == b;
            prop_assert!(close, "{kind:?}[{i}]: {a} is not {b}");
        }
    }
}

#[test]
fn half_a_block_is_refused() {
    assert!(Kind::Q4_0.dequantise(&[0; 17]).is_err());
}
