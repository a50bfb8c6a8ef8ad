//! The config.json that a file's metadata amounts to, as `transformers` would have it.
//!
//! Keys and defaults: llama.cpp's converters write them, its `src/models/*.cpp` read them. What cannot be run as such a model (experts,
//! layers of different sizes, tensors that no such model has) is refused here, by name, instead of being loaded as something else.

use serde_json::{Map, Value as Json, json};

use crate::error::{GgufError, Result, unsupported};
use crate::file::GgufFile;
use crate::names::{ROTARY, hf_name, is_derived};
use crate::value::Value;

/// Layers of a model, at most.
const MAX_LAYERS: usize = 4096;

impl GgufFile {
    /// A number under the architecture's own prefix. Files keep f32: the shortest decimal that is the same f32 is what was meant, so
    /// that 1e-6 does not become 9.999999974752427e-7.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        let exact = self.value(&format!("{}.{key}", self.architecture())).and_then(Value::float)?;
        let short = (exact as f32).to_string().parse().ok()?;
        Some(if f64::from(exact as f32) == exact { short } else { exact })
    }

    /// A count under the architecture's own prefix. Some files list one for each layer; those must be the same.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let key = format!("{}.{key}", self.architecture());
        let number = match self.value(&key) {
            None => return Ok(None),
            Some(Value::Integer(v)) => *v,
            Some(Value::Integers(list)) => match list.first() {
                Some(first) if list.iter().all(|v| v == first) => *first,
                _ => return unsupported(format!("{key} differs between layers, which is not supported")),
            },
            Some(_) => return unsupported(format!("{key} is not a whole number")),
        };
        match usize::try_from(number) {
            Ok(v) => Ok(Some(v)),
            Err(_) => unsupported(format!("{key} is {number}, which is not a count")),
        }
    }

    /// A count that must be there.
    pub(crate) fn needed(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| GgufError::Unsupported(format!("{}.{key} is missing from the metadata", self.architecture())))
    }

    /// config.json.
    ///
    /// # Errors
    /// If the architecture is not known, a value that it needs is missing, or the file holds what such a model has not.
    pub fn config_json(&self) -> Result<Map<String, Json>> {
        let architecture = self.architecture();
        if architecture != "gpt2" && !ROTARY.contains(&architecture) {
            return unsupported(format!("general.architecture {architecture:?} is not supported; supported: {}, gpt2", ROTARY.join(", ")));
        }
        if self.count("expert_count")?.unwrap_or(0) > 0 {
            return unsupported("it is a mixture of experts, which is not supported");
        }
        if let Some((own, _)) = self.tensors().find(|(own, _)| hf_name(architecture, own).is_none() && !is_derived(architecture, own)) {
            return unsupported(format!("the tensor {own} belongs to no {architecture} model that is supported"));
        }
        let mut config = if architecture == "gpt2" { self.gpt2()? } else { self.rotary()? };
        for (name, role) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
            if let Some((id, _)) = self.role(role) {
                config.insert(name.into(), json!(id));
            }
        }
        match self.end_ids()[..] {
            [] => {}
            [one] => drop(config.insert("eos_token_id".into(), json!(one))),
            ref several => drop(config.insert("eos_token_id".into(), json!(several))),
        }
        Ok(config)
    }

    /// Every token that the metadata calls an end: of the text, of a turn, of a message. The end of the text is first.
    fn end_ids(&self) -> Vec<usize> {
        let mut ids: Vec<usize> = Vec::new();
        for (id, _) in ["eos", "eot", "eom"].iter().filter_map(|role| self.role(role)) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    fn vocabulary(&self) -> Result<usize> {
        match self.raw("token_embd.weight") {
            Some((info, _)) if info.shape.len() == 2 => Ok(info.shape[0]),
            Some((info, _)) => unsupported(format!("token_embd.weight has the shape {:?}", info.shape)),
            None => unsupported("there is no token_embd.weight: the file holds no language model"),
        }
    }

    fn has(&self, tensor: &str) -> bool {
        self.raw(tensor).is_some()
    }

    fn gpt2(&self) -> Result<Map<String, Json>> {
        Ok(Map::from_iter([
            ("model_type".to_owned(), json!("gpt2")),
            ("architectures".to_owned(), json!(["GPT2LMHeadModel"])),
            ("vocab_size".to_owned(), json!(self.vocabulary()?)),
            ("n_embd".to_owned(), json!(self.needed("embedding_length")?)),
            ("n_head".to_owned(), json!(self.needed("attention.head_count")?)),
            ("n_layer".to_owned(), json!(self.needed("block_count")?)),
            ("n_positions".to_owned(), json!(self.needed("context_length")?)),
            ("n_inner".to_owned(), json!(self.count("feed_forward_length")?)),
            ("layer_norm_epsilon".to_owned(), json!(self.number("attention.layer_norm_epsilon").unwrap_or(1e-5))),
            ("activation_function".to_owned(), json!("gelu_new")),
            ("tie_word_embeddings".to_owned(), json!(true)),
        ]))
    }

    fn rotary(&self) -> Result<Map<String, Json>> {
        let arch = self.architecture();
        let gemma = arch.starts_with("gemma");
        let window = self.count("attention.sliding_window")?.filter(|w| *w > 0);
        let (model_type, class) = match arch {
            "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
            "qwen3" => ("qwen3", "Qwen3ForCausalLM"),
            "gemma" => ("gemma", "GemmaForCausalLM"),
            "gemma2" => ("gemma2", "Gemma2ForCausalLM"),
            "gemma3" => ("gemma3_text", "Gemma3ForCausalLM"),
            // Mistral's files are of the llama architecture; the window is all that differs.
            _ if window.is_some() => ("mistral", "MistralForCausalLM"),
            _ => ("llama", "LlamaForCausalLM"),
        };
        let layers = self.needed("block_count")?;
        if layers > MAX_LAYERS {
            return unsupported(format!("{layers} layers are more than the {MAX_LAYERS} that are supported"));
        }
        let heads = self.needed("attention.head_count")?;
        let head_dim = self.head_dim(heads)?;
        let mut config = Map::new();
        let mut set = |name: &str, value: Json| drop(config.insert(name.to_owned(), value));
        set("model_type", json!(model_type));
        set("architectures", json!([class]));
        set("vocab_size", json!(self.vocabulary()?));
        set("hidden_size", json!(self.needed("embedding_length")?));
        set("intermediate_size", json!(self.needed("feed_forward_length")?));
        set("num_hidden_layers", json!(layers));
        set("num_attention_heads", json!(heads));
        set("num_key_value_heads", json!(self.count("attention.head_count_kv")?.unwrap_or(heads)));
        set("head_dim", json!(head_dim));
        set("max_position_embeddings", json!(self.needed("context_length")?));
        set("rms_norm_eps", json!(self.number("attention.layer_norm_rms_epsilon").unwrap_or(1e-6)));
        set("tie_word_embeddings", json!(!self.has("output.weight")));
        set(
            if matches!(arch, "gemma2" | "gemma3") { "hidden_activation" } else { "hidden_act" },
            json!(if gemma { "gelu_pytorch_tanh" } else { "silu" }),
        );
        if matches!(arch, "llama" | "qwen3") {
            set("attention_bias", json!(self.has("blk.0.attn_q.bias")));
        }
        if arch == "llama" {
            set("mlp_bias", json!(self.has("blk.0.ffn_gate.bias")));
        }
        set("rope_theta", json!(self.rope_base()));
        if let Some(scaling) = self.rope_scaling(head_dim)? {
            set("rope_scaling", scaling);
        }
        match arch {
            "llama" if window.is_some() => set("sliding_window", json!(window)),
            "gemma2" | "gemma3" => self.gemma(layers, heads, head_dim)?.into_iter().for_each(|(name, value)| set(name, value)),
            _ => {}
        }
        Ok(config)
    }

    /// The size of a head, which the metadata says or implies, and the tensor of queries must have.
    fn head_dim(&self, heads: usize) -> Result<usize> {
        let hidden = self.needed("embedding_length")?;
        let (key, value, rotary) =
            (self.count("attention.key_length")?, self.count("attention.value_length")?, self.count("rope.dimension_count")?);
        let head_dim = key.or(rotary).unwrap_or(hidden / heads.max(1));
        if value.is_some_and(|v| v != head_dim) || rotary.is_some_and(|r| r != head_dim) {
            return unsupported(format!(
                "heads of {head_dim} dimensions with values of {value:?}, of which {rotary:?} are turned, are not supported: all must be the same"
            ));
        }
        match self.raw("blk.0.attn_q.weight") {
            Some((info, _)) if Some(&info.shape[..]) != heads.checked_mul(head_dim).map(|rows| [rows, hidden]).as_ref().map(|s| &s[..]) => {
                unsupported(format!(
                    "blk.0.attn_q.weight has the shape {:?}, and {heads} heads of {head_dim} of a width of {hidden} need another",
                    info.shape
                ))
            }
            _ => Ok(head_dim),
        }
    }

    /// What Gemma 2 and 3 have beside the rest.
    fn gemma(&self, layers: usize, heads: usize, head_dim: usize) -> Result<Vec<(&'static str, Json)>> {
        let second = self.architecture() == "gemma2";
        let window = self.count("attention.sliding_window")?.filter(|w| *w > 0).or(second.then_some(4096));
        // Every second layer of Gemma 2 sees everything, every sixth of Gemma 3; newer files may say so themselves.
        let types: Vec<&str> = match self.value(&format!("{}.attention.sliding_window_pattern", self.architecture())) {
            Some(Value::Bools(slides)) if slides.len() == layers => slides.iter().map(|slides| layer_type(*slides)).collect(),
            Some(Value::Integer(every)) if *every > 0 => (1..=layers as i64).map(|i| layer_type(i % every != 0)).collect(),
            None if window.is_none() => vec![layer_type(false); layers],
            None => (1..=layers).map(|i| layer_type(!i.is_multiple_of(if second { 2 } else { 6 }))).collect(),
            Some(_) => return unsupported("attention.sliding_window_pattern is neither a number nor a list with an entry for each layer"),
        };
        // The largest of each scale queries by the width over the heads; llama.cpp knows them by their layers, too.
        let largest = if second { layers == 46 } else { layers == 62 };
        let query = if largest { self.needed("embedding_length")? / heads.max(1) } else { head_dim };
        let cap = |key: &str, default: f64| json!(self.number(key).or(second.then_some(default)));
        let mut all = vec![
            ("query_pre_attn_scalar", json!(query)),
            ("sliding_window", json!(window)),
            ("layer_types", json!(types)),
            ("attn_logit_softcapping", cap("attn_logit_softcapping", 50.0)),
            ("final_logit_softcapping", cap("final_logit_softcapping", 30.0)),
        ];
        if !second {
            all.push(("rope_local_base_freq", json!(self.number("rope.freq_base_swa").unwrap_or(10_000.0))));
        }
        Ok(all)
    }
}

fn layer_type(slides: bool) -> &'static str {
    if slides { "sliding_attention" } else { "full_attention" }
}
