//! The same models as other files hold them: 16-bit weights, several parts, version 4's spelling of a configuration, stretched
//! positions.
#![allow(clippy::unwrap_used)]

use std::fs;

use candle_core::Device;
use tunesmith_ml::models::WeightFile;
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::train::{LanguageModel, Sequence};
use tunesmith_ops::matmul::Precision;

use crate::reference::*;
use crate::*;

#[test]
fn sixteen_bit_weights_and_several_parts_are_read() {
    for name in ["llama-bf16", "gpt2-f16", "qwen3-sharded"] {
        let file = expected(name);
        let error = worst(&logits(&mut base(name), &sequences(&file), Kernels::Native, None), &reference_logits(&file, ""));
        assert!(error < 1e-4, "{name}: logits differ by {error}");
    }
}

/// The model under another configuration.
fn with_config(family: &str, config: &[u8]) -> DecoderBase {
    let copy = tempfile::tempdir().unwrap();
    fs::write(copy.path().join("config.json"), config).unwrap();
    fs::copy(folder(family).join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    DecoderBase::load(copy.path(), &Device::Cpu).unwrap()
}

#[test]
fn a_configuration_as_version_4_of_transformers_wrote_it_is_the_same_model() {
    for family in ["llama3-tiny", "qwen2-tiny", "gemma3-tiny"] {
        let mut base = with_config(family, &fs::read(folder(family).join("config.v4.json")).unwrap());
        let file = expected(family);
        let error = worst(&logits(&mut base, &sequences(&file), Kernels::Native, None), &reference_logits(&file, ""));
        assert!(error < 1e-4, "{family}: logits differ by {error}");
    }
}

#[test]
fn stretched_positions_are_those_of_transformers() {
    let cases = json("decoders/ropes.json");
    let family = cases["model"].as_str().unwrap();
    let there = WeightFile::open(&[fixtures().join("decoders/ropes.safetensors")]).unwrap();
    let all = sequences(&expected(family));
    for (kind, rope) in cases["rope_parameters"].as_object().unwrap() {
        let mut config = json(&format!("decoders/{family}/config.json"));
        config["rope_parameters"] = rope.clone();
        let mut base = with_config(family, &serde_json::to_vec(&config).unwrap());
        let error = worst(&logits(&mut base, &all, Kernels::Native, None), &reference_logits(&there, &format!("{kind}.")));
        assert!(error < 1e-4, "{kind}: logits differ by {error}");
    }
}

#[test]
fn the_loss_over_all_tokens_is_that_of_transformers_too() {
    for case in json("decoders/losses.json")["models"].as_array().unwrap() {
        let family = case["model"].as_str().unwrap();
        let model = LanguageModel::new(base(family), &spec(Tuning::Full, &[]), Precision::F32, Kernels::Native).unwrap();
        let masked = sequences(&expected(family));
        let whole = |s: &Sequence| {
            let mut weights = vec![1.0; s.ids.len()];
            weights[0] = 0.0;
            Sequence { line: s.line, ids: s.ids.clone(), weights, truncated: 0 }
        };
        let all: Vec<Sequence> = masked.iter().map(whole).collect();
        for (rows, loss, targets) in [(&masked, "masked", "kept"), (&all, "all_targets", "targets")] {
            let weight: f64 = rows.iter().map(Sequence::weight).sum();
            assert_eq!(weight, case[targets].as_f64().unwrap(), "{family}");
            let ours = model.train_batch(&rows.iter().collect::<Vec<_>>(), 0, weight, Mode::Eval).unwrap().loss / weight;
            let error = (ours - case[loss].as_f64().unwrap()).abs();
            assert!(error < 1e-5, "{family}: {loss} is off by {error}");
        }
    }
}
