//! Where a decoder's tensors come from: a Hugging Face folder or a GGUF file, both by Hugging Face's names.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};
use tunesmith_gguf::{GgufFile, Kind};
use tunesmith_ops::quant::{QuantKind, QuantPacked};

use super::weights::{WeightFile, read_json, short};
use crate::error::{MlError, Result};

/// A model's tensors with its configuration.
pub enum Weights {
    /// safetensors and config.json.
    Folder(WeightFile, Map<String, Value>),
    /// One file with everything.
    Gguf(Box<GgufFile>),
}

fn gguf(error: tunesmith_gguf::GgufError) -> MlError {
    MlError::Format(error.to_string())
}

/// The GGUF file that `path` is, or that is the only one in the folder `path` and its only weights: repositories of GGUF files
/// often hold the original's config.json too.
pub fn gguf_of(path: &Path) -> Option<std::path::PathBuf> {
    let ends = |p: &Path, end: &str| p.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
    if path.is_file() {
        return ends(path, "gguf").then(|| path.to_owned());
    }
    let files: Vec<_> = std::fs::read_dir(path).ok()?.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect();
    let mut ggufs = files.iter().filter(|p| ends(p, "gguf"));
    let only = ggufs.next().filter(|_| ggufs.next().is_none())?;
    (!files.iter().any(|p| ends(p, "safetensors"))).then(|| only.clone())
}

/// Why a folder without config.json is no model.
pub fn without_config(folder: &Path) -> MlError {
    let is_gguf = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut ggufs: Vec<_> = files.filter(|p| is_gguf(p)).filter_map(|p| p.file_name().map(|n| n.display().to_string())).collect();
    ggufs.sort_unstable();
    MlError::Format(match &ggufs[..] {
        [first, _, ..] => format!("{} holds {} GGUF files; name one of them, such as {first}", short(folder), ggufs.len()),
        _ => format!("{}: holds neither a config.json nor one GGUF file", short(folder)),
    })
}

impl Weights {
    /// Opens a folder with config.json, or a GGUF file.
    ///
    /// # Errors
    /// If neither is there, or what is there is malformed.
    pub fn open(path: &Path) -> Result<Self> {
        if let Some(file) = gguf_of(path) {
            return Ok(Self::Gguf(Box::new(GgufFile::open(&file).map_err(gguf)?)));
        }
        let config = path.join("config.json");
        if !config.is_file() {
            return Err(without_config(path));
        }
        let Value::Object(map) = read_json(&config)? else {
            return Err(MlError::Format(format!("{}: expected a JSON object", short(&config))));
        };
        Ok(Self::Folder(WeightFile::open_folder(path)?, map))
    }

    /// The configuration as config.json has it.
    ///
    /// # Errors
    /// If a GGUF file's architecture is not known.
    pub fn config(&self) -> Result<Map<String, Value>> {
        match self {
            Self::Folder(_, map) => Ok(map.clone()),
            Self::Gguf(file) => file.config_json().map_err(gguf),
        }
    }

    /// Lets the memory of what was read go; the file is read again where somebody asks.
    pub fn release(&self) {
        match self {
            Self::Folder(file, _) => file.release(),
            Self::Gguf(file) => file.release(),
        }
    }

    /// Names of all tensors that a model of the file's architecture may have.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Folder(file, _) => file.names().into_iter().map(str::to_owned).collect(),
            Self::Gguf(file) => file.hf_names(),
        }
    }

    /// Whether the tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(file, _) => file.contains(name),
            Self::Gguf(file) => file.hf_shape(name).is_some(),
        }
    }

    /// Whether the file has the tensor in bf16.
    pub fn is_bf16(&self, name: &str) -> bool {
        match self {
            Self::Folder(file, _) => file.is_bf16(name),
            Self::Gguf(file) => file.hf_kind(name) == Some(Kind::BF16),
        }
    }

    /// Reads a tensor as f32 and checks its shape.
    ///
    /// # Errors
    /// If it is missing, has another shape, or a type that cannot be read.
    pub fn get(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let tensor = self.get_any(name, device)?;
        match tensor.dims() == shape {
            true => Ok(tensor),
            false => Err(MlError::Format(format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.dims()))),
        }
    }

    /// The blocks of a matrix `[n, k]` as the products read them; nothing if the file holds it in another way than in blocks that they
    /// know. A shape that does not fit is left to [`Self::get`], which says so.
    ///
    /// # Errors
    /// If the blocks are damaged.
    pub fn quantised(&self, name: &str, n: usize, k: usize) -> Result<Option<QuantPacked>> {
        let Self::Gguf(file) = self else { return Ok(None) };
        let Some(raw) = file.hf_raw(name).map_err(gguf)? else { return Ok(None) };
        let Some(kind) = quant_kind(raw.kind).filter(|kind| raw.shape == [n, k] && k.is_multiple_of(kind.block())) else { return Ok(None) };
        let packed = QuantPacked::new(kind, &raw.bytes, n, k).map_err(|e| MlError::Format(format!("tensor {name}: {e}")))?;
        Ok(Some(packed))
    }

    /// Reads a tensor as f32 in the shape that it has.
    ///
    /// # Errors
    /// If it is missing, or has a type that cannot be read.
    pub fn get_any(&self, name: &str, device: &Device) -> Result<Tensor> {
        match self {
            Self::Folder(file, _) => file.get_any(name, device),
            Self::Gguf(file) => {
                let (shape, values) =
                    file.hf_tensor(name).map_err(gguf)?.ok_or_else(|| MlError::Format(format!("tensor {name} is missing")))?;
                Ok(Tensor::from_vec(values, shape, device)?)
            }
        }
    }
}

/// The products' format of a file's type, if they know it.
fn quant_kind(kind: Kind) -> Option<QuantKind> {
    Some(match kind {
        Kind::Q4_0 => QuantKind::Q4_0,
        Kind::Q4_1 => QuantKind::Q4_1,
        Kind::Q5_0 => QuantKind::Q5_0,
        Kind::Q5_1 => QuantKind::Q5_1,
        Kind::Q8_0 => QuantKind::Q8_0,
        Kind::Q4_K => QuantKind::Q4_K,
        Kind::Q5_K => QuantKind::Q5_K,
        Kind::Q6_K => QuantKind::Q6_K,
        _ => return None,
    })
}
