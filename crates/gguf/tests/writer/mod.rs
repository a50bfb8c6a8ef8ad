//! Writes GGUF files for tests, right ones and wrong ones: nothing is checked, so that every field can say what it should not.

#![allow(dead_code, reason = "each test file uses another part")]

use tempfile::TempDir;
use tunesmith_gguf::{GgufFile, Result};

/// A value of the metadata with the number of its type.
#[derive(Clone)]
pub enum Item {
    U8(u8),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    /// The number of a type, and bytes as they are.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Item {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Item {
    fn from(v: u32) -> Self {
        Self::U32(v)
    }
}

/// A tensor: name, shape with the innermost dimension first, number of its type, bytes.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// Where it lies instead of where it should.
    pub offset: Option<u64>,
}

/// A file in the making.
#[derive(Clone)]
pub struct Writer {
    pub magic: [u8; 4],
    pub version: u32,
    pub items: Vec<(String, Item)>,
    pub tensors: Vec<Tensor>,
    /// What the header says instead of the truth.
    pub tensor_count: Option<u64>,
    pub item_count: Option<u64>,
}

pub fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Writer {
    pub fn new(architecture: &str) -> Self {
        let writer = Self { magic: *b"GGUF", version: 3, items: vec![], tensors: vec![], tensor_count: None, item_count: None };
        writer.with("general.architecture", architecture)
    }

    pub fn with(mut self, key: &str, value: impl Into<Item>) -> Self {
        self.items.push((key.to_owned(), value.into()));
        self
    }

    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), kind, bytes, offset: None });
        self
    }

    /// A tensor of f32 that counts up from `first`; the shape's outermost dimension is first.
    pub fn counting(self, name: &str, shape: &[u64], first: f32) -> Self {
        let n = shape.iter().product::<u64>() as usize;
        let bytes = (0..n).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
        let inner_first: Vec<u64> = shape.iter().rev().copied().collect();
        self.tensor(name, &inner_first, 0, bytes)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.item_count.unwrap_or(self.items.len() as u64).to_le_bytes());
        for (key, item) in &self.items {
            text(&mut out, key);
            write_item(&mut out, item);
        }
        let mut at = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(at).to_le_bytes());
            at += (tensor.bytes.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }

    /// The file as the crate reads it.
    pub fn open(&self) -> Result<GgufFile> {
        open(&self.bytes())
    }
}

fn list<T>(out: &mut Vec<u8>, kind: u32, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().for_each(|item| write(out, item));
}

fn write_item(out: &mut Vec<u8>, item: &Item) {
    let scalar = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match item {
        Item::U8(v) => scalar(out, 0, &[*v]),
        Item::U32(v) => scalar(out, 4, &v.to_le_bytes()),
        Item::I32(v) => scalar(out, 5, &v.to_le_bytes()),
        Item::F32(v) => scalar(out, 6, &v.to_le_bytes()),
        Item::Bool(v) => scalar(out, 7, &[u8::from(*v)]),
        Item::U64(v) => scalar(out, 10, &v.to_le_bytes()),
        Item::Raw(kind, bytes) => scalar(out, *kind, bytes),
        Item::Text(v) => {
            scalar(out, 8, &[]);
            text(out, v);
        }
        Item::Texts(v) => list(out, 8, v, |out, v| text(out, v)),
        Item::Ints(v) => list(out, 5, v, |out, v| out.extend(v.to_le_bytes())),
        Item::Floats(v) => list(out, 6, v, |out, v| out.extend(v.to_le_bytes())),
        Item::Bools(v) => list(out, 7, v, |out, v| out.push(u8::from(*v))),
    }
}

/// A file of these bytes, opened; the mapping outlives its folder.
pub fn open(bytes: &[u8]) -> Result<GgufFile> {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a temporary file can be written");
    GgufFile::open(&path)
}

/// A small Llama that is whole: two layers of width 8, two heads, a tokenizer of a few words.
pub fn llama() -> Writer {
    let texts = |all: &[&str]| Item::Texts(all.iter().map(|t| (*t).to_owned()).collect());
    let mut writer = Writer::new("llama")
        .with("llama.block_count", 2)
        .with("llama.context_length", 16)
        .with("llama.embedding_length", 8)
        .with("llama.feed_forward_length", 12)
        .with("llama.attention.head_count", 2)
        .with("llama.attention.head_count_kv", 1)
        .with("llama.attention.layer_norm_rms_epsilon", Item::F32(1e-5))
        .with("tokenizer.ggml.model", "gpt2")
        .with("tokenizer.ggml.pre", "gpt-2")
        .with("tokenizer.ggml.tokens", texts(&["<|end|>", "a", "b", "Ġ", "ab", "Ġab"]))
        .with("tokenizer.ggml.token_type", Item::Ints(vec![3, 1, 1, 1, 1, 1]))
        .with("tokenizer.ggml.merges", texts(&["a b", "Ġ ab"]))
        .with("tokenizer.ggml.eos_token_id", 0)
        .with("tokenizer.chat_template", "{{ messages }}")
        .counting("token_embd.weight", &[6, 8], 0.0)
        .counting("output_norm.weight", &[8], 0.0);
    for layer in 0..2 {
        for (name, shape) in [
            ("attn_norm", &[8][..]),
            ("ffn_norm", &[8]),
            ("attn_q", &[8, 8]),
            ("attn_k", &[4, 8]),
            ("attn_v", &[4, 8]),
            ("attn_output", &[8, 8]),
            ("ffn_gate", &[12, 8]),
            ("ffn_up", &[12, 8]),
            ("ffn_down", &[8, 12]),
        ] {
            writer = writer.counting(&format!("blk.{layer}.{name}.weight"), shape, layer as f32);
        }
    }
    writer
}
