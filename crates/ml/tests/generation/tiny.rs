//! A tiny Llama in a GGUF file whose matrices are of every quantised type, an adapter on it, and answers of an engine.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::Device;
use serde_json::json;
use tempfile::TempDir;
use tunesmith_ml::infer::{Engine, EngineLimits, Event, Request, Sampling, ServedAdapter, ServedDecoder, Sink, TokenInfo, Usage};
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::nn::{Kernels, Mode};
use tunesmith_ml::spec::{JobSpec, LoraSpec, Tuning};
use tunesmith_ml::train::{LanguageModel, Sequence};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;
use tunesmith_ops::paged::PAGE;
use tunesmith_ops::quant::QuantKind;

use crate::writer::{Item, Writer};

pub const VOCABULARY: u32 = 96;
const HIDDEN: u64 = 256;
const LAYERS: usize = 2;

/// The file's number of a type.
fn number(kind: QuantKind) -> u32 {
    match kind {
        QuantKind::Q4_0 => 2,
        QuantKind::Q4_1 => 3,
        QuantKind::Q5_0 => 6,
        QuantKind::Q5_1 => 7,
        QuantKind::Q8_0 => 8,
        QuantKind::Q4_K => 12,
        QuantKind::Q5_K => 13,
        QuantKind::Q6_K => 14,
    }
}

/// Blocks of any bits, with scales that make weights of about 0.05 around 0.
fn blocks(kind: QuantKind, elements: u64, salt: u64) -> Vec<u8> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let count = elements as usize / kind.block();
    let mut bytes: Vec<u8> = (0..count * kind.block_bytes()).map(|_| byte()).collect();
    // Scales, and minima where they are taken off or added: what centres the codes.
    let halves: &[(usize, f32)] = match kind {
        QuantKind::Q4_0 => &[(0, 0.012)],
        QuantKind::Q4_1 => &[(0, 0.012), (2, -0.09)],
        QuantKind::Q5_0 => &[(0, 0.006)],
        QuantKind::Q5_1 => &[(0, 0.006), (2, -0.09)],
        QuantKind::Q8_0 => &[(0, 0.0008)],
        QuantKind::Q4_K => &[(0, 0.0004), (2, 0.003)],
        QuantKind::Q5_K => &[(0, 0.0002), (2, 0.003)],
        QuantKind::Q6_K => &[(208, 0.00004)],
    };
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        for (at, scale) in halves {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(*scale).to_le_bytes());
        }
    }
    bytes
}

/// The model's file, in a folder of its own.
pub fn file() -> TempDir {
    let texts = |all: Vec<String>| Item::Texts(all);
    let mut tokens = vec!["<|end|>".to_owned()];
    tokens.extend((1..VOCABULARY).map(|i| char::from_u32(0x20 + i).unwrap().to_string()));
    let mut types = vec![1; VOCABULARY as usize];
    types[0] = 3;
    let counts =
        [("block_count", LAYERS as u32), ("context_length", 256), ("embedding_length", HIDDEN as u32), ("feed_forward_length", 512)];
    let mut w = Writer::new("llama");
    for (key, value) in counts {
        w = w.with(&format!("llama.{key}"), value);
    }
    w = w
        .with("llama.attention.head_count", 4)
        .with("llama.attention.head_count_kv", 2)
        .with("llama.attention.layer_norm_rms_epsilon", Item::F32(1e-5))
        .with("tokenizer.ggml.model", "gpt2")
        .with("tokenizer.ggml.pre", "gpt-2")
        .with("tokenizer.ggml.tokens", texts(tokens))
        .with("tokenizer.ggml.token_type", Item::Ints(types))
        .with("tokenizer.ggml.merges", texts(vec![]))
        .with("tokenizer.ggml.eos_token_id", 0);
    let ones = |n: u64| (0..n).flat_map(|i| (1.0 + 0.01 * (i % 7) as f32).to_le_bytes()).collect::<Vec<u8>>();
    let vocabulary = u64::from(VOCABULARY);
    w = w.tensor("token_embd.weight", &[HIDDEN, vocabulary], 8, blocks(QuantKind::Q8_0, HIDDEN * vocabulary, 1));
    w = w.tensor("output_norm.weight", &[HIDDEN], 0, ones(HIDDEN));
    for layer in 0..LAYERS {
        for (i, (name, out, input, kind)) in [
            ("attn_q", HIDDEN, HIDDEN, QuantKind::Q4_K),
            ("attn_k", 128, HIDDEN, QuantKind::Q5_0),
            ("attn_v", 128, HIDDEN, QuantKind::Q8_0),
            ("attn_output", HIDDEN, HIDDEN, QuantKind::Q6_K),
            ("ffn_gate", 512, HIDDEN, QuantKind::Q4_1),
            ("ffn_up", 512, HIDDEN, if layer == 0 { QuantKind::Q5_1 } else { QuantKind::Q4_0 }),
            ("ffn_down", HIDDEN, 512, QuantKind::Q5_K),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = blocks(kind, out * input, (100 * layer + i + 2) as u64);
            w = w.tensor(&format!("blk.{layer}.{name}.weight"), &[input, out], number(kind), bytes);
        }
        for name in ["attn_norm", "ffn_norm"] {
            w = w.tensor(&format!("blk.{layer}.{name}.weight"), &[HIDDEN], 0, ones(HIDDEN));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.gguf"), w.bytes()).unwrap();
    folder
}

/// An adapter on every linear layer, trained for a few steps so that it changes something.
pub fn adapter(model: &Path, seed: u64) -> TempDir {
    let lora = LoraSpec {
        r: 4,
        lora_alpha: 8.0,
        lora_dropout: 0.0,
        use_rslora: false,
        target_modules: serde_json::from_value(json!("all-linear")).unwrap(),
        modules_to_save: None,
    };
    let mut spec: JobSpec = serde_json::from_value(json!({
        "task": "causal_lm", "seed": seed, "tuning": {"type": "full"},
        "data": {"text_column": "text", "label_column": "label", "text_pair_column": null, "labels": [],
            "problem_type": "single_label_classification", "validation_split": 0.0},
        "training": {"num_train_epochs": 1.0, "max_steps": -1, "per_device_train_batch_size": 4, "max_tokens_per_batch": null,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_steps": 0.0,
            "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 0.0,
            "label_smoothing_factor": 0.0, "class_weights": null, "max_length": 64, "eval_steps": null, "save_steps": null,
            "logging_steps": 10, "save_total_limit": 1, "load_best_model_at_end": false, "metric_for_best_model": null,
            "greater_is_better": null, "early_stopping_patience": null, "gradient_checkpointing": false, "dtype": "f32", "packing": false},
    }))
    .unwrap();
    spec.tuning = Tuning::Lora(lora.clone());
    let mut model_in_training =
        LanguageModel::new(DecoderBase::load(model, &Device::Cpu).unwrap(), &spec, Precision::F32, Kernels::Native).unwrap();
    let ids: Vec<u32> = (0..24).map(|i| (i * 7 + seed as u32) % VOCABULARY).collect();
    let mut weights = vec![1.0; 24];
    weights[0] = 0.0;
    let row = Sequence { line: 1, ids, weights, truncated: 0 };
    for step in 1..4 {
        model_in_training.train_batch(&[&row], 0, 23.0, Mode::Eval).unwrap();
        model_in_training.update(&AdamW { lr: 2e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step }, 1.0).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = ServedDecoder::load(model).unwrap();
    model_in_training.save_adapter(folder.path(), &lora, "tiny", tokenizer.tokenizer()).unwrap();
    folder
}

/// What an answer consists of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Its tokens with their log-probabilities, those of the prompt before them.
    pub tokens: Vec<TokenInfo>,
    pub usage: Usage,
}

/// A token and the bits of its log-probability, and the same of those that were likely in its place.
pub type TokenBits = (u32, u32, Vec<(u32, u32)>);

impl Answer {
    /// Tokens and the bits of every log-probability.
    pub fn bits(&self) -> Vec<TokenBits> {
        let bits = |info: &TokenInfo| {
            let top = info.top.iter().map(|(id, p)| (*id, p.to_bits())).collect();
            (info.id, info.logprob.unwrap_or_default().to_bits(), top)
        };
        self.tokens.iter().map(bits).collect()
    }
}

struct Kept(Arc<Mutex<Answer>>);

impl Sink for Kept {
    fn send(&mut self, event: Event) {
        let mut answer = self.0.lock().unwrap();
        match event {
            Event::Prompt(infos) => answer.tokens.extend(infos),
            Event::Token { info, .. } => answer.tokens.extend(info),
            Event::Done { usage, .. } => answer.usage = usage,
            Event::Failed(why) => panic!("{why:?}"),
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// A question: prompt, adapter, tokens of the answer.
#[derive(Clone)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub adapter: Option<Arc<ServedAdapter>>,
    pub new: usize,
}

/// The model with two adapters on it; the folders live as long as it does.
pub struct Tiny {
    pub model: Arc<ServedDecoder>,
    pub adapters: [Arc<ServedAdapter>; 2],
    _folders: Vec<TempDir>,
}

impl Tiny {
    pub fn new() -> Self {
        let folder = file();
        let path = folder.path().to_owned();
        let model = Arc::new(ServedDecoder::load(&path).unwrap());
        let updates = [adapter(&path, 1), adapter(&path, 2)];
        let adapters = [0, 1].map(|i| Arc::new(ServedAdapter::load(model.clone(), updates[i].path()).unwrap()));
        let mut folders = vec![folder];
        folders.extend(updates);
        Self { model, adapters, _folders: folders }
    }

    /// Questions of several lengths, some with the same beginning, with and without adapters.
    pub fn asks(&self) -> Vec<Ask> {
        let one = |i: usize| {
            let length = [3, 40, 17, 64, 33][i % 5];
            let prompt = (0..length).map(|t| ((t * 11 + if t < 32 { 0 } else { i } + (i % 2) * 5) as u32) % VOCABULARY).collect();
            let adapter = [None, Some(self.adapters[0].clone()), Some(self.adapters[1].clone())][i % 3].clone();
            Ask { prompt, adapter, new: 12 + i % 4 }
        };
        (0..17).map(one).collect()
    }

    /// [`answers`] of this model.
    pub fn answer(&self, asks: &[Ask], pages: usize, sequences: usize) -> Vec<Answer> {
        answers(&self.model, asks, pages, sequences)
    }
}

/// Answers in the order of the questions, which all come at once, by an engine with so many pages and places.
pub fn answers(model: &Arc<ServedDecoder>, asks: &[Ask], pages: usize, sequences: usize) -> Vec<Answer> {
    let c = model.config();
    let page_bytes = 2 * 4 * c.kv_heads * c.head_dim * PAGE * c.layers.len();
    let limits = EngineLimits { cache_bytes: pages * page_bytes, max_sequences: sequences, prefill_tokens: 48 };
    let mut engine = Engine::new(model.clone(), limits);
    let answers: Vec<Arc<Mutex<Answer>>> = asks.iter().map(|_| Arc::default()).collect();
    for (ask, answer) in asks.iter().zip(&answers) {
        engine.submit(Request {
            prompt: ask.prompt.clone(),
            adapter: ask.adapter.clone(),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            max_tokens: ask.new,
            stop: Vec::new(),
            stop_tokens: BTreeSet::new(),
            logprobs: Some(5),
            prompt_logprobs: None,
            show_special: true,
            constraint: None,
            sink: Box::new(Kept(answer.clone())),
        });
    }
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    answers.iter().map(|a| a.lock().unwrap().clone()).collect()
}
