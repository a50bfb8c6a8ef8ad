//! Loading PEFT folders, ours and others': every tensor finds its place in the base, or the adapter is refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::config::{AdapterConfig, BaseKind, CLASSIFIES};
use crate::error::{MlError, Result};
use crate::models::decoder::{DecoderBase, DecoderFamily};
use crate::models::{BaseModel, Head, WeightFile, head_modules};
use crate::nn::{Adapter, Linear, LoraLayer, Param};

/// What an adapter says of itself, for listings.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFacts {
    /// `base_model_name_or_path`.
    pub base_name: Option<String>,
    /// PEFT's task.
    pub task_type: Option<String>,
    /// Rank of modules that no pattern names.
    pub r: usize,
    /// The scale is this by the rank, or by its root where the adapter is rank-stabilised.
    pub lora_alpha: f64,
    /// Whether it is rank-stabilised.
    pub use_rslora: bool,
    /// Names of modules, or a pattern.
    pub target_modules: serde_json::Value,
    /// Numbers in its file, a classifier's included.
    pub parameters: usize,
}

/// The updates of a decoder.
pub struct LoadedUpdates {
    /// The updates.
    pub adapter: Adapter,
    /// What it says of itself.
    pub facts: AdapterFacts,
    /// What a user should know, such as an adapter that changes nothing.
    pub warnings: Vec<String>,
}

/// An adapter with its head.
pub struct LoadedAdapter {
    /// The updates.
    pub adapter: Adapter,
    /// The head, where it brings one.
    pub head: Option<Head>,
    /// What it says of itself.
    pub facts: AdapterFacts,
    /// What a user should know, such as an adapter that changes nothing.
    pub warnings: Vec<String>,
}

/// Loads the adapter in `folder` for `base`.
///
/// # Errors
/// [`MlError::AdapterMismatch`] with the tensor's name, if one is missing, has no place or has another shape than its place.
pub fn load_adapter(folder: &Path, base: &BaseModel) -> Result<LoadedAdapter> {
    let mut config = AdapterConfig::read(folder, BaseKind::Encoder)?;
    let weights = open(folder)?;
    let mut place = Place::new(&weights, base.device());
    let (dense, out) = head_modules(base.encoder.config.family);
    place.add_prefix(base.encoder.config.family.prefix(), &[dense, out]);
    let head = [dense, out].into_iter().flat_map(|m| [format!("{m}.weight"), format!("{m}.bias")]);
    config.check_saved(&place.names(), &base.encoder_tensor_names().into_iter().chain(head).collect::<Vec<_>>())?;
    let head = place.head(base, config.task_type.as_deref() == Some(CLASSIFIES))?;
    // PEFT's `all-linear` takes BERT's pooler for a part of the encoder.
    let adapter = place.adapter(&mut config, base.encoder.linears().chain(head.as_ref().map(|h| &h.dense)))?;
    place.all_used()?;
    let parameters = place.parameters;
    match (adapter.layers().next().is_some(), &head) {
        (false, None) => return Err(MlError::AdapterMismatch("no tensor of the adapter matches a module of the base model".to_owned())),
        (true, _) if changes_nothing(&adapter)? => {
            let what = if head.is_some() { "beside its head the adapter" } else { "the adapter" };
            config.warnings.push(format!("every lora_B is zero: {what} changes nothing"));
        }
        _ => {}
    }
    let (facts, warnings) = told(config, parameters);
    Ok(LoadedAdapter { adapter, head, facts, warnings })
}

/// Loads the adapter in `folder` for a decoder.
///
/// # Errors
/// [`MlError::AdapterMismatch`] with the tensor's name, if one is missing, has no place or has another shape than its place.
pub fn load_language_adapter(folder: &Path, base: &DecoderBase) -> Result<LoadedUpdates> {
    let conv1d = base.decoder.config.family == DecoderFamily::Gpt2;
    let mut config = AdapterConfig::read(folder, BaseKind::Decoder { conv1d })?;
    let weights = open(folder)?;
    let mut place = Place::new(&weights, base.device());
    let own = base.decoder.params().map(|p| p.name.clone()).chain(["lm_head.weight".to_owned()]);
    config.check_saved(&place.names(), &own.collect::<Vec<_>>())?;
    place.only_updates()?;
    let adapter = place.adapter(&mut config, base.decoder.linears())?;
    place.all_used()?;
    let parameters = place.parameters;
    if adapter.layers().next().is_none() {
        return Err(MlError::AdapterMismatch("no tensor of the adapter matches a module of the base model".to_owned()));
    }
    if changes_nothing(&adapter)? {
        config.warnings.push("every lora_B is zero: the adapter changes nothing".to_owned());
    }
    let (facts, warnings) = told(config, parameters);
    Ok(LoadedUpdates { adapter, facts, warnings })
}

fn told(config: AdapterConfig, parameters: usize) -> (AdapterFacts, Vec<String>) {
    let AdapterConfig { base_name, task_type, r, lora_alpha, use_rslora, target_modules, warnings, .. } = config;
    (AdapterFacts { base_name, task_type, r, lora_alpha, use_rslora, target_modules, parameters }, warnings)
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
    /// Numbers of those that found it.
    parameters: usize,
}

impl<'a> Place<'a> {
    fn new(weights: &'a WeightFile, device: &'a Device) -> Self {
        let tensors = weights.names().into_iter().map(|name| (plain_name(name), name.to_owned())).collect();
        Self { weights, tensors, device, parameters: 0 }
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// Refuses modules that were trained whole.
    fn only_updates(&self) -> Result<()> {
        match self.tensors.iter().find(|(plain, _)| !plain.contains(".lora_") && !plain.contains("token_adapter")) {
            Some((_, name)) => Err(MlError::AdapterMismatch(format!(
                "tensor {name} is of a module that was trained whole (modules_to_save); adapters of language models hold LoRA updates \
                 only here: merge this one into its base (merge_and_unload) and serve the result"
            ))),
            None => Ok(()),
        }
    }

    fn all_used(&self) -> Result<()> {
        let Some((plain, name)) = self.tensors.first_key_value() else { return Ok(()) };
        let what = match plain {
            n if n.contains(".lora_embedding_") => "updates an embedding, which is not supported",
            n if n.contains(".lora_magnitude_vector") => "is of a DoRA adapter, which is not supported",
            n if n.ends_with(".lora_B.bias") => "is a bias beside lora_B, which is not supported",
            n if n.contains("token_adapter") => "holds token embeddings that were trained, which is not supported",
            n if !n.contains(".lora_") => {
                "has no place in the base model; of modules that were trained whole only a classifier's are supported"
            }
            _ => "has no place in the base model",
        };
        Err(MlError::AdapterMismatch(format!("tensor {name} {what}")))
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
            true => {
                self.parameters += tensor.elem_count();
                Ok(tensor)
            }
            false => Err(MlError::AdapterMismatch(format!("tensor {name} holds values that are no numbers (NaN or infinity)"))),
        }
    }

    /// The updates of these layers.
    fn adapter<'l>(&mut self, config: &mut AdapterConfig, linears: impl Iterator<Item = &'l Linear>) -> Result<Adapter> {
        let mut adapter = Adapter::default();
        let mut untouched: Vec<String> = Vec::new();
        let mut stray = None;
        for linear in linears {
            let name = linear.name().to_owned();
            let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
            let targeted = config.targets(&name);
            if !self.tensors.contains_key(&a) && !self.tensors.contains_key(&b) {
                untouched.extend((targeted == Some(true)).then_some(name));
                continue;
            }
            if targeted == Some(false) {
                stray.get_or_insert_with(|| a.clone());
            }
            let ((out, input), (r, scale)) = (linear.shape(), config.rank_and_scale(&name));
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
        for target in targets {
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
        if let Some(name) = stray {
            return Err(MlError::AdapterMismatch(format!(
                "tensor base_model.model.{name} belongs to no target module (target_modules, exclude_modules, layers_to_transform, modules_to_save)"
            )));
        }
        if let Some(first) = untouched.first() {
            config.warnings.push(format!(
                "target_modules takes in {} modules that the file has no tensors of, {first} first; they stay as they are in the base",
                untouched.len()
            ));
        }
        Ok(adapter)
    }

    /// Adapters that were trained on a bare encoder name its modules without the family's prefix, which only heads lack otherwise.
    fn add_prefix(&mut self, prefix: &str, heads: &[&str]) {
        let bare =
            |name: &String| !name.starts_with(&format!("{prefix}.")) && !heads.iter().any(|module| name.starts_with(&format!("{module}.")));
        let moved: Vec<String> = self.tensors.keys().filter(|name| bare(name)).cloned().collect();
        for name in moved {
            if let Some(stored) = self.tensors.remove(&name) {
                self.tensors.insert(format!("{prefix}.{name}"), stored);
            }
        }
    }

    /// The head, or none where the file has none and was not trained to classify.
    fn head(&mut self, base: &BaseModel, classifies: bool) -> Result<Option<Head>> {
        let config = &base.encoder.config;
        let h = config.hidden;
        let (dense, out) = head_modules(config.family);
        let weight = format!("{out}.weight");
        let outputs = match self.tensors.get(&weight) {
            Some(name) => self.weights.shape(name)?.unwrap_or_default().first().copied().unwrap_or(0),
            None if !classifies => {
                // Nothing of a vector goes through it.
                self.tensors.retain(|name, _| !name.starts_with(&format!("{dense}.lora_")));
                return Ok(None);
            }
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
        Head::from_tensors(config, dw, db, ow, ob, false).map(Some)
    }
}
