//! Safetensors files, single or in shards, opened with checks and read tensor by tensor as f32.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
pub use tunesmith_gguf::short;
use tunesmith_ops::mmap::{Mmap, map_file, release_pages};

use crate::error::{MlError, Result};

/// Largest JSON file that a model folder may hold (tokenizer.json of a large vocabulary is about 30 MiB).
const MAX_JSON_BYTES: u64 = 128 << 20;

/// Reads a JSON file of limited size.
///
/// # Errors
/// If it is missing, too large or malformed; the message names the file.
pub fn read_json(path: &Path) -> Result<serde_json::Value> {
    let file = open(path)?;
    let mut text = Vec::new();
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text).map_err(|e| MlError::io(path, e))?;
    if text.len() as u64 > MAX_JSON_BYTES {
        return Err(MlError::Format(format!("{}: larger than {MAX_JSON_BYTES} bytes", short(path))));
    }
    serde_json::from_slice(&text).map_err(|e| MlError::Format(format!("{}: {e}", short(path))))
}

/// Opens a file of a model's folder; one that is not there makes it no whole model.
fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => MlError::Format(format!("{} is missing", short(path))),
        _ => MlError::io(path, e),
    })
}

/// The tensors of a model folder or of one file.
pub struct WeightFile {
    shards: Vec<(PathBuf, Mmap)>,
    shard_of: HashMap<String, usize>,
}

impl WeightFile {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// If no such file exists or one is malformed.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::open(&[single]);
        }
        let index = folder.join("model.safetensors.index.json");
        if !index.is_file() {
            return Err(MlError::Format(format!(
                "{}: holds no model.safetensors; convert PyTorch's pytorch_model.bin with transformers' save_pretrained",
                short(folder)
            )));
        }
        let json = read_json(&index)?;
        let map = json["weight_map"].as_object().ok_or_else(|| MlError::Format(format!("{}: holds no weight_map", short(&index))))?;
        let mut names: Vec<&str> = map.values().filter_map(|v| v.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if let Some(bad) = names.iter().find(|n| n.contains(['/', '\\']) || n.starts_with('.')) {
            return Err(MlError::Format(format!("{}: shard {bad:?} is not a plain file name", short(&index))));
        }
        Self::open(&names.iter().map(|n| folder.join(n)).collect::<Vec<_>>())
    }

    /// Opens the files.
    ///
    /// # Errors
    /// If one is missing or malformed, or two hold the same tensor.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut shards = Vec::new();
        let mut shard_of = HashMap::new();
        for path in paths {
            let file = open(path)?;
            let map = map_file(&file).map_err(|e| MlError::io(path, e))?;
            let tensors =
                SafeTensors::deserialize(&map).map_err(|e| MlError::Format(format!("{}: {}", short(path), not_whole(&map, &e))))?;
            for name in tensors.names() {
                if shard_of.insert(name.to_owned(), shards.len()).is_some() {
                    return Err(MlError::Format(format!("{}: tensor {name} stands in two files", short(path))));
                }
            }
            shards.push((path.clone(), map));
        }
        Ok(Self { shards, shard_of })
    }

    /// Lets the memory of what was read go.
    pub fn release(&self) {
        self.shards.iter().for_each(|(_, map)| release_pages(map));
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.shard_of.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Whether the tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    /// A tensor's shape, where it is there.
    pub fn shape(&self, name: &str) -> Result<Option<Vec<usize>>> {
        if !self.contains(name) {
            return Ok(None);
        }
        self.view(name, |v| Ok(Some(v.shape().to_vec())))
    }

    /// Whether the tensor is there and in bf16.
    pub fn is_bf16(&self, name: &str) -> bool {
        self.contains(name) && self.view(name, |v| Ok(v.dtype() == Dtype::BF16)).unwrap_or(false)
    }

    /// Reads a tensor as f32 and checks its shape.
    ///
    /// # Errors
    /// If it is missing, has another shape, or a type that holds no real numbers.
    pub fn get(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let (found, values) = self.view(name, |v| Ok((v.shape().to_vec(), floats(name, &v)?)))?;
        if found != shape {
            return Err(MlError::Format(format!("tensor {name} has shape {found:?}, expected {shape:?}")));
        }
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// Reads a tensor as f32 in the shape that it has.
    ///
    /// # Errors
    /// If it is missing, or has a type that holds no real numbers.
    pub fn get_any(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (shape, values) = self.view(name, |v| Ok((v.shape().to_vec(), floats(name, &v)?)))?;
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    fn view<R>(&self, name: &str, f: impl FnOnce(TensorView<'_>) -> Result<R>) -> Result<R> {
        let Some(&shard) = self.shard_of.get(name) else {
            return Err(MlError::Format(format!("tensor {name} is missing")));
        };
        let (path, map) = &self.shards[shard];
        let tensors = SafeTensors::deserialize(map).map_err(|e| MlError::Format(format!("{}: {e}", short(path))))?;
        f(tensors.tensor(name).map_err(|e| MlError::Format(format!("{}: {e}", short(path))))?)
    }
}

/// Why a file is no safetensors file; one that was cut short says so, and names the first tensor that is not all there.
fn not_whole(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return "it is cut short: it has not even a header".to_owned() };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let Some(header) = rest.get(..length) else {
        return format!("it is no safetensors file, or cut short within its header ({} of {length} bytes are there)", rest.len());
    };
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap_or_default();
    let end = |tensor: &serde_json::Value| tensor["data_offsets"][1].as_u64().unwrap_or(0);
    let there = (rest.len() - length) as u64;
    match header.iter().filter(|(_, tensor)| end(tensor) > there).min_by_key(|(_, tensor)| end(tensor)) {
        Some((name, tensor)) => {
            format!("it is cut short: tensor {name} ends at byte {} of the data, and only {there} are there; copy it again", end(tensor))
        }
        None => format!("it is no safetensors file: {error}"),
    }
}

/// The values of an f32, f16 or bf16 tensor.
fn floats(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        other => return Err(MlError::Format(format!("tensor {name} has type {other:?}; expected F32, F16 or BF16"))),
    })
}

/// Writes f32 tensors as a safetensors file with PyTorch's metadata.
///
/// # Errors
/// If the file cannot be written.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let owned = tensors
        .iter()
        .map(|(name, t)| {
            let values: Vec<f32> = t.flatten_all()?.to_vec1()?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Ok((name.as_str(), t.dims().to_vec(), bytes))
        })
        .collect::<Result<Vec<_>>>()?;
    let views = owned
        .iter()
        .map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map(|v| (*name, v))
                .map_err(|e| MlError::Format(format!("tensor {name}: {e}")))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => MlError::io(path, e),
        e => MlError::Format(format!("{}: {e}", short(path))),
    })
}
