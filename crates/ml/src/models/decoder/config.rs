//! `config.json` of the decoder families, in both spellings that transformers writes; one structure for all of them.
//!
//! What differs between Llama, Qwen, Gemma and GPT-2 is said here by values, so that the model needs no copy for each.

use std::path::Path;

use serde_json::{Map, Value};

use super::rope_config::rope_of;
use crate::error::{MlError, Result};
use crate::models::weights::{read_json, short};
use crate::nn::{Act, Rope};

/// Decoder families; they differ in names and in the values of [`DecoderConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderFamily {
    /// Radford et al. 2019.
    Gpt2,
    /// Llama 2 and 3, SmolLM2, TinyLlama.
    Llama,
    /// Jiang et al. 2023.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// Gemma.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// The text model of Gemma 3.
    Gemma3,
}

impl DecoderFamily {
    /// The family of a `model_type`, if it is one of these.
    pub fn by_model_type(name: &str) -> Option<Self> {
        Some(match name {
            "gpt2" => Self::Gpt2,
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma" => Self::Gemma,
            "gemma2" => Self::Gemma2,
            "gemma3_text" => Self::Gemma3,
            _ => return None,
        })
    }

    /// The class that `transformers` loads such a model with.
    pub fn class(self) -> &'static str {
        match self {
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma => "GemmaForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }
}

/// What is particular to one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerKind {
    /// How many tokens back a token sees, itself included; all of them where absent.
    pub window: Option<usize>,
    /// Which of the configuration's ropes turns it.
    pub rope: usize,
}

/// What the layers need to know of a configuration.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// The family.
    pub family: DecoderFamily,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// Each layer's window and rope.
    pub layers: Vec<LayerKind>,
    /// Position encodings; none for GPT-2, whose positions are a table.
    pub ropes: Vec<Rope>,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Added to the gain of RMS norms.
    pub norm_offset: f32,
    /// The feed-forward layer's activation.
    pub act: Act,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// Biases of q, k, v.
    pub qkv_bias: bool,
    /// Bias of the attention's output.
    pub out_bias: bool,
    /// Biases of the feed-forward layer.
    pub mlp_bias: bool,
    /// Norms of each query and key head.
    pub qk_norm: bool,
    /// Norms behind attention and feed-forward layer, before the residual sum.
    pub post_norms: bool,
    /// Cap of the attention scores.
    pub attention_softcap: Option<f32>,
    /// Cap of the logits.
    pub final_softcap: Option<f32>,
    /// Factor of the embedding.
    pub embed_scale: f32,
    /// Whether the output layer is the embedding.
    pub tied: bool,
    /// Dropout after the embedding.
    pub embed_dropout: f32,
    /// Dropout of attention probabilities.
    pub attention_dropout: f32,
    /// Dropout before each residual sum.
    pub residual_dropout: f32,
    /// The whole file, for what is written back.
    pub raw: Map<String, Value>,
}

/// Sizes beyond these are no model that was ever published, but a file that would exhaust the memory.
const MAX_WIDTH: usize = 1 << 17;
const MAX_LAYERS: usize = 512;
const MAX_VOCAB: usize = 4_000_000;

impl DecoderConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If the file is missing or malformed, or names an architecture that cannot be run.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let Value::Object(map) = read_json(&path)? else {
            return Err(MlError::Format(format!("{}: expected a JSON object", short(&path))));
        };
        Self::from_map(map).map_err(|e| match e {
            MlError::Format(message) => MlError::Format(format!("{}: {message}", short(&path))),
            other => other,
        })
    }

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`].
    pub fn from_map(map: Map<String, Value>) -> Result<Self> {
        let model_type = map.get("model_type").and_then(Value::as_str).unwrap_or("no model_type");
        let family = DecoderFamily::by_model_type(model_type).ok_or_else(|| MlError::Architecture { found: model_type.to_owned() })?;
        let config = if family == DecoderFamily::Gpt2 { gpt2(map)? } else { rotary(family, map)? };
        config.checked()
    }

    fn checked(self) -> Result<Self> {
        let fail = |message: String| Err(MlError::Format(message));
        for (name, value, limit) in [
            ("hidden_size", self.hidden, MAX_WIDTH),
            ("intermediate_size", self.intermediate, 8 * MAX_WIDTH),
            ("num_hidden_layers", self.layers.len(), MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_WIDTH),
            ("num_key_value_heads", self.kv_heads, MAX_WIDTH),
            ("head_dim", self.head_dim, 4096),
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("max_position_embeddings", self.max_positions, 1 << 26),
        ] {
            if value == 0 || value > limit {
                return fail(format!("{name}: {value} is not between 1 and {limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!("num_attention_heads {} is not a multiple of num_key_value_heads {}", self.heads, self.kv_heads));
        }
        if self.layers.iter().any(|l| l.window == Some(0)) {
            return fail("sliding_window: 0 is not a window".to_owned());
        }
        Ok(self)
    }

    /// Elements of the weights of all blocks' linear layers.
    pub fn linear_elements(&self) -> usize {
        let attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        let feed_forward = self.hidden * self.intermediate * if self.gated() { 3 } else { 2 };
        self.layers.len() * (attention + feed_forward)
    }

    /// Whether the feed-forward layer has a gate.
    pub fn gated(&self) -> bool {
        self.family != DecoderFamily::Gpt2
    }
}

/// Reads fields by name, and says which one is wrong.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl Fields<'_> {
    /// A whole number, where the field is there and not null.
    pub fn size(&self, name: &str) -> Result<Option<usize>> {
        self.typed(name, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        self.typed(name, "a number", Value::as_f64)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        self.typed(name, "a string", |v| v.as_str().map(str::to_owned))
    }

    fn needed(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| MlError::Format(format!("{name} is missing")))
    }

    fn typed<T>(&self, name: &str, what: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(MlError::Format(format!("{name}: expected {what}, found {value}"))),
            },
        }
    }
}

fn gpt2(map: Map<String, Value>) -> Result<DecoderConfig> {
    let f = Fields(&map);
    let (hidden, heads) = (f.needed("n_embd")?, f.needed("n_head")?);
    for flag in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if f.flag(flag)? == Some(true) {
            return Err(MlError::Format(format!("{flag}: is not supported")));
        }
    }
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(MlError::Format(format!("n_embd {hidden} is not a multiple of n_head {heads}")));
    }
    let head_dim = hidden / heads;
    let scaled = f.flag("scale_attn_weights")?.unwrap_or(true);
    let dropout = |name| Ok::<_, MlError>(f.number(name)?.unwrap_or(0.1) as f32);
    Ok(DecoderConfig {
        family: DecoderFamily::Gpt2,
        vocab_size: f.needed("vocab_size")?,
        hidden,
        heads,
        kv_heads: heads,
        head_dim,
        intermediate: f.size("n_inner")?.unwrap_or(4 * hidden),
        max_positions: f.size("n_positions")?.or(f.size("n_ctx")?).unwrap_or(1024),
        layers: vec![LayerKind { window: None, rope: 0 }; f.needed("n_layer")?.min(MAX_LAYERS + 1)],
        ropes: Vec::new(),
        norm_eps: f.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        norm_offset: 0.0,
        act: Act::by_name(f.text("activation_function")?.as_deref().unwrap_or("gelu_new"))?,
        attention_scale: if scaled { 1.0 / (head_dim as f32).sqrt() } else { 1.0 },
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        qk_norm: false,
        post_norms: false,
        attention_softcap: None,
        final_softcap: None,
        embed_scale: 1.0,
        tied: f.flag("tie_word_embeddings")?.unwrap_or(true),
        embed_dropout: dropout("embd_pdrop")?,
        attention_dropout: dropout("attn_pdrop")?,
        residual_dropout: dropout("resid_pdrop")?,
        raw: map.clone(),
    })
}

fn rotary(family: DecoderFamily, map: Map<String, Value>) -> Result<DecoderConfig> {
    let f = Fields(&map);
    let (hidden, heads) = (f.needed("hidden_size")?, f.needed("num_attention_heads")?);
    let layers = f.needed("num_hidden_layers")?.min(MAX_LAYERS + 1);
    let head_dim = match f.size("head_dim")? {
        Some(dim) => dim,
        None if family.is_gemma() => 256,
        None => hidden / heads.max(1),
    };
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(MlError::Format(format!("head_dim: {head_dim} is not an even number above 0")));
    }
    let (qkv_bias, out_bias) = match family {
        DecoderFamily::Qwen2 => (true, false),
        _ => (f.flag("attention_bias")?.unwrap_or(false), f.flag("attention_bias")?.unwrap_or(false)),
    };
    let act = f.text("hidden_activation")?.or(f.text("hidden_act")?);
    // The first Gemma files say "gelu", but their models were trained with the approximation.
    let act = match act.as_deref() {
        None | Some("gelu") if family.is_gemma() => "gelu_pytorch_tanh",
        None => "silu",
        Some(name) => name,
    };
    let scale = match family {
        DecoderFamily::Gemma2 | DecoderFamily::Gemma3 => f.number("query_pre_attn_scalar")?.unwrap_or(256.0),
        _ => head_dim as f64,
    };
    if f.flag("use_bidirectional_attention")? == Some(true) {
        return Err(MlError::Format("use_bidirectional_attention: is not supported".to_owned()));
    }
    let ropes = rope_of(family, &f, head_dim)?;
    let max_positions = f.size("max_position_embeddings")?.unwrap_or(2048);
    let kinds = layer_kinds(family, &f, layers, ropes.len())?;
    Ok(DecoderConfig {
        family,
        vocab_size: f.needed("vocab_size")?,
        hidden,
        heads,
        kv_heads: f.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        intermediate: f.needed("intermediate_size")?,
        max_positions,
        layers: kinds,
        ropes,
        norm_eps: f.number("rms_norm_eps")?.unwrap_or(1e-6),
        norm_offset: if family.is_gemma() { 1.0 } else { 0.0 },
        act: Act::by_name(act)?,
        attention_scale: (1.0 / scale.sqrt()) as f32,
        qkv_bias,
        out_bias,
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: matches!(family, DecoderFamily::Qwen3 | DecoderFamily::Gemma3),
        post_norms: matches!(family, DecoderFamily::Gemma2 | DecoderFamily::Gemma3),
        attention_softcap: f.number("attn_logit_softcapping")?.map(|c| c as f32),
        final_softcap: f.number("final_logit_softcapping")?.map(|c| c as f32),
        embed_scale: if family.is_gemma() { (hidden as f32).sqrt() } else { 1.0 },
        tied: f.flag("tie_word_embeddings")?.unwrap_or(family.is_gemma()),
        embed_dropout: 0.0,
        attention_dropout: f.number("attention_dropout")?.unwrap_or(0.0) as f32,
        residual_dropout: 0.0,
        raw: map.clone(),
    })
}

/// Each layer's window and rope: from `layer_types` where the file has it, else by the family's rule.
fn layer_kinds(family: DecoderFamily, f: &Fields, layers: usize, ropes: usize) -> Result<Vec<LayerKind>> {
    let window = f.size("sliding_window")?;
    let off = matches!(family, DecoderFamily::Qwen2 | DecoderFamily::Qwen3) && f.flag("use_sliding_window")? != Some(true);
    let listed = f.0.get("layer_types").and_then(Value::as_array);
    let pattern = f.size("sliding_window_pattern")?.or(f.size("_sliding_window_pattern")?).unwrap_or(6);
    let from = f.size("max_window_layers")?.unwrap_or(28);
    let kind = |i: usize| -> Result<LayerKind> {
        let slides = match listed {
            Some(types) => match types.get(i).and_then(Value::as_str) {
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                other => return Err(MlError::Format(format!("layer_types[{i}]: {other:?} is not known"))),
            },
            None => match family {
                DecoderFamily::Mistral => true,
                DecoderFamily::Gemma2 => i.is_multiple_of(2),
                DecoderFamily::Gemma3 => !(i + 1).is_multiple_of(pattern.max(1)),
                DecoderFamily::Qwen2 | DecoderFamily::Qwen3 => !off && i >= from,
                _ => false,
            },
        };
        let local = ropes > 1 && slides;
        Ok(LayerKind { window: if slides { window } else { None }, rope: usize::from(local) })
    };
    (0..layers).map(kind).collect()
}
