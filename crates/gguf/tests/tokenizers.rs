//! Tokenizers out of GGUF files give the ids that `tokenizers` and `sentencepiece` give (`fixtures/make.py`), and give texts back.
#![allow(clippy::unwrap_used)]

mod writer;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};
use tokenizers::Tokenizer;
use tunesmith_gguf::GgufFile;
use writer::{Item, Writer, llama};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tokenizer(file: &GgufFile) -> Tokenizer {
    serde_json::from_value(file.tokenizer_json().unwrap()).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str, around: bool) -> Vec<u32> {
    tokenizer.encode(text, around).unwrap().get_ids().to_vec()
}

fn texts(all: &[&str]) -> Item {
    Item::Texts(all.iter().map(|t| (*t).to_owned()).collect())
}

#[test]
fn every_kind_of_tokenizer_gives_the_ids_of_the_one_it_was_made_from() {
    let expected: Map<String, Json> = serde_json::from_slice(&std::fs::read(fixture("tokenizers.json")).unwrap()).unwrap();
    assert_eq!(expected.len(), 8);
    for (name, cases) in expected {
        let file = GgufFile::open(&fixture("tokenizers").join(format!("{name}.gguf"))).unwrap();
        let tokenizer = tokenizer(&file);
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let bare = ids(&tokenizer, text, false);
            assert_eq!(json!(bare), case["ids"], "{name}: {text:?} became {:?}", tokenizer.encode(text, false).unwrap().get_tokens());
            let first: Vec<u32> = serde_json::from_value(case["first"].clone()).unwrap();
            assert_eq!(ids(&tokenizer, text, true), [first, bare.clone()].concat(), "{name}: {text:?}");
            // NFC and U+2581 are the two things that the kinds lose.
            if name != "qwen2" && !text.contains('▁') {
                assert_eq!(tokenizer.decode(&bare, false).unwrap(), text, "{name}");
            }
        }
    }
}

#[test]
fn settings_name_the_roles_and_the_template() {
    let settings = llama().with("tokenizer.ggml.bos_token_id", 2).with("tokenizer.ggml.padding_token_id", 99).open().unwrap();
    let settings = settings.tokenizer_config_json().unwrap();
    assert_eq!(settings["bos_token"], "b");
    assert_eq!(settings["eos_token"], "<|end|>");
    assert_eq!(settings.get("pad_token"), None, "an id beyond the vocabulary is no token");
    assert_eq!(settings["model_max_length"], 16);
    assert_eq!(settings["add_bos_token"], false);
    assert_eq!(settings["chat_template"], "{{ messages }}");
}

#[test]
fn several_templates_are_a_list_with_names() {
    let several = llama()
        .with("tokenizer.chat_templates", texts(&["tool_use", "lost"]))
        .with("tokenizer.chat_template.tool_use", "{{ tools }}")
        .open()
        .unwrap();
    let expected = json!([{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]);
    assert_eq!(several.tokenizer_config_json().unwrap()["chat_template"], expected);
}

/// A tokenizer of these byte-level tokens without merges.
fn words(tokens: &[&str], types: &[i32]) -> Writer {
    Writer::new("llama")
        .with("tokenizer.ggml.model", "gpt2")
        .with("tokenizer.ggml.pre", "gpt-2")
        .with("tokenizer.ggml.tokens", texts(tokens))
        .with("tokenizer.ggml.token_type", Item::Ints(types.to_vec()))
        .with("tokenizer.ggml.merges", texts(&[]))
}

#[test]
fn special_text_is_one_token_and_first_and_last_tokens_are_put_around() {
    let file = words(&["<s>", "a", "</s>", "<think>"], &[3, 1, 3, 4])
        .with("tokenizer.ggml.bos_token_id", 0)
        .with("tokenizer.ggml.eos_token_id", 2)
        .with("tokenizer.ggml.add_bos_token", Item::Bool(true))
        .with("tokenizer.ggml.add_eos_token", Item::Bool(true))
        .open()
        .unwrap();
    let tokenizer = tokenizer(&file);
    assert_eq!(ids(&tokenizer, "a<think>a</s>", false), [1, 3, 1, 2]);
    assert_eq!(ids(&tokenizer, "a", true), [0, 1, 2]);
    assert_eq!(tokenizer.decode(&[0, 1, 3, 2], true).unwrap(), "a<think>", "a token that a user defined is text");
}

#[test]
fn ends_of_turns_that_were_taken_for_words_are_special() {
    let tokenizer = tokenizer(&words(&["a", "<|im_end|>"], &[1, 1]).open().unwrap());
    assert_eq!(ids(&tokenizer, "a<|im_end|>", false), [0, 1]);
    assert_eq!(tokenizer.decode(&[0, 1], true).unwrap(), "a");
}

#[test]
fn tokens_that_cannot_be_names_keep_their_ids() {
    let json = words(&["a", "", "a", "  ", "b"], &[1, 1, 1, 1, 1]).open().unwrap().tokenizer_json().unwrap();
    assert_eq!(json["model"]["vocab"], json!({"a": 0, "[UNUSED_1]": 1, "[UNUSED_2]": 2, "ĠĠ": 3, "b": 4}));
}

#[test]
fn a_file_without_types_has_its_roles_as_special_tokens() {
    let mut file = words(&["a", "<s>"], &[]).with("tokenizer.ggml.bos_token_id", 1);
    file.items.retain(|(key, _)| key != "tokenizer.ggml.token_type");
    assert_eq!(ids(&tokenizer(&file.open().unwrap()), "a<s>a", false), [0, 1, 0]);
}

fn refused(writer: &Writer) -> String {
    writer.open().unwrap().tokenizer_json().unwrap_err().to_string()
}

#[test]
fn tokenizers_that_cannot_be_built_are_refused_by_name() {
    let piece = |tokens: &[&str]| Writer::new("llama").with("tokenizer.ggml.model", "llama").with("tokenizer.ggml.tokens", texts(tokens));
    let mut without_merges = words(&["a"], &[1]);
    without_merges.items.pop();
    for (writer, says) in [
        (Writer::new("llama"), "no tokenizer"),
        (Writer::new("llama").with("tokenizer.ggml.model", "gpt2"), "tokenizer.ggml.tokens"),
        (Writer::new("llama").with("tokenizer.ggml.model", "bert"), "bert"),
        (without_merges, "tokenizer.ggml.merges"),
        (words(&["a", "b"], &[1, 1]).with("other", 1), ""),
        (piece(&["<unk>", "<s>", "</s>", "<0xZZ>"]), "<0xZZ>"),
        (piece(&["<unk>", "<s>", "</s>", "<0x1"]), "<0x1"),
        (piece(&["<unk>", "<s>", "</s>"]).with("tokenizer.ggml.scores", Item::Floats(vec![0.0])), "1 entries for 3 tokens"),
    ] {
        match says {
            "" => assert!(writer.open().unwrap().tokenizer_json().is_ok()),
            _ => {
                let message = refused(&writer);
                assert!(message.contains(says), "{message:?} does not say {says:?}");
            }
        }
    }
    for (line, says) in [("ab", "not two pieces"), ("", "not two pieces"), ("a c", "\"c\" is no token"), ("a b", "\"ab\" is no token")] {
        let mut file = words(&["a", "b"], &[1, 1]);
        file.items.last_mut().unwrap().1 = texts(&[line]);
        let message = refused(&file);
        assert!(message.contains(says) && message.contains("merges[0]"), "{message}");
    }
    let mut unknown = words(&["a"], &[1]);
    unknown.items[2].1 = "klingon".into();
    assert!(refused(&unknown).contains("klingon"));
}

#[test]
fn a_file_that_does_not_say_how_to_cut_is_read_with_a_warning() {
    let mut file = words(&["a"], &[1]);
    assert!(file.open().unwrap().warnings().is_empty());
    file.items.retain(|(key, _)| key != "tokenizer.ggml.pre");
    let file = file.open().unwrap();
    assert!(file.warnings()[0].contains("tokenizer.ggml.pre"));
    assert_eq!(ids(&tokenizer(&file), "a", false), [0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_built_of_a_changed_file_can_be_used(
        which in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let name = ["gpt-2", "spm-llama", "spm-gemma"][which];
        let mut bytes = std::fs::read(fixture("tokenizers").join(format!("{name}.gguf"))).unwrap();
        let len = bytes.len();
        changes.iter().for_each(|(at, value)| bytes[at.index(len)] = *value);
        let Ok(file) = writer::open(&bytes) else { return Ok(()) };
        if let Ok(json) = file.tokenizer_json() {
            let tokens = json["model"]["vocab"].as_object().unwrap().len();
            let tokenizer: Tokenizer = serde_json::from_value(json).unwrap();
            prop_assert_eq!(tokenizer.get_vocab_size(true), tokens, "an added token is not in the vocabulary");
            prop_assert!(tokenizer.encode("Hello there 12 \n é", true).unwrap().get_ids().iter().all(|id| (*id as usize) < tokens));
        }
    }
}
