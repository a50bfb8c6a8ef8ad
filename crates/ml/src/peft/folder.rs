//! Writing an adapter as the folder that `peft.PeftModel.from_pretrained` loads, with the classifier in `modules_to_save`.

use std::path::Path;

use candle_core::Tensor;
use serde_json::json;

use crate::error::Result;
use crate::models::{Family, Head, copy_tokenizer, write_json, write_safetensors};
use crate::nn::Adapter;
use crate::spec::LoraSpec;

/// What an adapter's folder says.
pub struct AdapterFolder<'a> {
    /// The base's name, as `base_model_name_or_path`.
    pub base_name: &'a str,
    /// The base's folder, for its tokenizer.
    pub base_folder: &'a Path,
    /// The family, for the head's names.
    pub family: Family,
    /// The updates.
    pub adapter: &'a Adapter,
    /// The head.
    pub head: &'a Head,
    /// Settings of the updates.
    pub lora: &'a LoraSpec,
    /// Full names of the updated modules.
    pub target_modules: &'a [String],
    /// Modules of the head that are saved.
    pub modules_to_save: &'a [String],
    /// Label names in the order of their ids; PEFT's format has no place for them.
    pub labels: &'a [String],
    /// Longest sequence in training.
    pub max_length: usize,
}

/// Writes adapter_config.json, adapter_model.safetensors (f32), labels.json and the tokenizer.
///
/// # Errors
/// If a file cannot be written.
pub fn save_adapter(folder: &Path, a: &AdapterFolder) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for layer in a.adapter.layers() {
        for param in [&layer.a, &layer.b] {
            tensors.push((format!("base_model.model.{}", param.name), param.value.clone()));
        }
    }
    for param in a.head.params() {
        if a.modules_to_save.iter().any(|m| in_module(a.family, &param.name, m)) {
            tensors.push((format!("base_model.model.{}", param.name), param.value.clone()));
        }
    }
    write_safetensors(&folder.join("adapter_model.safetensors"), &tensors)?;
    let config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": a.base_name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": a.lora.lora_alpha,
        "lora_dropout": a.lora.lora_dropout,
        "modules_to_save": a.modules_to_save,
        "peft_type": "LORA",
        "r": a.lora.r,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": null,
        "target_modules": a.target_modules,
        "task_type": "SEQ_CLS",
        "use_dora": false,
        "use_rslora": a.lora.use_rslora,
    });
    write_json(&folder.join("adapter_config.json"), &config)?;
    write_json(&folder.join("labels.json"), &json!(a.labels))?;
    copy_tokenizer(a.base_folder, folder, a.max_length)
}

/// Whether a head's tensor belongs to the module that `modules_to_save` names.
pub(super) fn in_module(family: Family, tensor: &str, module: &str) -> bool {
    let tensor = tensor.strip_prefix(&format!("{}.", family.prefix())).unwrap_or(tensor);
    tensor.starts_with(&format!("{module}."))
}
