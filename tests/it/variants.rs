//! Models of a test's own: the tiny chat model with other files, adapters with random weights, and the model as a GGUF file.
//!
//! They lie in the folder that the server takes for `--model-dir`, so that requests name them `file:<name>`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gguf_writer::{Item, Writer};
use crate::harness::{FIXTURES, Server};
use crate::tensor_file::TensorFile;

/// A data folder with a folder of models.
pub struct Models {
    folder: Arc<TempDir>,
}

impl Models {
    pub fn new() -> Self {
        let models = Self { folder: Arc::new(tempfile::tempdir().unwrap()) };
        std::fs::create_dir(models.path("")).unwrap();
        models
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("models").join(name)
    }

    /// A copy of a fixture's model.
    pub fn copy(&self, fixture: &str, name: &str) -> &Self {
        std::fs::create_dir_all(self.path(name)).unwrap();
        for entry in std::fs::read_dir(Path::new(FIXTURES).join("decoders").join(fixture)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, self.path(name).join(path.file_name().unwrap())).unwrap();
        }
        self
    }

    /// The tiny chat model under a name.
    pub fn chat(&self, name: &str) -> &Self {
        self.copy("chat-tiny", name)
    }

    /// Changes a JSON file of a model; one that is not there begins as an empty object.
    pub fn edit(&self, name: &str, file: &str, change: impl FnOnce(&mut Value)) -> &Self {
        let path = self.path(name).join(file);
        let mut value = std::fs::read(&path).map_or_else(|_| json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
        change(&mut value);
        self.write(name, file, value.to_string())
    }

    pub fn write(&self, name: &str, file: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::create_dir_all(self.path(name)).unwrap();
        std::fs::write(self.path(name).join(file), bytes).unwrap();
        self
    }

    pub fn remove(&self, name: &str, file: &str) -> &Self {
        std::fs::remove_file(self.path(name).join(file)).unwrap();
        self
    }

    /// Another chat template.
    pub fn template(&self, name: &str, template: &str) -> &Self {
        self.edit(name, "tokenizer_config.json", |c| c["chat_template"] = json!(template))
    }

    /// GPT-2 with positions of its own for 64 tokens, and a tokenizer whose tokens are ASCII characters.
    pub fn gpt2(&self, name: &str) -> &Self {
        self.copy("gpt2-tiny", name);
        let chat = Path::new(FIXTURES).join("decoders/chat-tiny");
        let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(chat.join("tokenizer.json")).unwrap()).unwrap();
        tokenizer["added_tokens"] = json!([]);
        tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 128);
        self.write(name, "tokenizer.json", tokenizer.to_string()).write(name, "tokenizer_config.json", "{}")
    }

    /// A PEFT adapter with random weights of that deviation on these modules, each with its inputs and outputs.
    pub fn adapter(&self, name: &str, config: Value, modules: &[(String, usize, usize)], seed: u64, deviation: f32) -> &Self {
        let rank = config["r"].as_u64().unwrap() as usize;
        let mut random = Random(seed);
        let mut tensors = TensorFile(Default::default());
        for (module, inputs, outputs) in modules {
            for (half, shape) in [("A", [rank, *inputs]), ("B", [*outputs, rank])] {
                let values: Vec<u8> = (0..shape[0] * shape[1]).flat_map(|_| (deviation * random.normal()).to_le_bytes()).collect();
                tensors.0.insert(format!("base_model.model.{module}.lora_{half}.weight"), (shape.to_vec(), values));
            }
        }
        let targets: std::collections::BTreeSet<&str> = modules.iter().map(|(m, ..)| m.rsplit('.').next().unwrap()).collect();
        let mut all =
            json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "lora_dropout": 0.0, "target_modules": targets});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        self.write(name, "adapter_config.json", all.to_string()).write(name, "adapter_model.safetensors", tensors.write())
    }

    /// The tiny chat model as a GGUF file, as llama.cpp's converter writes a Llama: rows of queries and keys in its own order.
    pub fn gguf(&self) -> Writer {
        let chat = Path::new(FIXTURES).join("decoders/chat-tiny");
        let json_of = |file: &str| -> Value { serde_json::from_slice(&std::fs::read(chat.join(file)).unwrap()).unwrap() };
        let (tokenizer, config) = (json_of("tokenizer.json"), json_of("tokenizer_config.json"));
        let mut tokens = vec![String::new(); 259];
        let mut kinds = vec![1; 259];
        for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
            tokens[id.as_u64().unwrap() as usize] = token.clone();
        }
        for added in tokenizer["added_tokens"].as_array().unwrap() {
            let id = added["id"].as_u64().unwrap() as usize;
            (tokens[id], kinds[id]) = (added["content"].as_str().unwrap().to_owned(), 3);
        }
        let mut writer = Writer::new("llama")
            .with("llama.block_count", 2)
            .with("llama.context_length", 512)
            .with("llama.embedding_length", 32)
            .with("llama.feed_forward_length", 48)
            .with("llama.attention.head_count", 4)
            .with("llama.attention.head_count_kv", 2)
            .with("llama.rope.freq_base", Item::F32(10000.0))
            .with("llama.rope.dimension_count", 8)
            .with("llama.attention.layer_norm_rms_epsilon", Item::F32(1e-6))
            .with("tokenizer.ggml.model", "gpt2")
            .with("tokenizer.ggml.pre", "gpt-2")
            .with("tokenizer.ggml.tokens", Item::Texts(tokens))
            .with("tokenizer.ggml.token_type", Item::Ints(kinds))
            .with("tokenizer.ggml.merges", Item::Texts(Vec::new()))
            .with("tokenizer.ggml.eos_token_id", 256)
            .with("tokenizer.ggml.eot_token_id", 258)
            .with("tokenizer.chat_template", config["chat_template"].as_str().unwrap());
        let weights = TensorFile::read(&std::fs::read(chat.join("model.safetensors")).unwrap());
        for (name, (shape, bytes)) in &weights.0 {
            let heads = if name.contains("q_proj") { Some(4) } else { name.contains("k_proj").then_some(2) };
            let bytes = heads.map_or_else(|| bytes.clone(), |heads| interleaved(bytes, shape, heads));
            let inner_first: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
            writer = writer.tensor(&gguf_name(name), &inner_first, 0, bytes);
        }
        writer
    }

    /// A server that has these models, without workers unless `flags` ask for some.
    pub fn serve(&self, flags: &[&str]) -> Server {
        let mut all = vec!["--worker-threads", "1"];
        all.extend(flags);
        Server::in_folder(self.folder.clone(), &all)
    }
}

/// The linear layers of the tiny chat model of which an adapter may change some.
pub fn chat_modules(names: &[&str]) -> Vec<(String, usize, usize)> {
    let size = |name: &str| match name {
        "q_proj" | "o_proj" => ("self_attn", 32, 32),
        "k_proj" | "v_proj" => ("self_attn", 32, 16),
        "down_proj" => ("mlp", 48, 32),
        _ => ("mlp", 32, 48),
    };
    let one = |layer: usize, name: &&str| {
        let (part, inputs, outputs) = size(name);
        (format!("model.layers.{layer}.{part}.{name}"), inputs, outputs)
    };
    (0..2).flat_map(|layer| names.iter().map(move |name| one(layer, name))).collect()
}

/// Loads an adapter of the models' folder.
pub async fn load_adapter(server: &Server, name: &str, folder: &str, base: &str) -> crate::harness::Answer {
    let request = json!({"lora_name": name, "lora_path": format!("file:{folder}"), "base_model": base});
    server.post("/v1/load_lora_adapter", &request).await
}

fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        _ => {}
    }
    let parts: Vec<&str> = name.split('.').collect();
    let short = match parts[parts.len() - 2] {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "gate_proj" => "ffn_gate",
        "up_proj" => "ffn_up",
        "down_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("blk.{}.{short}.weight", parts[2])
}

/// Rows of a head from Hugging Face's order, first halves and second halves, to llama.cpp's, in pairs.
fn interleaved(bytes: &[u8], shape: &[usize], heads: usize) -> Vec<u8> {
    let (rows, row) = (shape[0], 4 * shape[1]);
    let head = rows / heads;
    let from = |i: usize| i / head * head + (i % head % 2) * (head / 2) + i % head / 2;
    (0..rows).flat_map(|i| bytes[from(i) * row..(from(i) + 1) * row].to_vec()).collect()
}

/// Random numbers that are the same on every machine.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    /// Of deviation 1, nearly.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}
