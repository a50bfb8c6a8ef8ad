//! Every type of block against two others' reading of it: the `gguf` package's, kept as a fixture, and candle's, on random bytes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use proptest::prelude::*;
use serde_json::Value as Json;
use tunesmith_gguf::{GgufFile, Kind};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn every_type_is_read_as_the_gguf_package_reads_it() {
    let file = GgufFile::open(&fixture("kinds.gguf")).unwrap();
    let expected: BTreeMap<String, Json> = serde_json::from_slice(&std::fs::read(fixture("kinds.json")).unwrap()).unwrap();
    for (_, kind) in Kind::ALL {
        let name = format!("{kind:?}");
        assert_eq!(file.raw(&name).unwrap().0.kind, *kind);
        let (shape, values) = file.dequantise(&name).unwrap();
        assert_eq!(serde_json::to_value(shape).unwrap(), expected[&name]["shape"], "{name}");
        let theirs = expected[&name]["values"].as_array().unwrap();
        assert_eq!(values.len(), theirs.len());
        for (i, (ours, theirs)) in values.iter().zip(theirs).enumerate() {
            let theirs = theirs.as_f64().unwrap() as f32;
            assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{name}[{i}]: {ours} is not {theirs}");
        }
    }
}

const CANDLE: [(Kind, GgmlDType); 12] = [
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
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_read_as_candle_reads_them(which in 0..CANDLE.len(), blocks in 1usize..6, seed in any::<u64>()) {
        let (kind, theirs) = CANDLE[which];
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
        prop_assert_eq!(ours.len(), n);
        for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
            let close = (a - b).abs() <= 1e-5 * b.abs().max(1e-30) || (a.is_nan() && b.is_nan()) || a == b;
            prop_assert!(close, "{:?}[{}]: {} is not {}", kind, i, a, b);
        }
    }
}

#[test]
fn half_a_block_is_refused() {
    for (_, kind) in Kind::ALL {
        assert!(kind.dequantise(&vec![0; kind.block_bytes() + 1]).is_err(), "{kind:?}");
        assert!(kind.dequantise(&[]).unwrap().is_empty());
    }
}
