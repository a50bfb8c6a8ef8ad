//! Vectors of texts: sentence-transformers' and PEFT's numbers, bits that do not depend on the batch, files that are refused by name.
#![allow(clippy::unwrap_used)]

mod reference;

use std::path::Path;
use std::sync::Arc;

use reference::*;
use tunesmith_ml::infer::{Asked, Recipe, ServeDtype, ServedBase, ServedEncoder, answer, finish_vector};
use tunesmith_ml::text::Encoded;

/// A base's folder with what a variant adds to it.
fn folder(variant: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_folder(&fixtures().join(json(&format!("embeddings/{variant}/expected.json"))["base"].as_str().unwrap()), dir.path());
    copy_folder(&fixtures().join("embeddings").join(variant), dir.path());
    dir
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn load(folder: &Path) -> ServedEncoder {
    ServedEncoder::bare(Arc::new(ServedBase::load(folder).unwrap()))
}

/// What the server does: the prompt before the text, and its tokens told.
fn vectors(encoder: &ServedEncoder, texts: &[String], prompt: Option<&str>) -> Vec<f32> {
    let recipe = encoder.base.recipe().unwrap();
    let prompt = recipe.prompt(prompt).unwrap();
    let prompt_tokens = if prompt.is_empty() { 0 } else { encoder.tokenizer().pieces(prompt, None).unwrap().0.len() - 1 };
    let rows: Vec<Encoded> = texts.iter().map(|t| encoder.tokenizer().encode(&format!("{prompt}{t}"), None).unwrap()).collect();
    let rows: Vec<_> = rows.iter().map(|row| (row, Asked::Vector { encoder, prompt_tokens })).collect();
    answer(&rows).unwrap().into_iter().flat_map(|v| finish_vector(v, None, recipe.normalize)).collect()
}

fn texts(expected: &serde_json::Value) -> Vec<String> {
    serde_json::from_value(expected["texts"].clone()).unwrap()
}

#[test]
fn every_recipe_gives_the_vectors_of_sentence_transformers() {
    for variant in ["mean", "cls", "joined", "dense", "prompts"] {
        let (dir, expected) = (folder(variant), json(&format!("embeddings/{variant}/expected.json")));
        let (encoder, file) = (load(dir.path()), tensors(&format!("embeddings/{variant}/expected.safetensors")));
        for name in file.names() {
            let prompt = name.strip_prefix("vectors/");
            let made = vectors(&encoder, &texts(&expected), prompt);
            let reference = values(&file, name);
            assert_eq!(made.len(), reference.len(), "{variant}/{name}");
            let off = worst(&made, &reference);
            assert!(off < 1e-5, "{variant}/{name}: off by {off:.2e}");
        }
    }
}

#[test]
fn an_adapter_of_a_bare_encoder_gives_pefts_vectors() {
    let expected = json("embeddings/adapter/expected.json");
    let base = Arc::new(ServedBase::load(&fixtures().join(expected["base"].as_str().unwrap())).unwrap());
    let (encoder, head) = ServedEncoder::adapter(base, &fixtures().join("embeddings/adapter")).unwrap();
    assert!(head.is_none());
    let ids = |row: &serde_json::Value| serde_json::from_value::<Vec<u32>>(row["ids"].clone()).unwrap();
    let rows: Vec<Encoded> = expected["rows"].as_array().unwrap().iter().map(ids).map(plain).collect();
    let made = answer(&rows.iter().map(|r| (r, Asked::Vector { encoder: &encoder, prompt_tokens: 0 })).collect::<Vec<_>>()).unwrap();
    let off = worst(&made.concat(), &values(&tensors("embeddings/adapter/expected.safetensors"), "vectors"));
    assert!(off < 1e-5, "off by {off:.2e}");
}

fn plain(ids: Vec<u32>) -> Encoded {
    Encoded { type_ids: vec![0; ids.len()], ids, truncated: 0 }
}

#[test]
fn a_texts_vector_does_not_depend_on_its_batch_bit_for_bit() {
    let dir = folder("dense");
    let base = Arc::new(ServedBase::load(dir.path()).unwrap());
    let bare = ServedEncoder::bare(base.clone());
    let (adapter, head) = ServedEncoder::adapter(base, &fixtures().join("lora/bert")).unwrap();
    assert!(head.is_some());
    let rows: Vec<Encoded> = (0..23).map(|i| plain((0..1 + 7 * i % 40).map(|j| 10 + (i * 31 + j * 17) % 80).collect())).collect();
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let asked = |i: usize| Asked::Vector { encoder: [&bare, &adapter][i % 2], prompt_tokens: 0 };
    for i in [0, 1, 6, 22] {
        let alone = answer(&[(&rows[i], asked(i))]).unwrap().remove(0);
        for crowd in [2, 3, 17, 64] {
            let mut batch: Vec<_> = (0..crowd).map(|j| (&rows[j % rows.len()], asked(j))).collect();
            batch.insert(crowd / 2, (&rows[i], asked(i)));
            assert_eq!(bits(&alone), bits(&answer(&batch).unwrap()[crowd / 2]), "row {i} among {crowd}");
        }
    }
}

#[test]
fn shorter_arithmetic_keeps_directions_and_bits_in_any_batch() {
    let dir = folder("dense");
    let expected = json("embeddings/dense/expected.json");
    let exact = vectors(&load(dir.path()), &texts(&expected), None);
    for dtype in [ServeDtype::Bf16, ServeDtype::Int8] {
        let encoder = ServedEncoder::bare(Arc::new(ServedBase::load_as(dir.path(), dtype).unwrap()));
        let texts = texts(&expected);
        let made = vectors(&encoder, &texts, None);
        let width = made.len() / texts.len();
        for (i, (a, b)) in made.chunks_exact(width).zip(exact.chunks_exact(width)).enumerate() {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
            let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            assert!(cosine > 0.999 && a != b, "{dtype:?}, text {i}: {cosine}");
            assert_eq!(a, vectors(&encoder, &texts[i..=i], None), "{dtype:?}, text {i} alone");
        }
    }
}

#[test]
fn a_prompt_is_known_by_its_name_or_not_at_all() {
    let dir = folder("prompts");
    let encoder = load(dir.path());
    let recipe: &Recipe = encoder.base.recipe().unwrap();
    assert_eq!((recipe.prompt(None), recipe.prompt(Some("passage"))), (Some("the dog: "), Some("good ")));
    // Every model of sentence-transformers has these two, empty unless its files say more.
    assert_eq!((recipe.prompt(Some("document")), recipe.prompt(Some("poem"))), (Some(""), None));
}

#[test]
fn what_the_files_ask_for_and_we_cannot_do_is_refused_by_name() {
    let cases: [(&str, &str, serde_json::Value, &str); 7] = [
        ("modules.json", "/1/type", "sentence_transformers.models.LSTM".into(), "LSTM"),
        ("modules.json", "/1/path", "../1_Pooling".into(), "leads out"),
        ("1_Pooling/config.json", "/pooling_mode", "median".into(), "median"),
        ("1_Pooling/config.json", "/embedding_dimension", 48.into(), "48"),
        ("2_Dense/config.json", "/in_features", 32.into(), "in_features"),
        ("2_Dense/config.json", "/activation_function", "os.system".into(), "os.system"),
        ("2_Dense/config.json", "/out_features", 7.into(), "linear.weight"),
    ];
    for (file, pointer, value, told) in cases {
        let dir = folder("dense");
        let path = dir.path().join(file);
        let mut content: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        *content.pointer_mut(pointer).unwrap() = value;
        std::fs::write(&path, content.to_string()).unwrap();
        // It classifies all the same, so the base loads.
        let base = ServedBase::load(dir.path()).unwrap();
        let error = base.recipe().err().unwrap_or_else(|| panic!("{file}{pointer} was taken")).to_string();
        assert!(error.contains(told), "{file}{pointer}: {error}");
    }
}

#[test]
fn vectors_are_cut_before_they_are_brought_to_length_one() {
    assert_eq!(finish_vector(vec![3.0, 4.0, 100.0], Some(2), true), [0.6, 0.8]);
    assert_eq!(finish_vector(vec![3.0, 4.0], None, false), [3.0, 4.0]);
    assert_eq!(finish_vector(vec![0.0, 0.0], None, true), [0.0, 0.0]);
}
