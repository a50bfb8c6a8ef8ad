//! Adapters that `peft` made: their logits, their loss, and the gradient of each of their tensors.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use serde_json::Value;
use tunesmith_ml::models::WeightFile;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::peft::load_language_adapter;
use tunesmith_ml::spec::{LoraSpec, TargetModules, Tuning};
use tunesmith_ml::train::{LanguageModel, Sequence};
use tunesmith_ops::matmul::Precision;

use crate::reference::*;
use crate::*;

const ADAPTERS: [(&str, &str); 3] = [("llama-lora", "llama-tiny"), ("llama-rslora", "llama-tiny"), ("gpt2-conv1d", "gpt2-tiny")];

/// A model that trains the adapter on from where PEFT left it.
pub fn trainable(adapter: &str, family: &str, kernels: Kernels) -> LanguageModel {
    let config: Value = json(&format!("decoders/{adapter}/adapter_config.json"));
    let targets = config["target_modules"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().to_owned()).collect();
    let lora = LoraSpec {
        r: config["r"].as_u64().unwrap() as usize,
        lora_alpha: config["lora_alpha"].as_f64().unwrap(),
        lora_dropout: 0.0,
        use_rslora: config["use_rslora"].as_bool().unwrap(),
        target_modules: TargetModules::Names(targets),
        modules_to_save: None,
    };
    let mut model = LanguageModel::new(base(family), &spec(Tuning::Lora(lora), &[]), Precision::F32, kernels).unwrap();
    let file = WeightFile::open(&[folder(adapter).join("adapter_model.safetensors")]).unwrap();
    assert_eq!(model.params.infos.len(), file.names().len());
    for info in &model.params.infos {
        let value = values(&file, &format!("base_model.model.{}", info.name));
        let value = Tensor::from_vec(value, info.slot.len, &Device::Cpu).unwrap();
        model.params.masters.slice_set(&value, 0, info.slot.offset).unwrap();
    }
    model.pack().unwrap();
    model
}

#[test]
fn the_gradient_of_every_tensor_of_an_adapter_agrees_with_peft() {
    for (adapter, family) in ADAPTERS {
        let there = WeightFile::open(&[folder(adapter).join("gradients.safetensors")]).unwrap();
        for kernels in BOTH {
            let model = trainable(adapter, family, kernels);
            let all = sequences(&expected(family));
            let kept: f64 = all.iter().map(Sequence::weight).sum();
            let loss = model.train_batch(&all.iter().collect::<Vec<_>>(), 0, kept, Mode::Eval).unwrap();
            let error = (loss.loss / kept - f64::from(values(&there, "loss")[0])).abs();
            assert!(error < 1e-5, "{adapter} {kernels:?}: the loss is off by {error}");
            let grads = flat(&model.params.grads);
            for info in &model.params.infos {
                let error = relative(&grads[info.slot.range()], &values(&there, &format!("grad.base_model.model.{}", info.name)));
                assert!(error < 2e-4, "{adapter} {kernels:?}: the gradient of {} is off by {error:.2e}", info.name);
            }
        }
    }
}

#[test]
fn adapters_of_peft_give_its_logits_transposed_layers_and_rank_stabilised_scales_included() {
    for (adapter, family) in ADAPTERS {
        let file = expected(adapter);
        let ids = sequences(&expected(family));
        for kernels in BOTH {
            let mut base = base(family);
            let mut loaded = load_language_adapter(&folder(adapter), &base).unwrap();
            assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            if kernels == Kernels::Native {
                loaded.adapter.pack(false).unwrap();
            }
            let ours = logits(&mut base, &ids, kernels, Some(&loaded.adapter));
            let error = worst(&ours, &reference_logits(&file, ""));
            assert!(error < 2e-4, "{adapter} {kernels:?}: logits differ by {error}");
        }
    }
}

#[test]
fn an_adapter_of_another_base_is_refused_by_its_tensor() {
    let error = load_language_adapter(&folder("llama-lora"), &base("qwen3-tiny")).err().unwrap().to_string();
    assert!(error.contains("q_proj") && error.contains("shape"), "{error}");
    let error = load_language_adapter(&folder("gpt2-conv1d"), &base("llama-tiny")).err().unwrap().to_string();
    assert!(error.contains("c_") && error.contains("target_modules"), "{error}");
}
