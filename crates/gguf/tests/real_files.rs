//! Two real models, where their files are there: `SMOLLM2_GGUF` names SmolLM2-135M-Instruct (Q4_1), `GEMMA3_GGUF` Gemma 3 270M
//! (Q4_K_M). Ids and weights are those that `transformers` finds in them (`fixtures/make.py`).
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Map, Value as Json, json};
use tokenizers::Tokenizer;
use tunesmith_gguf::GgufFile;

fn open(variable: &str) -> Option<GgufFile> {
    match std::env::var_os(variable) {
        Some(path) => Some(GgufFile::open(Path::new(&path)).unwrap()),
        None => {
            eprintln!("skipped: {variable} names no file");
            None
        }
    }
}

fn expected(model: &str) -> Map<String, Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/real.json");
    let all: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    all[model].as_object().unwrap().clone()
}

fn assert_reads(file: &GgufFile, model: &str) -> Tokenizer {
    let expected = expected(model);
    let tokenizer: Tokenizer = serde_json::from_value(file.tokenizer_json().unwrap()).unwrap();
    for case in expected["ids"].as_array().unwrap() {
        let text = case[0].as_str().unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(json!(encoding.get_ids()), case[1], "{text:?} became {:?}", encoding.get_tokens());
    }
    for (name, theirs) in expected["tensors"].as_object().unwrap() {
        let (shape, values) = file.hf_tensor(name).unwrap().unwrap();
        assert_eq!(json!(shape), theirs["shape"], "{name}");
        for (ours, theirs) in values.iter().zip(theirs["first"].as_array().unwrap()) {
            assert_eq!(*ours, theirs.as_f64().unwrap() as f32, "{name}");
        }
        let (sum, theirs) = (values.iter().map(|v| f64::from(v.abs())).sum::<f64>(), theirs["sum"].as_f64().unwrap());
        assert!((sum - theirs).abs() <= 1e-9 * theirs, "{name}: {sum} is not {theirs}");
    }
    tokenizer
}

#[test]
fn smollm2_is_the_model_that_transformers_reads() {
    let Some(file) = open("SMOLLM2_GGUF") else { return };
    let tokenizer = assert_reads(&file, "smollm2");
    assert_eq!(file.hf_names().len(), 272);
    let config = file.config_json().unwrap();
    for (name, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(576)),
        ("num_attention_heads", json!(9)),
        ("num_key_value_heads", json!(3)),
        ("rope_theta", json!(100_000.0)),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(true)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(2)),
        ("vocab_size", json!(49152)),
    ] {
        assert_eq!(config[name], value, "{name}");
    }
    let settings = file.tokenizer_config_json().unwrap();
    assert_eq!((&settings["bos_token"], &settings["eos_token"]), (&json!("<|im_start|>"), &json!("<|im_end|>")));
    assert!(settings["chat_template"].as_str().unwrap().contains("<|im_start|>system"));

    // The reference run beside the repository, where it is there.
    let greedy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/smollm2_greedy.json");
    let Ok(greedy) = std::fs::read(greedy) else { return eprintln!("skipped: there is no smollm2_greedy.json") };
    for prompt in serde_json::from_slice::<Vec<Json>>(&greedy).unwrap() {
        let ids = tokenizer.encode(prompt["prompt"].as_str().unwrap(), false).unwrap().get_ids().to_vec();
        assert_eq!(json!(ids), prompt["prompt_ids"]);
    }
}

#[test]
fn gemma_3_is_the_model_that_transformers_reads() {
    let Some(file) = open("GEMMA3_GGUF") else { return };
    let tokenizer = assert_reads(&file, "gemma3");
    assert_eq!(file.hf_names().len(), 236);
    assert_eq!(tokenizer.encode("a", true).unwrap().get_ids()[0], 2, "texts begin with <bos>");
    let config = file.config_json().unwrap();
    assert_eq!(config["layer_types"].as_array().unwrap().iter().filter(|t| *t == "full_attention").count(), 3);
    assert_eq!((&config["sliding_window"], &config["head_dim"]), (&json!(512), &json!(256)));
    assert_eq!(file.tokenizer_config_json().unwrap().get("chat_template"), None);
}
