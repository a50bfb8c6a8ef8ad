//! Writing a fine-tuned model as a Hugging Face folder that `transformers` loads.

use std::fs;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::load::BaseModel;
use super::weights::{read_json, write_safetensors};
use crate::error::{MlError, Result};
use crate::spec::ProblemType;

/// What a folder says of a classifier.
pub struct FullModel<'a> {
    /// The base that was fine-tuned.
    pub base: &'a BaseModel,
    /// Every trained tensor by its full name, and the head's.
    pub tensors: Vec<(String, Tensor)>,
    /// Label names in the order of their ids.
    pub labels: &'a [String],
    /// The loss that it was trained with.
    pub problem_type: ProblemType,
    /// Longest sequence in training.
    pub max_length: usize,
}

/// Writes config.json, model.safetensors (f32) and the tokenizer. Tensors of the encoder that were not trained are read from
/// the base's file again.
///
/// # Errors
/// If a file cannot be written.
pub fn save_full(folder: &Path, model: FullModel) -> Result<()> {
    let FullModel { base, mut tensors, labels, problem_type, max_length } = model;
    for name in base.encoder_tensor_names() {
        if !tensors.iter().any(|(n, _)| *n == name) {
            let value = base.reread(&name)?;
            tensors.push((name, value));
        }
    }
    write_safetensors(&folder.join("model.safetensors"), &tensors)?;
    let config = classifier_config(base, labels, problem_type);
    write_json(&folder.join("config.json"), &Value::Object(config))?;
    copy_tokenizer(&base.folder, folder, max_length)
}

/// The base's configuration with the classifier's class, labels and loss.
fn classifier_config(base: &BaseModel, labels: &[String], problem_type: ProblemType) -> serde_json::Map<String, Value> {
    let mut config = base.encoder.config.raw.clone();
    for stale in ["_name_or_path", "architectures", "id2label", "label2id", "num_labels", "problem_type", "dtype", "torch_dtype"] {
        config.remove(stale);
    }
    // A regression's one output has no name of its own; transformers calls it LABEL_0.
    let regression = ["LABEL_0".to_owned()];
    let names = if labels.is_empty() { &regression[..] } else { labels };
    let id2label: serde_json::Map<_, _> = names.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
    let label2id: serde_json::Map<_, _> = names.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
    config.insert("architectures".into(), json!([base.encoder.config.family.classifier_class()]));
    config.insert("id2label".into(), id2label.into());
    config.insert("label2id".into(), label2id.into());
    config.insert("problem_type".into(), json!(problem_type));
    config.insert("torch_dtype".into(), json!("float32"));
    config
}

/// Files that a tokenizer may consist of, beside tokenizer.json and tokenizer_config.json.
const TOKENIZER_FILES: &[&str] = &["vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"];

/// Copies a tokenizer without its own padding and truncation, and with `max_length` as `model_max_length`.
///
/// # Errors
/// If tokenizer.json is missing or a file cannot be written.
pub fn copy_tokenizer(from: &Path, to: &Path, max_length: usize) -> Result<()> {
    let mut tokenizer = read_json(&from.join("tokenizer.json"))?;
    tokenizer["padding"] = Value::Null;
    tokenizer["truncation"] = Value::Null;
    write_json(&to.join("tokenizer.json"), &tokenizer)?;
    let path = from.join("tokenizer_config.json");
    let mut config = if path.is_file() { read_json(&path)? } else { json!({}) };
    if let Some(config) = config.as_object_mut() {
        config.insert("model_max_length".into(), json!(max_length));
        config.remove("name_or_path");
    }
    write_json(&to.join("tokenizer_config.json"), &config)?;
    for name in TOKENIZER_FILES {
        let file = from.join(name);
        if file.is_file() {
            fs::copy(&file, to.join(name)).map_err(|e| MlError::io(file, e))?;
        }
    }
    Ok(())
}

/// Writes a JSON file as `transformers` does: indented by two, with a last newline.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).map_err(|e| MlError::io(path, e))
}
