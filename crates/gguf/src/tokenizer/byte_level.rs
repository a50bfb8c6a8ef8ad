//! A BPE over bytes, as GPT-2's and nearly every later model's: merges from the file, the cut into words by `tokenizer.ggml.pre`.

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use super::pre::{self, Pre};
use super::vocabulary::Vocabulary;
use super::{Kind, Parts, Unknown, bpe, pair};
use crate::error::{Result, unsupported};
use crate::file::GgufFile;
use crate::value::Value;

impl GgufFile {
    /// `tokenizer.ggml.pre`: which family's way to cut a text into words. Files of before April 2024 do not say.
    pub(super) fn pre_name(&self) -> &str {
        self.text("tokenizer.ggml.pre").unwrap_or("default")
    }

    /// What a user should know about this file's tokenizer: facts that it lacks and what was taken in their place.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.tokenizer_kind().is_ok_and(|kind| kind == Kind::ByteLevel) && self.architecture() != "gpt2" && self.pre_name() == "default"
        {
            warnings.push(
                "the GGUF file does not say how its tokenizer cuts a text into words (tokenizer.ggml.pre); GPT-2's way is taken. \
                 Numbers and white space may become other tokens than in training: convert the model again"
                    .to_owned(),
            );
        }
        warnings
    }

    pub(super) fn byte_level(&self, vocabulary: &Vocabulary) -> Result<Parts> {
        let Some(lines) = self.value("tokenizer.ggml.merges").and_then(Value::texts) else {
            return unsupported("the tokenizer has no merges (tokenizer.ggml.merges)");
        };
        let known: HashSet<&str> = vocabulary.tokens.iter().map(String::as_str).collect();
        let mut merges = Vec::with_capacity(lines.len());
        for (i, line) in lines.iter().enumerate() {
            let space = line.char_indices().skip(1).find(|(_, c)| *c == ' ');
            let Some((left, right)) = space.map(|(at, _)| (respelled(&line[..at]), respelled(&line[at + 1..]))) else {
                return unsupported(format!("tokenizer.ggml.merges[{i}] is {line:?}, which is not two pieces with a space between"));
            };
            let joined = format!("{left}{right}");
            if let Some(missing) = [&left, &right, &joined].into_iter().find(|piece| !known.contains(piece.as_str())) {
                return unsupported(format!("tokenizer.ggml.merges[{i}] is {line:?}, and {missing:?} is no token"));
            }
            merges.push(pair(&left, &right));
        }
        let pre = pre::of(self.pre_name())?;
        Ok(Parts {
            model: bpe(vocabulary, merges, Unknown::Never, pre.ignores_merges),
            normalizer: if pre.composes { json!({"type": "NFC"}) } else { Json::Null },
            pre_tokenizer: pre_tokenizer(pre),
            decoder: bytes(true),
        })
    }
}

/// Turns bytes into the characters of `alphabet`, and cuts as GPT-2 does or not at all.
fn bytes(cuts: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts})
}

fn pre_tokenizer(pre: &Pre) -> Json {
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let mut steps: Vec<Json> = Vec::new();
    if pre.single_digits {
        steps.push(json!({"type": "Digits", "individual_digits": true}));
    }
    steps.extend(pre.cuts.iter().map(split));
    steps.push(bytes(pre.cuts.is_empty()));
    match steps.len() {
        1 => steps.remove(0),
        _ => json!({"type": "Sequence", "pretokenizers": steps}),
    }
}

/// The characters by which a byte-level vocabulary writes bytes: printable ones stand for themselves, the others for 256 and up.
fn alphabet() -> [char; 256] {
    let mut all = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        all[usize::from(byte)] = match printable {
            true => char::from(byte),
            false => {
                next += 1;
                char::from_u32(next - 1).unwrap_or('\u{fffd}')
            }
        };
    }
    all
}

/// A token in the alphabet of bytes. One that uses other characters was written as text, and stands for that text's bytes.
pub(super) fn respelled(token: &str) -> String {
    let within = |c: char| matches!(c, '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' | '\u{100}'..='\u{143}');
    if token.chars().all(within) {
        return token.to_owned();
    }
    let alphabet = alphabet();
    token.bytes().map(|byte| alphabet[usize::from(byte)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let all = alphabet();
        let distinct: HashSet<char> = all.iter().copied().collect();
        assert_eq!(distinct.len(), 256);
        assert_eq!((all[0], all[b' ' as usize], all[b'\n' as usize], all[0xad]), ('Ā', 'Ġ', 'Ċ', 'Ń'));
        assert!(all.iter().all(|c| respelled(&c.to_string()) == c.to_string()));
    }

    #[test]
    fn a_token_that_was_written_as_text_is_written_as_bytes() {
        assert_eq!(respelled("  "), "ĠĠ");
        assert_eq!(respelled("Ġthe"), "Ġthe");
        assert_eq!(respelled("日"), "æĹ¥");
    }
}
