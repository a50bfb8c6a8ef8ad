//! Adapters from outside in serving: PEFT's answers, mixed batches, bits that do not depend on the batch, refusals.
#![allow(clippy::unwrap_used)]

mod reference;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reference::*;
use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{ServedBase, ServedClassifier, classify};
use tunesmith_ml::models::{WeightFile, write_safetensors};
use tunesmith_ml::text::Encoded;

fn base(folder: &str) -> Arc<ServedBase> {
    Arc::new(ServedBase::load(&fixtures().join(folder)).unwrap())
}

fn rows(expected: &serde_json::Value) -> Vec<Encoded> {
    let ids = |v: &serde_json::Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect::<Vec<_>>();
    expected["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| Encoded { ids: ids(&r["ids"]), type_ids: ids(&r["type_ids"]), truncated: 0 })
        .collect()
}

fn adapters() -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(fixtures().join("lora")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_peft_adapter_gives_pefts_logits() {
    for name in adapters() {
        let expected = json(&format!("lora/{name}/expected.json"));
        let base = base(expected["base"].as_str().unwrap());
        let classifier = ServedClassifier::adapter(base, &fixtures().join("lora").join(&name)).unwrap();
        let rows = rows(&expected);
        let logits: Vec<f32> = classify(&rows.iter().map(|r| (r, &classifier)).collect::<Vec<_>>()).unwrap().concat();
        let reference = values(&tensors(&format!("lora/{name}/expected.safetensors")), "logits");
        let off = worst(&logits, &reference);
        assert!(off < 1e-4, "{name}: logits are off by {off:.2e}");
    }
}

#[test]
fn a_rows_logits_do_not_depend_on_its_batch_bit_for_bit() {
    let base = base("bert-tiny");
    let load = |name: &str| ServedClassifier::adapter(base.clone(), &fixtures().join("lora").join(name)).unwrap();
    let (a, b, five) = (load("bert"), load("bert-rslora"), load("bert-five"));
    let rows = rows(&json("lora/bert/expected.json"));
    for classifier in [&a, &b, &five] {
        for row in &rows {
            let alone = classify(&[(row, classifier)]).unwrap().remove(0);
            for crowd in [2, 3, 17, 64] {
                let mut batch: Vec<(&Encoded, &ServedClassifier)> =
                    (0..crowd).map(|i| (&rows[i % rows.len()], [&a, &b, &five][i % 3])).collect();
                batch.insert(crowd / 2, (row, classifier));
                let crowded = classify(&batch).unwrap().remove(crowd / 2);
                assert_eq!(alone.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), crowded.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
        }
    }
}

/// A copy of an adapter whose tensors `change` renames or drops.
fn changed(name: &str, change: impl Fn(&str) -> Option<String>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let from = fixtures().join("lora").join(name);
    let weights = WeightFile::open(&[from.join("adapter_model.safetensors")]).unwrap();
    let tensors: Vec<_> =
        weights.names().into_iter().filter_map(|n| Some((change(n)?, weights.get_any(n, &candle_core::Device::Cpu).unwrap()))).collect();
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &tensors).unwrap();
    std::fs::copy(from.join("adapter_config.json"), dir.path().join("adapter_config.json")).unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

fn refusal(folder: &Path) -> String {
    match ServedClassifier::adapter(base("bert-tiny"), folder) {
        Err(MlError::AdapterMismatch(message)) => message,
        Err(other) => panic!("expected a mismatch, got {other}"),
        Ok(_) => panic!("the adapter was accepted"),
    }
}

#[test]
fn an_adapter_whose_tensors_find_no_place_is_refused_by_name() {
    let (_d, all) = changed("bert", |n| Some(n.replace("bert.encoder", "language_model.encoder")));
    assert!(refusal(&all).contains("language_model.encoder"), "{}", refusal(&all));
    let (_d, half) = changed("bert", |n| Some(n.replace("bert.encoder.layer.1", "language_model.encoder.layer.1")));
    assert!(refusal(&half).contains("layer.1"), "{}", refusal(&half));
    let (_d, no_b) = changed("bert", |n| (!n.contains("layer.0.attention.self.query.lora_B")).then(|| n.to_owned()));
    assert!(refusal(&no_b).contains("layer.0.attention.self.query.lora_B.weight is missing"), "{}", refusal(&no_b));
    let (_d, extra) = changed("bert", |n| Some(if n.ends_with("classifier.bias") { n.replace("bias", "scale") } else { n.to_owned() }));
    assert!(refusal(&extra).contains("classifier.bias"), "{}", refusal(&extra));
}

#[test]
fn an_adapter_without_its_head_is_refused_by_name() {
    let (_d, headless) = changed("bert", |n| (!n.contains("classifier")).then(|| n.to_owned()));
    assert!(refusal(&headless).contains("base_model.model.classifier.weight is missing"), "{}", refusal(&headless));
}

#[test]
fn a_head_in_pefts_older_spelling_is_found() {
    let (_d, folder) = changed("bert", |n| Some(n.replace("model.classifier.", "model.classifier.modules_to_save.default.")));
    ServedClassifier::adapter(base("bert-tiny"), &folder).unwrap();
}

#[test]
fn an_adapter_of_another_width_is_refused_with_both_shapes() {
    let message = match ServedClassifier::adapter(base("roberta-tiny"), &fixtures().join("lora/bert")) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("accepted"),
    };
    assert!(message.contains("classifier") || message.contains("bert.encoder"), "{message}");
}

#[test]
fn truncated_weights_are_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixtures().join("bert-tiny").join(file), dir.path().join(file)).unwrap();
    }
    let bytes = std::fs::read(fixtures().join("bert-tiny/model.safetensors")).unwrap();
    for cut in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(dir.path().join("model.safetensors"), &bytes[..cut]).unwrap();
        let error = ServedBase::load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("model.safetensors"), "cut at {cut}: {error}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("bert-tiny").join(file), dir.path().join(file)).unwrap();
    }
    let mut tokenizer = json("bert-tiny/tokenizer.json");
    tokenizer["model"]["vocab"]["stranger"] = 100_000.into();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let error = ServedBase::load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("stranger") && error.contains("another model"), "{error}");
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"model_type":"gpt_bigcode"}"#).unwrap();
    let error = ServedBase::load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("gpt_bigcode") && error.contains("distilbert"), "{error}");
}
