//! Tiny models of every architecture, written as llama.cpp's converters write them: configuration and weights are those of the
//! Hugging Face model that they were made from (`fixtures/make.py`).
#![allow(clippy::unwrap_used)]

mod writer;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};
use tunesmith_gguf::{GgufFile, Kind};
use writer::{Item, Writer, llama};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn models() -> Map<String, Json> {
    serde_json::from_slice(&std::fs::read(fixture("models.json")).unwrap()).unwrap()
}

fn open(model: &str) -> GgufFile {
    GgufFile::open(&fixture("models").join(format!("{model}.gguf"))).unwrap()
}

/// `weight` of `make.py`.
fn weight(name: &str, n: usize) -> Vec<f32> {
    let salt = name.bytes().fold(0u64, |salt, byte| (salt * 31 + u64::from(byte)) % 65521);
    (0..n as u64).map(|i| ((i * 40503 + salt) % 1024) as f32 / 1024.0 - 0.5).collect()
}

#[test]
fn every_tensor_has_hugging_faces_name_shape_and_order() {
    for (model, expected) in models() {
        let file = open(&model);
        let shapes = expected["tensors"].as_object().unwrap();
        let mut names: Vec<&String> = shapes.keys().collect();
        names.sort();
        assert_eq!(file.hf_names().iter().collect::<Vec<_>>(), names, "{model}");
        for (name, expected) in shapes {
            let (shape, values) = file.hf_tensor(name).unwrap().unwrap();
            assert_eq!(json!(shape), *expected, "{model}: {name}");
            assert_eq!(file.hf_shape(name), Some(shape));
            assert!(values == weight(name, values.len()), "{model}: {name} has other values");
        }
        assert_eq!(file.hf_tensor("model.layers.9.mlp.up_proj.weight").unwrap(), None);
        assert_eq!(file.hf_shape("model.layers.9.mlp.up_proj.weight"), None);
    }
}

#[test]
fn the_configuration_is_the_one_that_the_file_was_written_from() {
    for (model, expected) in models() {
        let config = open(&model).config_json().unwrap();
        for (name, value) in expected["config"].as_object().unwrap() {
            let same = config.get(name).is_some_and(|ours| ours == value || (ours.as_f64().is_some() && ours.as_f64() == value.as_f64()));
            let same = same || (name == "rope_scaling" && numbers(&config[name]) == numbers(value));
            assert!(same, "{model}: {name} is {:?}, expected {value}", config.get(name));
        }
    }
}

/// An object with all its numbers as floats.
fn numbers(object: &Json) -> Vec<(String, Json)> {
    let number = |v: &Json| v.as_f64().map_or_else(|| v.clone(), |v| json!(v));
    let mut all: Vec<(String, Json)> = object.as_object().unwrap().iter().map(|(k, v)| (k.clone(), number(v))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn stored_rows_are_the_read_rows_wherever_rows_are_enough() {
    for (model, expected) in models() {
        let file = open(&model);
        for name in expected["tensors"].as_object().unwrap().keys() {
            let raw = file.hf_raw(name).unwrap();
            let changed = (model.starts_with("gemma") && name.contains("norm"))
                || (model == "gpt2" && name.contains(".c_") && name.ends_with("weight"));
            assert_eq!(raw.is_none(), changed, "{model}: {name}");
            let Some(raw) = raw else { continue };
            let (shape, values) = file.hf_tensor(name).unwrap().unwrap();
            assert_eq!(raw.shape, shape);
            assert!(raw.kind.dequantise(&raw.bytes).unwrap() == values, "{model}: {name}");
        }
        assert_eq!(file.hf_raw("no.such.weight").unwrap(), None);
    }
}

/// A quantised tensor whose row `i` has the scale `i`.
fn scaled_rows(rows: u64, row_blocks: u64) -> Vec<u8> {
    let block = |row: u64| {
        let scale = half::f16::from_f32(row as f32).to_le_bytes();
        scale.into_iter().chain([1u8; 32])
    };
    (0..rows).flat_map(|row| (0..row_blocks).flat_map(move |_| block(row))).collect()
}

#[test]
fn quantised_rows_of_grouped_heads_are_moved_whole() {
    let q8_0 = Kind::ALL.iter().find(|(_, kind)| *kind == Kind::Q8_0).unwrap().0;
    let file = Writer::new("llama")
        .with("llama.attention.head_count", 4)
        .with("llama.attention.head_count_kv", 2)
        .tensor("blk.0.attn_q.weight", &[64, 16], q8_0, scaled_rows(16, 2))
        .tensor("blk.0.attn_k.weight", &[64, 8], q8_0, scaled_rows(8, 2))
        .tensor("blk.0.attn_v.weight", &[64, 8], q8_0, scaled_rows(8, 2))
        .open()
        .unwrap();
    let first_of_rows = |module: &str| -> Vec<f32> {
        let name = format!("model.layers.0.self_attn.{module}_proj.weight");
        let raw = file.hf_raw(&name).unwrap().unwrap();
        let values = raw.kind.dequantise(&raw.bytes).unwrap();
        assert_eq!((raw.kind, &values), (Kind::Q8_0, &file.hf_tensor(&name).unwrap().unwrap().1));
        values.chunks(64).map(|row| row[0]).collect()
    };
    // Heads of four rows: the pairs (0, 1), (2, 3) become the halves (0, 2), (1, 3).
    assert_eq!(first_of_rows("q"), [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15].map(|v| v as f32));
    assert_eq!(first_of_rows("k"), [0, 2, 1, 3, 4, 6, 5, 7].map(|v| v as f32));
    assert_eq!(first_of_rows("v"), [0, 1, 2, 3, 4, 5, 6, 7].map(|v| v as f32));
}

#[test]
fn rows_that_make_no_heads_are_refused() {
    for heads in [0, 3, 8, 1 << 31] {
        let mut file = llama();
        file.items.iter_mut().filter(|(key, _)| key.ends_with("head_count")).for_each(|(_, item)| *item = Item::U32(heads));
        let message = file.open().unwrap().hf_tensor("model.layers.0.self_attn.q_proj.weight").unwrap_err().to_string();
        assert!(message.contains("blk.0.attn_q.weight") && message.contains(&heads.to_string()), "{message}");
    }
}

/// The message of a configuration that must be refused.
fn refused(writer: &Writer) -> String {
    writer.open().unwrap().config_json().unwrap_err().to_string()
}

#[test]
fn what_is_no_such_model_is_refused_by_name() {
    for (writer, says) in [
        (Writer::new("mamba"), "mamba"),
        (Writer::new("llama"), "llama.block_count"),
        (llama().with("llama.expert_count", 8), "mixture of experts"),
        (llama().counting("blk.0.attn_sub_norm.weight", &[8], 0.0), "blk.0.attn_sub_norm.weight"),
        (llama().counting("blk.0.attn_q_norm.weight", &[8], 0.0), "blk.0.attn_q_norm.weight"),
        (llama().with("llama.attention.key_length", 4).with("llama.rope.dimension_count", 2), "Some(2)"),
        (llama().with("llama.rope.dimension_count", 2), "blk.0.attn_q.weight"),
        (llama().with("llama.attention.key_length", 16), "blk.0.attn_q.weight"),
        (llama().with("llama.rope.scaling.type", "longrope"), "longrope"),
        (llama().with("llama.rope.scaling.type", "yarn"), "rope.scaling.factor"),
    ] {
        let message = refused(&writer);
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    let lists = llama();
    for (list, says) in [(vec![2, 1], Some("differs between layers")), (vec![2, 2], None), (vec![-1, -1], Some("not a count"))] {
        let mut file = lists.clone();
        file.items.iter_mut().filter(|(key, _)| key.ends_with("head_count_kv")).for_each(|(_, item)| *item = Item::Ints(list.clone()));
        let result = file.open().unwrap().config_json();
        match says {
            Some(says) => assert!(result.unwrap_err().to_string().contains(says)),
            None => assert_eq!(result.unwrap()["num_key_value_heads"], 2),
        }
    }
    let mut deep = llama();
    deep.items.iter_mut().filter(|(key, _)| key.ends_with("block_count")).for_each(|(_, item)| *item = Item::U32(u32::MAX));
    assert!(refused(&deep).contains("layers"));
}

#[test]
fn every_token_that_ends_something_is_an_end() {
    let ends = |writer: Writer| writer.open().unwrap().config_json().unwrap().get("eos_token_id").cloned();
    assert_eq!(ends(llama()), Some(json!(0)));
    assert_eq!(ends(llama().with("tokenizer.ggml.eot_token_id", 5)), Some(json!([0, 5])));
    assert_eq!(ends(llama().with("tokenizer.ggml.eot_token_id", 0).with("tokenizer.ggml.eom_token_id", 3)), Some(json!([0, 3])));
    assert_eq!(ends(llama().with("tokenizer.ggml.eot_token_id", 99)), Some(json!(0)));
}

#[test]
fn scaled_positions_are_read() {
    let scaling = |writer: Writer| writer.open().unwrap().config_json().unwrap().get("rope_scaling").cloned();
    assert_eq!(scaling(llama().with("llama.rope.scaling.type", "none")), None);
    let linear = llama().with("llama.rope.scaling.type", "linear").with("llama.rope.scaling.factor", Item::F32(2.5));
    assert_eq!(scaling(linear), Some(json!({"rope_type": "linear", "factor": 2.5})));
    assert_eq!(scaling(llama().with("llama.rope.scale_linear", Item::F32(4.0))), Some(json!({"rope_type": "linear", "factor": 4.0})));
    let yarn = llama()
        .with("llama.rope.scaling.type", "yarn")
        .with("llama.rope.scaling.factor", Item::F32(4.0))
        .with("llama.rope.scaling.original_context_length", 32768)
        .with("llama.rope.scaling.yarn_beta_fast", Item::F32(16.0));
    let expected = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 16.0});
    assert_eq!(scaling(yarn), Some(expected));
}

#[test]
fn gemma_3_takes_its_layers_from_the_file_where_they_are_there() {
    let types = |extra: &[(&str, Item)]| {
        let mut file = Writer::new("gemma3")
            .with("gemma3.block_count", 3)
            .with("gemma3.context_length", 16)
            .with("gemma3.embedding_length", 8)
            .with("gemma3.feed_forward_length", 12)
            .with("gemma3.attention.head_count", 2)
            .counting("token_embd.weight", &[6, 8], 0.0);
        for (key, item) in extra {
            file = file.with(key, item.clone());
        }
        file.open().unwrap().config_json().unwrap()["layer_types"].clone()
    };
    let (full, slides) = ("full_attention", "sliding_attention");
    let window = ("gemma3.attention.sliding_window", Item::U32(4));
    let pattern = "gemma3.attention.sliding_window_pattern";
    assert_eq!(types(&[]), json!([full, full, full]));
    assert_eq!(types(std::slice::from_ref(&window)), json!([slides, slides, slides]));
    assert_eq!(types(&[window.clone(), (pattern, Item::U32(2))]), json!([slides, full, slides]));
    assert_eq!(types(&[window, (pattern, Item::Bools(vec![false, true, true]))]), json!([full, slides, slides]));
}
