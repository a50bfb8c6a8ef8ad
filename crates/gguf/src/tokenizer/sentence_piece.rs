//! A SentencePiece BPE, as Llama 2's, Mistral's and Gemma's: spaces are the character ▁, and what no piece covers becomes bytes.

use serde_json::{Value as Json, json};

use super::merges::merges;
use super::vocabulary::Vocabulary;
use super::{Parts, Unknown, bpe, pair};
use crate::error::{Result, unsupported};
use crate::file::GgufFile;
use crate::value::Value;

impl GgufFile {
    pub(super) fn sentence_piece(&self, vocabulary: &Vocabulary) -> Result<Parts> {
        let gemma = self.architecture().starts_with("gemma");
        let scores = match self.value("tokenizer.ggml.scores") {
            // Gemma's scores are not the order of its merges; the order of its tokens is.
            Some(Value::Floats(_)) if gemma => None,
            Some(Value::Floats(scores)) if scores.len() >= vocabulary.tokens.len() => Some(scores),
            Some(Value::Floats(scores)) => {
                return unsupported(format!("tokenizer.ggml.scores has {} entries for {} tokens", scores.len(), vocabulary.tokens.len()));
            }
            _ => None,
        };
        let score = |id: usize| scores.map_or(-(id as f64), |scores| scores[id]);
        let pairs = merges(&vocabulary.tokens, score, |id| vocabulary.is_piece(id));
        let merges: Vec<Json> = pairs.into_iter().map(|(left, right)| pair(left, right)).collect();
        let unknown = self.role("unknown").map(|(id, _)| vocabulary.tokens[id].clone());
        let model = bpe(vocabulary, merges, Unknown::Bytes(unknown), false);
        // A space before the text and after every special token, as the models' own tokenizer.json and llama.cpp have it.
        let prefix = self.flag("tokenizer.ggml.add_space_prefix", !gemma);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizer = match prefix {
            true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}),
            false => spaces,
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(Parts { model, normalizer, pre_tokenizer: Json::Null, decoder: json!({"type": "Sequence", "decoders": decoders}) })
    }
}
