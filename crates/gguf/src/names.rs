//! Hugging Face's names of a file's tensors, and what must be done to each on its way to Hugging Face's form.
//!
//! llama.cpp's `gguf-py/gguf/tensor_mapping.py` and its converters are the source. `file` builds its table of names with this, `hf`
//! changes the values.

/// Architectures whose tensors have Llama's names at Hugging Face.
pub(crate) const ROTARY: &[&str] = &["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"];

/// Modules: (GGUF's name, Hugging Face's).
type Names = [(&'static str, &'static str)];

/// Modules of a block.
const BLOCK: &Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Norms of a block with one norm before attention and one before the feed-forward layer.
const TWO_NORMS: &Names = &[("ffn_norm", "post_attention_layernorm")];

/// Norms of a block of Gemma 2 and 3, which norms what its layers return as well.
const FOUR_NORMS: &Names = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Norms of queries and keys, of Qwen 3 and Gemma 3.
const HEAD_NORMS: &Names = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

/// Modules of a block of GPT-2.
const GPT2_BLOCK: &Names = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

/// What is done to a tensor on its way to Hugging Face's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// The rows of each query head go from interleaved pairs to halves.
    UnpermuteQuery,
    /// The same for keys, whose heads may be fewer.
    UnpermuteKey,
    /// The stored gain is one more than Hugging Face's.
    LessOne,
    /// A matrix that Hugging Face stores the other way round.
    Transpose,
}

/// Hugging Face's name of a tensor; nothing for one that its models do not have.
pub(crate) fn hf_name(architecture: &str, own: &str) -> Option<String> {
    let (module, part) = own.rsplit_once('.').filter(|(_, part)| matches!(*part, "weight" | "bias"))?;
    let (stem, top, tables): (_, &Names, &[&Names]) = match architecture {
        "gpt2" => (
            "transformer.h",
            &[("token_embd", "transformer.wte"), ("position_embd", "transformer.wpe"), ("output_norm", "transformer.ln_f")],
            &[GPT2_BLOCK],
        ),
        _ if ROTARY.contains(&architecture) => (
            "model.layers",
            &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")],
            match architecture {
                "gemma2" => &[BLOCK, FOUR_NORMS],
                "gemma3" => &[BLOCK, FOUR_NORMS, HEAD_NORMS],
                "qwen3" => &[BLOCK, TWO_NORMS, HEAD_NORMS],
                _ => &[BLOCK, TWO_NORMS],
            },
        ),
        _ => return None,
    };
    if let Some((_, name)) = top.iter().find(|(name, _)| *name == module) {
        return Some(format!("{name}.{part}"));
    }
    let (layer, module) = block_of(module)?;
    let (_, name) = tables.iter().flat_map(|t| t.iter()).find(|(name, _)| *name == module)?;
    Some(format!("{stem}.{layer}.{name}.{part}"))
}

/// The layer and the module of a name such as `blk.3.attn_q`.
fn block_of(module: &str) -> Option<(u32, &str)> {
    let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
    let number = layer.parse().ok()?;
    // "03" and "+3" would be second names of layer 3.
    (u32::to_string(&number) == layer).then_some((number, module))
}

/// Whether a file may hold a tensor that no model of Hugging Face's has: it is computed from the configuration, or a copy.
pub(crate) fn is_derived(architecture: &str, own: &str) -> bool {
    let rotary = own == "rope_freqs.weight" || own.ends_with(".attn_rot_embd.weight") || own.ends_with(".attn_rot_embd");
    // llama.cpp's converter wrote GPT-2's embedding a second time as its output layer; the architecture has them tied.
    rotary || (architecture == "gpt2" && own == "output.weight")
}

/// What is done to a tensor of an architecture.
pub(crate) fn change(architecture: &str, own: &str) -> Change {
    let Some((module, part)) = own.rsplit_once('.') else { return Change::None };
    let last = module.rsplit('.').next().unwrap_or(module);
    match (architecture, last) {
        ("llama", "attn_q") => Change::UnpermuteQuery,
        ("llama", "attn_k") => Change::UnpermuteKey,
        ("gemma" | "gemma2" | "gemma3", _) if last.ends_with("_norm") => Change::LessOne,
        ("gpt2", "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down") if part == "weight" => Change::Transpose,
        _ => Change::None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_norm_has_the_name_that_its_family_gives_it() {
        let of = |arch: &str| hf_name(arch, "blk.3.ffn_norm.weight").unwrap();
        assert_eq!(of("llama"), "model.layers.3.post_attention_layernorm.weight");
        assert_eq!(of("gemma"), "model.layers.3.post_attention_layernorm.weight");
        assert_eq!(of("gemma3"), "model.layers.3.pre_feedforward_layernorm.weight");
        assert_eq!(of("gpt2"), "transformer.h.3.ln_2.weight");
    }

    #[test]
    fn no_two_tensors_share_a_name() {
        for name in ["blk.03.attn_q.weight", "blk.+3.attn_q.weight", "blk.3.attn_q.scale", "blk.x.attn_q.weight", "attn_q.weight", "weight"]
        {
            assert_eq!(hf_name("llama", name), None, "{name}");
        }
        assert_eq!(hf_name("llama", "blk.0.post_attention_norm.weight"), None);
        assert_eq!(hf_name("llama", "blk.0.attn_q_norm.weight"), None);
    }
}
