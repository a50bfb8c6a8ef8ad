//! How families of byte-level tokenizers cut a text into words, by the names that `tokenizer.ggml.pre` has for them.
//!
//! The patterns are those of the models' own tokenizer.json files; llama.cpp's `llama-vocab.cpp` has the names, and which family begins
//! texts with a first token or takes a whole word that is a token as it is.

use crate::error::{Result, unsupported};

/// A family's way.
pub(super) struct Pre {
    names: &'static [&'static str],
    /// Patterns, each cutting what the one before has left; none: GPT-2's own.
    pub cuts: &'static [&'static str],
    /// Whether every digit stands alone before anything else is cut.
    pub single_digits: bool,
    /// Whether characters are composed first (NFC).
    pub composes: bool,
    /// Whether a word that is a token is not merged but taken.
    pub ignores_merges: bool,
    /// Whether texts begin with the first token if the file does not say.
    pub adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What most families have; each says below where it differs.
const PLAIN: Pre = Pre { names: &[], cuts: &[], single_digits: false, composes: false, ignores_merges: false, adds_bos: false };

const FAMILIES: &[Pre] = &[
    Pre {
        names: &[
            "default",
            "gpt-2",
            "gpt2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "granite-docling",
        ],
        ..PLAIN
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        single_digits: true,
        ..PLAIN
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        cuts: &[LLAMA3],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Pre { names: &["dbrx", "smaug-bpe"], cuts: &[LLAMA3], ..PLAIN },
    Pre { names: &["qwen2", "kormo", "f2llmv2", "megrez"], cuts: &[QWEN2], composes: true, ..PLAIN },
    Pre { names: &["deepseek-r1-qwen", "stablelm2", "hunyuan", "solar-open", "grok-2"], cuts: &[QWEN2], ..PLAIN },
    Pre { names: &["qwen35"], cuts: &[QWEN35], composes: true, ..PLAIN },
    Pre { names: &["tekken"], cuts: &[TEKKEN], ignores_merges: true, adds_bos: true, ..PLAIN },
    Pre { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], cuts: &[GPT4O], ..PLAIN },
    Pre { names: &["seed-coder"], cuts: &[SEED], ..PLAIN },
    Pre { names: &["deepseek-coder"], cuts: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], ..PLAIN },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        cuts: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        ..PLAIN
    },
    Pre { names: &["falcon"], cuts: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], ..PLAIN },
    Pre { names: &["poro-chat", "bloom", "gpt3-finnish"], cuts: &[r" ?[^(\s|.,!?…。，、।۔،)]+"], ..PLAIN },
    Pre { names: &["viking"], cuts: &[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"], ..PLAIN },
];

/// The way of a name.
pub(super) fn of(name: &str) -> Result<&'static Pre> {
    match FAMILIES.iter().find(|pre| pre.names.contains(&name)) {
        Some(pre) => Ok(pre),
        None => {
            let known: Vec<&str> = FAMILIES.iter().flat_map(|pre| pre.names).copied().collect();
            unsupported(format!("tokenizer.ggml.pre {name:?} is not supported; supported: {}", known.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_name_stands_for_two_families() {
        let mut names: Vec<&str> = FAMILIES.iter().flat_map(|pre| pre.names).copied().collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn an_unknown_family_is_named_with_those_that_are_known() {
        let message = of("klingon").err().unwrap().to_string();
        assert!(message.contains("klingon") && message.contains("llama-bpe") && message.contains("smollm"), "{message}");
    }
}
