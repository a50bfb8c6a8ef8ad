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
    let updates = a.adapter.layers().flat_map(|l| [&l.a, &l.b]);
    let head = a.head.params().filter(|p| a.modules_to_save.iter().any(|m| in_module(a.family, &p.name, m)));
    let about = AdapterConfigFile {
        base_name: a.base_name,
        lora: a.lora,
        target_modules: a.target_modules,
        modules_to_save: a.modules_to_save,
        task_type: "SEQ_CLS",
        fan_in_fan_out: false,
    };
    write_adapter(folder, updates.chain(head).map(|p| (p.name.clone(), p.value.clone())).collect(), &about)?;
    write_json(&folder.join("labels.json"), &json!(a.labels))?;
    copy_tokenizer(a.base_folder, folder, a.max_length)
}

/// What adapter_config.json says.
pub struct AdapterConfigFile<'a> {
    /// The base's name, as `base_model_name_or_path`.
    pub base_name: &'a str,
    /// Settings of the updates.
    pub lora: &'a LoraSpec,
    /// Full names of the updated modules.
    pub target_modules: &'a [String],
    /// Modules that are saved whole.
    pub modules_to_save: &'a [String],
    /// PEFT's task.
    pub task_type: &'static str,
    /// Whether the base stores its linear weights transposed.
    pub fan_in_fan_out: bool,
}

/// Writes adapter_config.json and adapter_model.safetensors (f32); the tensors' names are those of the model's modules.
///
/// # Errors
/// If a file cannot be written.
pub fn write_adapter(folder: &Path, tensors: Vec<(String, Tensor)>, a: &AdapterConfigFile) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().map(|(name, value)| (format!("base_model.model.{name}"), value)).collect();
    write_safetensors(&folder.join("adapter_model.safetensors"), &tensors)?;
    let config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": a.base_name,
        "bias": "none",
        "fan_in_fan_out": a.fan_in_fan_out,
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
        "task_type": a.task_type,
        "use_dora": false,
        "use_rslora": a.lora.use_rslora,
    });
    write_json(&folder.join("adapter_config.json"), &config)
}

/// Whether a head's tensor belongs to the module that `modules_to_save` names.
pub(super) fn in_module(family: Family, tensor: &str, module: &str) -> bool {
    let tensor = tensor.strip_prefix(&format!("{}.", family.prefix())).unwrap_or(tensor);
    tensor.starts_with(&format!("{module}."))
}
