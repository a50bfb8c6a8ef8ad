//! Loading PEFT folders, ours and others': every tensor finds its place in the base, or the adapter is refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use fancy_regex::Regex;
use serde::Deserialize;

use crate::error::{MlError, Result};
use crate::models::decoder::{DecoderBase, DecoderFamily};
use crate::models::{BaseModel, Head, WeightFile, head_modules, read_json};
use crate::nn::{Adapter, Linear, LoraLayer, Param};

/// The updates of a decoder.
pub struct LoadedUpdates {
    /// The updates.
    pub adapter: Adapter,
    /// `base_model_name_or_path`.
    pub base_name: Option<String>,
    /// Rank, for listings.
    pub r: usize,
    /// What a user should know, such as an adapter that changes nothing.
    pub warnings: Vec<String>,
}

/// An adapter with its head.
pub struct LoadedAdapter {
    /// The updates.
    pub adapter: Adapter,
    /// The head.
    pub head: Head,
    /// `base_model_name_or_path`.
    pub base_name: Option<String>,
    /// Rank, for listings.
    pub r: usize,
    /// What a user should know, such as an adapter that changes nothing.
    pub warnings: Vec<String>,
}

/// The fields of `adapter_config.json` that change the result; the others are PEFT's own affairs.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    target_modules: Option<serde_json::Value>,
}

impl AdapterConfig {
    /// `conv1d` says whether the base has linear layers that are stored transposed.
    fn read(folder: &Path, conv1d: bool) -> Result<Self> {
        let path = folder.join("adapter_config.json");
        let config: Self =
            serde_json::from_value(read_json(&path)?).map_err(|e| MlError::AdapterMismatch(format!("{}: {e}", file_name(&path))))?;
        let refuse = |what: &str| Err(MlError::AdapterMismatch(format!("adapter_config.json: {what}")));
        match &config {
            c if c.peft_type != "LORA" => refuse(&format!("peft_type {:?} is not supported; supported: LORA", c.peft_type)),
            c if c.use_dora => refuse("use_dora: DoRA adapters are not supported"),
            c if c.fan_in_fan_out && !conv1d => refuse("fan_in_fan_out: the base model has no Conv1D layers"),
            c if c.bias.as_deref().is_some_and(|b| b != "none") => refuse("bias: only \"none\" is supported"),
            c if c.r == 0 => refuse("r: must be at least 1"),
            _ => Ok(config),
        }
    }

    /// `(rank, scale)` of a module; patterns match PEFT's way, at the end of the name.
    fn rank_and_scale(&self, module: &str) -> Result<(usize, f64)> {
        let r = lookup(&self.rank_pattern, module)?.unwrap_or(self.r);
        let alpha = lookup(&self.alpha_pattern, module)?.unwrap_or(self.lora_alpha);
        Ok((r, alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }))
    }

    /// Names in `target_modules` that must each have tensors.
    fn named_targets(&self) -> Vec<&str> {
        self.target_modules.as_ref().and_then(|v| v.as_array()).map(|a| a.iter().filter_map(|v| v.as_str()).collect()).unwrap_or_default()
    }
}

fn lookup<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        let regex = Regex::new(&format!("(?:.*\\.)?(?:{pattern})$"))
            .map_err(|e| MlError::AdapterMismatch(format!("adapter_config.json: pattern {pattern:?}: {e}")))?;
        if regex.is_match(module).unwrap_or(false) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Loads the adapter in `folder` for `base`.
///
/// # Errors
/// [`MlError::AdapterMismatch`] with the tensor's name, if one is missing, has no place or has another shape than its place.
pub fn load_adapter(folder: &Path, base: &BaseModel) -> Result<LoadedAdapter> {
    let config = AdapterConfig::read(folder, false)?;
    let weights = open(folder)?;
    let mut place = Place::new(&weights, base.device());
    let head = place.head(base)?;
    // PEFT's `all-linear` takes BERT's pooler for a part of the encoder.
    let adapter = place.adapter(&config, base.encoder.linears().chain([&head.dense]))?;
    place.all_used()?;
    let mut warnings = Vec::new();
    if adapter.layers().next().is_some() && changes_nothing(&adapter)? {
        warnings.push("every lora_B is zero: beside its head the adapter changes nothing".to_owned());
    }
    Ok(LoadedAdapter { adapter, head, base_name: config.base_model_name_or_path, r: config.r, warnings })
}

/// Loads the adapter in `folder` for a decoder.
///
/// # Errors
/// [`MlError::AdapterMismatch`] with the tensor's name, if one is missing, has no place or has another shape than its place.
pub fn load_language_adapter(folder: &Path, base: &DecoderBase) -> Result<LoadedUpdates> {
    let config = AdapterConfig::read(folder, base.decoder.config.family == DecoderFamily::Gpt2)?;
    let weights = open(folder)?;
    let mut place = Place::new(&weights, base.device());
    let adapter = place.adapter(&config, base.decoder.linears())?;
    place.all_used()?;
    if adapter.layers().next().is_none() {
        return Err(MlError::AdapterMismatch("no tensor of the adapter matches a module of the base model".to_owned()));
    }
    let mut warnings = Vec::new();
    if changes_nothing(&adapter)? {
        warnings.push("every lora_B is zero: the adapter changes nothing".to_owned());
    }
    Ok(LoadedUpdates { adapter, base_name: config.base_model_name_or_path, r: config.r, warnings })
}

fn open(folder: &Path) -> Result<WeightFile> {
    WeightFile::open(&[folder.join("adapter_model.safetensors")]).map_err(|e| MlError::AdapterMismatch(e.to_string()))
}

fn changes_nothing(adapter: &Adapter) -> Result<bool> {
    Ok(adapter.layers().map(is_zero).collect::<Result<Vec<_>>>()?.iter().all(|z| *z))
}

fn is_zero(layer: &LoraLayer) -> Result<bool> {
    Ok(layer.b.value.abs()?.max_all()?.to_scalar::<f32>()? == 0.0)
}

/// A tensor's name without PEFT's wrappers: `base_model.model.`, the adapter's name, `modules_to_save`.
fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    name.replace(".modules_to_save.default.", ".")
        .replace(".modules_to_save.", ".")
        .replace(".lora_A.default.", ".lora_A.")
        .replace(".lora_B.default.", ".lora_B.")
}

/// Tensors that still look for their place.
struct Place<'a> {
    weights: &'a WeightFile,
    tensors: BTreeMap<String, String>,
    device: &'a Device,
}

impl<'a> Place<'a> {
    fn new(weights: &'a WeightFile, device: &'a Device) -> Self {
        let tensors = weights.names().into_iter().map(|name| (plain_name(name), name.to_owned())).collect();
        Self { weights, tensors, device }
    }

    fn all_used(&self) -> Result<()> {
        match self.tensors.first_key_value() {
            Some((_, name)) => Err(MlError::AdapterMismatch(format!("tensor {name} has no place in the base model"))),
            None => Ok(()),
        }
    }

    fn take(&mut self, plain: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(name) = self.tensors.remove(plain) else {
            return Err(MlError::AdapterMismatch(format!("tensor base_model.model.{plain} is missing")));
        };
        let found = self.weights.shape(&name)?.unwrap_or_default();
        if found != shape {
            return Err(MlError::AdapterMismatch(format!("tensor {name} has shape {found:?}, but the base model needs {shape:?}")));
        }
        let tensor = self.weights.get(&name, shape, self.device).map_err(|e| MlError::AdapterMismatch(e.to_string()))?;
        // One NaN or infinity makes the sum neither.
        match tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
            true => Ok(tensor),
            false => Err(MlError::AdapterMismatch(format!("tensor {name} holds values that are no numbers (NaN or infinity)"))),
        }
    }

    /// The updates of these layers.
    fn adapter<'l>(&mut self, config: &AdapterConfig, linears: impl Iterator<Item = &'l Linear>) -> Result<Adapter> {
        let mut adapter = Adapter::default();
        for linear in linears {
            let name = linear.name().to_owned();
            let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
            if !self.tensors.contains_key(&a) && !self.tensors.contains_key(&b) {
                continue;
            }
            let ((out, input), (r, scale)) = (linear.shape(), config.rank_and_scale(&name)?);
            let layer = LoraLayer::new(
                linear.id,
                Param::new(a.clone(), self.take(&a, &[r, input])?),
                Param::new(b.clone(), self.take(&b, &[out, r])?),
                scale as f32,
                0.0,
            )?;
            adapter.insert(linear.id, layer);
        }
        let targets = config.named_targets();
        let is_of = |l: &LoraLayer, target: &str| {
            let module = l.a.name.trim_end_matches(".lora_A.weight");
            module == target || module.ends_with(&format!(".{target}"))
        };
        for target in &targets {
            if !adapter.layers().any(|l| is_of(l, target)) {
                // Both hint at what the file holds instead.
                let homeless = self.tensors.keys().find(|k| k.contains(".lora_")).map(String::as_str);
                let unnamed = adapter.layers().find(|l| !targets.iter().any(|t| is_of(l, t))).map(|l| l.a.name.as_str());
                let stray = match (homeless, unnamed) {
                    (Some(name), _) => format!("; tensor base_model.model.{name} has no place"),
                    (None, Some(name)) => format!("; tensor base_model.model.{name} belongs to no target module"),
                    (None, None) => String::new(),
                };
                return Err(MlError::AdapterMismatch(format!(
                    "target_modules names {target:?}, but no tensor for it fits the base model{stray}"
                )));
            }
        }
        Ok(adapter)
    }

    fn head(&mut self, base: &BaseModel) -> Result<Head> {
        let config = &base.encoder.config;
        let h = config.hidden;
        let (dense, out) = head_modules(config.family);
        let weight = format!("{out}.weight");
        let outputs = match self.tensors.get(&weight) {
            Some(name) => self.weights.shape(name)?.unwrap_or_default().first().copied().unwrap_or(0),
            None => {
                return Err(MlError::AdapterMismatch(format!(
                    "tensor base_model.model.{weight} is missing: the adapter has no classifier"
                )));
            }
        };
        let ow = self.take(&weight, &[outputs, h])?;
        let ob = self.take(&format!("{out}.bias"), &[outputs])?;
        let (dw, db) = (format!("{dense}.weight"), format!("{dense}.bias"));
        let (dw, db) = if self.tensors.contains_key(&dw) || self.tensors.contains_key(&db) {
            (self.take(&dw, &[h, h])?, self.take(&db, &[h])?)
        } else {
            let missing =
                || MlError::AdapterMismatch(format!("tensor base_model.model.{dw} is missing, in the adapter and in the base model"));
            (base.head_tensor(dense, "weight", &[h, h])?.ok_or_else(missing)?, base.head_tensor(dense, "bias", &[h])?.ok_or_else(missing)?)
        };
        Head::from_tensors(config, dw, db, ow, ob, false)
    }
}
