//! Writing a fine-tuned decoder as a Hugging Face folder that `transformers` loads.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::config::DecoderConfig;
use crate::error::Result;
use crate::models::{write_json, write_safetensors};
use crate::text::LanguageTokenizer;

/// Writes config.json, generation_config.json, model.safetensors (f32) and the tokenizer. Tensors are in the file's orientation.
///
/// # Errors
/// If a file cannot be written.
pub fn save_decoder(folder: &Path, config: &DecoderConfig, tensors: &[(String, Tensor)], tokenizer: &LanguageTokenizer) -> Result<()> {
    write_safetensors(&folder.join("model.safetensors"), tensors)?;
    let mut json = config.raw.clone();
    for stale in ["_name_or_path", "architectures", "dtype", "torch_dtype", "quantization_config"] {
        json.remove(stale);
    }
    json.insert("architectures".into(), json!([config.family.class()]));
    json.insert("torch_dtype".into(), json!("float32"));
    write_json(&folder.join("config.json"), &Value::Object(json))?;
    save_language_tokenizer(folder, config, tokenizer)
}

/// Writes tokenizer.json, tokenizer_config.json with the chat template, chat_template.jinja and generation_config.json.
///
/// # Errors
/// If a file cannot be written.
pub fn save_language_tokenizer(folder: &Path, config: &DecoderConfig, tokenizer: &LanguageTokenizer) -> Result<()> {
    write_json(&folder.join("tokenizer.json"), tokenizer.json())?;
    let mut settings = tokenizer.config().as_object().cloned().unwrap_or_default();
    settings.remove("name_or_path");
    if let Some(Value::String(template)) = settings.get("chat_template") {
        let path = folder.join("chat_template.jinja");
        std::fs::write(&path, template).map_err(|e| crate::error::MlError::io(&path, e))?;
    }
    write_json(&folder.join("tokenizer_config.json"), &Value::Object(settings))?;
    let mut generation = Map::new();
    for role in ["bos_token_id", "pad_token_id"] {
        if let Some(id) = config.raw.get(role).filter(|v| v.is_u64()) {
            generation.insert(role.into(), id.clone());
        }
    }
    generation.insert("eos_token_id".into(), json!(tokenizer.end_tokens()));
    write_json(&folder.join("generation_config.json"), &Value::Object(generation))
}
