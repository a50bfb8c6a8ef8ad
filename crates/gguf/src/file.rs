//! A GGUF file as it lies on disk: header, metadata and the places of tensors, every count and offset checked against the file's length.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The file is mapped, not read: opening costs the metadata
//! only, and a tensor's bytes are paged in when somebody asks for them.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use tunesmith_ops::mmap::{Mmap, map_file, release_pages};

use crate::error::{GgufError, Result, short, unsupported};
use crate::kind::Kind;
use crate::names::hf_name;
use crate::reader::{Fault, Parsed, Reader, broken};
use crate::value::Value;

/// Keys of the metadata, at most.
const MAX_KEYS: u64 = 65_536;
/// Tensors, at most.
const MAX_TENSORS: u64 = 65_536;
/// Bytes of a key or a tensor's name, at most; the format's own limit for keys.
const MAX_NAME: u64 = 65_535;
/// Dimensions of a tensor, at most; ggml's limit.
const MAX_DIMS: u32 = 4;
/// Where tensors begin if `general.alignment` does not say otherwise.
const ALIGNMENT: i64 = 32;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Its shape, outermost dimension first, as PyTorch has it.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub kind: Kind,
    start: usize,
    bytes: usize,
}

/// A GGUF file, mapped.
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    /// The file's own names by Hugging Face's.
    hf_names: BTreeMap<String, String>,
}

impl fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "GgufFile({}: {} keys, {} tensors)", self.path.display(), self.metadata.len(), self.tensors.len())
    }
}

impl GgufFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, is not whole, or is of a version, byte order or tensor type that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let map = map_file(&File::open(path).map_err(io)?).map_err(io)?;
        let (metadata, tensors) = parse(&map).map_err(|fault| match fault {
            Fault::Broken(what) => GgufError::Malformed { path: path.to_owned(), what },
            Fault::Unsupported(what) => GgufError::Unsupported(format!("{}: {what}", short(path))),
        })?;
        let architecture = metadata.get("general.architecture").and_then(Value::text).unwrap_or_default();
        let hf_names = tensors.keys().filter_map(|own| Some((hf_name(architecture, own)?, own.clone()))).collect();
        Ok(Self { path: path.to_owned(), map, metadata, tensors, hf_names })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the memory of what was read go.
    pub fn release(&self) {
        release_pages(&self.map);
    }

    /// A value of the metadata.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A text of the metadata.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::text)
    }

    /// A count or an id of the metadata.
    pub fn size(&self, key: &str) -> Option<usize> {
        self.value(key).and_then(Value::integer).and_then(|v| usize::try_from(v).ok())
    }

    /// `general.architecture`, or nothing.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// Every tensor by its own name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// A tensor's place and its bytes, by its own name.
    pub fn raw(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.tensors.get(name)?;
        Some((info, &self.map[info.start..info.start + info.bytes]))
    }

    /// A tensor as f32, with its shape, by its own name.
    ///
    /// # Errors
    /// If it is not there.
    pub fn dequantise(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        match self.raw(name) {
            Some((info, bytes)) => Ok((info.shape.clone(), info.kind.dequantise(bytes)?)),
            None => unsupported(format!("there is no tensor {name}")),
        }
    }

    /// The file's own name of a tensor by Hugging Face's.
    pub(crate) fn own_name(&self, hf_name: &str) -> Option<&str> {
        self.hf_names.get(hf_name).map(String::as_str)
    }

    /// Hugging Face's names of all tensors that a model of this architecture has.
    pub fn hf_names(&self) -> Vec<String> {
        self.hf_names.keys().cloned().collect()
    }
}

type Parts = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

/// A tensor as the header announces it, before its place is checked; the shape is innermost first.
struct Announced {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn parse(data: &[u8]) -> Parsed<Parts> {
    let mut r = Reader::new(data);
    if r.array::<4>("the magic")? != *b"GGUF" {
        return broken("it does not begin with GGUF");
    }
    match r.u32("the version")? {
        2 | 3 => {}
        1 => return Err(Fault::Unsupported("version 1 is not supported; supported: 2, 3. Convert the model again".to_owned())),
        v if (1..=3).contains(&v.swap_bytes()) => {
            return Err(Fault::Unsupported("big-endian files are not supported; convert the model for a little-endian machine".to_owned()));
        }
        v => return Err(Fault::Unsupported(format!("version {v} is not supported; supported: 2, 3"))),
    }
    let (tensor_count, keys) = (r.u64("the number of tensors")?, r.u64("the number of keys")?);
    for (count, most, what) in [(tensor_count, MAX_TENSORS, "tensors"), (keys, MAX_KEYS, "keys")] {
        if count > most {
            return broken(format!("the header says {count} {what}; at most {most} are read"));
        }
    }
    let metadata = metadata(&mut r, keys)?;
    let mut announced = Vec::new();
    for _ in 0..tensor_count {
        announced.push(announced_tensor(&mut r)?);
    }
    let alignment = metadata.get("general.alignment").map_or(Some(ALIGNMENT), Value::integer);
    let alignment = match alignment.and_then(|a| usize::try_from(a).ok()).filter(|a| a.is_power_of_two() && *a <= 1 << 20) {
        Some(a) => a,
        None => return broken("general.alignment is not a power of two between 1 and 1048576"),
    };
    let base = r.at().next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for tensor in announced {
        let info = place(&tensor, base, alignment, data.len())?;
        if tensors.contains_key(&tensor.name) {
            return broken(format!("the tensor {} stands twice", tensor.name));
        }
        tensors.insert(tensor.name, info);
    }
    Ok((metadata, tensors))
}

fn metadata(r: &mut Reader, keys: u64) -> Parsed<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = r.text("a key", MAX_NAME)?;
        let value = r.value(&key)?;
        if metadata.contains_key(&key) {
            return broken(format!("the key {key} stands twice"));
        }
        metadata.insert(key, value);
    }
    match metadata.get("split.count").and_then(Value::integer) {
        Some(parts) if parts > 1 => Err(Fault::Unsupported(format!(
            "it is one of {parts} parts of a model; join them first (llama.cpp's llama-gguf-split --merge)"
        ))),
        _ => Ok(metadata),
    }
}

fn announced_tensor(r: &mut Reader) -> Parsed<Announced> {
    let name = r.text("a tensor's name", MAX_NAME)?;
    let dims = r.u32(&name)?;
    if dims > MAX_DIMS {
        return broken(format!("the tensor {name} has {dims} dimensions; at most {MAX_DIMS} are read"));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        shape.push(r.u64(&name)?);
    }
    let (kind, offset) = (r.u32(&name)?, r.u64(&name)?);
    Ok(Announced { name, shape, kind, offset })
}

/// Checks that a tensor is of a known type, of whole blocks, and within the file.
fn place(tensor: &Announced, base: usize, alignment: usize, len: usize) -> Parsed<TensorInfo> {
    let Announced { name, shape, kind, offset } = tensor;
    let Some(kind) = Kind::of(*kind) else {
        let names: Vec<String> = Kind::ALL.iter().map(|(_, kind)| format!("{kind:?}")).collect();
        let foreign = Kind::foreign(*kind);
        return Err(Fault::Unsupported(format!(
            "the tensor {name} has the type {foreign}, which is not supported; supported: {}",
            names.join(", ")
        )));
    };
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
    let row = shape.first().copied().unwrap_or(1);
    let (per_block, block_bytes) = (kind.block() as u64, kind.block_bytes() as u64);
    let bytes = elements
        .filter(|_| row.is_multiple_of(per_block))
        .and_then(|n| (n / per_block).checked_mul(block_bytes))
        .and_then(|n| usize::try_from(n).ok());
    let Some(bytes) = bytes else {
        return broken(format!("the tensor {name} of shape {shape:?} is not made of whole blocks of {per_block} in rows"));
    };
    let offset = usize::try_from(*offset).unwrap_or(usize::MAX);
    if !offset.is_multiple_of(alignment) {
        return broken(format!("the tensor {name} lies at offset {offset}, which is not a multiple of {alignment}"));
    }
    match base.checked_add(offset).and_then(|start| Some((start, start.checked_add(bytes)?))) {
        Some((start, end)) if end <= len => {
            // Each dimension is at most the number of elements, and those have just been found to fit.
            Ok(TensorInfo { shape: shape.iter().rev().map(|d| *d as usize).collect(), kind, start, bytes })
        }
        _ => broken(format!(
            "the tensor {name} has {bytes} bytes at offset {offset} after byte {base}, and the file ends at {len}: it is cut off"
        )),
    }
}
