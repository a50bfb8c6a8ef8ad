//! Folders as others write them: names without a prefix, BERT's first names, other activations.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use tunesmith_data::Target;
use tunesmith_ml::models::{BackwardPlan, BaseModel, load_base};
use tunesmith_ml::nn::{Ctx, Kernels, Mode};
use tunesmith_ml::spec::{ProblemType, Tuning};
use tunesmith_ml::train::{Classifier, LossSettings};
use tunesmith_ops::matmul::Precision;

use crate::jobs::*;
use crate::reference::*;

fn hidden(base: &mut BaseModel, folder: &str, kernels: Kernels) -> Tensor {
    let rows = json(&format!("{folder}/parity.json"));
    if kernels == Kernels::Native {
        base.encoder.pack(Precision::F32, false).unwrap();
    }
    let batch = batch(rows["rows"].as_array().unwrap(), base.encoder.config.position_offset);
    let mut ctx = Ctx::infer(&batch, kernels, &[]);
    base.encoder.forward(&mut ctx, BackwardPlan { first: usize::MAX, checkpointing: false }).unwrap()
}

#[test]
fn folders_without_prefix_or_with_old_norm_names_give_the_same_hidden_states() {
    for folder in ["bert-noprefix", "bert-gamma"] {
        for kernels in BOTH {
            let mut base = load_base(&fixtures().join(folder), &Device::Cpu).unwrap();
            let there = tensors(&format!("{folder}/parity.safetensors"));
            let ours = hidden(&mut base, folder, kernels);
            let off = worst(&flat(&ours), &values(&there, "hidden"));
            assert!(off < 1e-4, "{folder} {kernels:?}: off by {off}");
            let pooler = base.head_tensor("bert.pooler.dense", "weight", &[32, 32]).unwrap();
            assert_eq!(pooler.is_some(), there.contains("pooled"), "{folder}");
            let Some(weight) = pooler else { continue };
            let bias = base.head_tensor("bert.pooler.dense", "bias", &[32]).unwrap().unwrap();
            let firsts: Vec<u32> = json(&format!("{folder}/parity.json"))["rows"]
                .as_array()
                .unwrap()
                .iter()
                .scan(0, |at, row| {
                    let start = *at;
                    *at += row["ids"].as_array().unwrap().len() as u32;
                    Some(start)
                })
                .collect();
            let first = ours.index_select(&Tensor::new(firsts.as_slice(), &Device::Cpu).unwrap(), 0).unwrap();
            let pooled = first.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap().tanh().unwrap();
            assert!(worst(&flat(&pooled), &values(&there, "pooled")) < 1e-4, "{folder}");
        }
    }
}

#[test]
fn every_activation_that_configurations_name_agrees_with_transformers() {
    let there = tensors("bert-tiny/activations.safetensors");
    let expected = json("bert-tiny/parity.json");
    let name = "bert.encoder.layer.0.intermediate.dense.weight";
    for act in ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"] {
        let folder = edited("bert-tiny", |c| {
            c.insert("hidden_act".into(), act.into());
        });
        for kernels in BOTH {
            let base = load_base(folder.path(), &Device::Cpu).unwrap();
            let labels = base.labels();
            let spec = spec(Tuning::Full, &labels.iter().map(String::as_str).collect::<Vec<_>>());
            let c = Classifier::new(base, &spec, Precision::F32, kernels).unwrap();
            let batch = batch(expected["rows"].as_array().unwrap(), 0);
            let off = worst(&c.logits(&batch).unwrap(), &values(&there, &format!("{act}/logits")));
            assert!(off < 1e-4, "{act} {kernels:?}: logits are off by {off}");
            let targets: Vec<Target> = [0, 2, 1, 1, 0, 2].map(Target::Class).to_vec();
            let settings =
                LossSettings { problem_type: ProblemType::SingleLabelClassification, label_smoothing: 0.0, class_weights: vec![] };
            c.zero_grads().unwrap();
            c.train_batch(&batch, &targets.iter().collect::<Vec<_>>(), &settings, 6.0, Mode::Eval).unwrap();
            let slot = c.params.infos.iter().find(|i| i.name == name).unwrap().slot;
            let error = relative(&flat(&c.params.grads)[slot.range()], &values(&there, &format!("{act}/grad/{name}")));
            assert!(error < 1e-4, "{act} {kernels:?}: gradient is off by {error}");
        }
    }
}

#[test]
fn configurations_that_cannot_be_run_are_refused_by_field() {
    for (field, value, named) in [
        ("hidden_act", serde_json::json!("quick_gelu"), "quick_gelu"),
        ("num_attention_heads", serde_json::json!(5), "num_attention_heads"),
        ("hidden_size", serde_json::json!(0), "hidden_size"),
        ("hidden_size", serde_json::json!(1u64 << 40), "hidden_size"),
        ("vocab_size", serde_json::json!("many"), "config.json"),
        ("position_embedding_type", serde_json::json!("relative_key"), "position_embedding_type"),
        ("is_decoder", serde_json::json!(true), "is_decoder"),
        ("intermediate_size", serde_json::json!(65), "65"),
    ] {
        let folder = edited("bert-tiny", |c| {
            c.insert(field.into(), value.clone());
        });
        let error = load_base(folder.path(), &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(named), "{field}: {error}");
    }
}
