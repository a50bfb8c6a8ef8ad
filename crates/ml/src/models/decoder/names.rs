//! What the families call their modules, which are Hugging Face's names; `load.rs` finds tensors by them, and jobs name targets.

use super::block::LINEARS_PER_BLOCK;
use super::config::{DecoderConfig, DecoderFamily};

impl DecoderFamily {
    /// The prefix of all tensors but the output layer's.
    pub fn prefix(self) -> &'static str {
        if self == Self::Gpt2 { "transformer" } else { "model" }
    }

    /// The list of blocks, below the prefix.
    pub(super) fn blocks(self) -> &'static str {
        if self == Self::Gpt2 { "h" } else { "layers" }
    }

    /// The embedding, below the prefix.
    pub(super) fn embedding(self) -> &'static str {
        if self == Self::Gpt2 { "wte" } else { "embed_tokens" }
    }

    /// The linear layers of a block by their numbers; empty where a family has none of that number.
    pub(super) fn linears(self) -> [&'static str; LINEARS_PER_BLOCK] {
        match self {
            Self::Gpt2 => ["attn.c_attn", "", "", "attn.c_proj", "", "mlp.c_fc", "mlp.c_proj"],
            _ => [
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            ],
        }
    }
}

impl DecoderConfig {
    /// Full names of all blocks' linear layers, in the order of their numbers.
    pub fn linear_names(&self) -> Vec<String> {
        let (prefix, blocks) = (self.family.prefix(), self.family.blocks());
        let names = || self.family.linears().into_iter().filter(|name| !name.is_empty());
        (0..self.layers.len()).flat_map(|i| names().map(move |name| format!("{prefix}.{blocks}.{i}.{name}"))).collect()
    }

    /// Full names of what reads and writes tokens, which no low-rank update reaches: the embeddings, and the output layer.
    pub fn vocabulary_names(&self) -> (Vec<String>, &'static str) {
        let prefix = self.family.prefix();
        let positions = (self.family == DecoderFamily::Gpt2).then(|| format!("{prefix}.wpe"));
        ([Some(format!("{prefix}.{}", self.family.embedding())), positions].into_iter().flatten().collect(), "lm_head")
    }
}
