//! What a trained classifier answers after it was saved and loaded: the same logits, labels in their order, heads of two parts.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use serde_json::{Value, json};
use tunesmith_data::Target;
use tunesmith_ml::infer::{Answer, DEFAULT_THRESHOLD, ServedBase, ServedClassifier, classify};
use tunesmith_ml::models::{load_base, read_json};
use tunesmith_ml::nn::{Batch, Kernels, Mode};
use tunesmith_ml::spec::{JobSpec, ProblemType, Tuning};
use tunesmith_ml::text::Encoded;
use tunesmith_ml::train::{Classifier, LossSettings};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;

use crate::jobs::*;
use crate::reference::*;

const TEXTS: [&str; 5] = ["the striker scored", "stocks fell again", "a quiet film", "water on a distant moon of the planet", ""];

fn packed(rows: &[Encoded], offset: u32) -> Batch {
    let mut batch = Batch::new();
    for (i, row) in rows.iter().enumerate() {
        batch.push(&row.ids, &row.type_ids, i as u64, offset);
    }
    batch
}

fn encoded(folder: &Path) -> Vec<Encoded> {
    let base = ServedBase::load(folder).unwrap();
    TEXTS.iter().map(|t| base.tokenizer().encode(t, None).unwrap()).collect()
}

/// Trains a few steps on the texts themselves, saves, and gives the logits that the trained classifier had.
fn trained(base: &Path, spec: &JobSpec, into: &Path) -> Vec<f32> {
    let mut c = Classifier::new(load_base(base, &Device::Cpu).unwrap(), spec, Precision::F32, Kernels::Native).unwrap();
    let rows = encoded(base);
    let batch = packed(&rows, c.position_offset());
    let labels: Vec<Target> = (0..rows.len()).map(|i| Target::Class((i % c.outputs()) as u32)).collect();
    let targets: Vec<&Target> = labels.iter().collect();
    let settings = LossSettings { problem_type: ProblemType::SingleLabelClassification, label_smoothing: 0.0, class_weights: vec![] };
    for step in 1..=5 {
        c.train_batch(&batch, &targets, &settings, rows.len() as f64, Mode::Train { seed: 1, step }).unwrap();
        c.update(&AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step }, 1.0).unwrap();
    }
    let logits = c.logits(&batch).unwrap();
    c.save(into, spec, "tiny", 40).unwrap();
    Answer { problem_type: spec.data.problem_type, threshold: DEFAULT_THRESHOLD }.write(into).unwrap();
    logits
}

fn served(rows: &[Encoded], classifier: &ServedClassifier) -> Vec<f32> {
    classify(&rows.iter().map(|r| (r, classifier)).collect::<Vec<_>>()).unwrap().concat()
}

#[test]
fn a_saved_full_model_answers_as_it_did_in_training() {
    for folder in ["bert-tiny", "distilbert-tiny", "roberta-tiny", "bert-noprefix", "bert-gamma"] {
        let (dir, base) = (tempfile::tempdir().unwrap(), fixtures().join(folder));
        let logits = trained(&base, &spec(Tuning::Full, &["zebra", "apple", "mango", "fig"]), dir.path());
        let classifier = ServedClassifier::whole(Arc::new(ServedBase::load(dir.path()).unwrap()), dir.path()).unwrap().unwrap();
        assert_eq!(served(&encoded(&base), &classifier), logits, "{folder}");
        assert_eq!(classifier.labels, ["zebra", "apple", "mango", "fig"]);
        assert_eq!(classifier.tokenizer().max_length(), 40);
        let config = read_json(&dir.path().join("config.json")).unwrap();
        let (there, back) = (config["id2label"].as_object().unwrap(), config["label2id"].as_object().unwrap());
        assert_eq!((there.len(), back.len()), (4, 4));
        for (id, label) in there {
            assert_eq!(back[label.as_str().unwrap()].as_u64().unwrap().to_string(), *id);
        }
        assert!(config["architectures"][0].as_str().unwrap().ends_with("ForSequenceClassification"), "{folder}");
    }
}

/// Tensor names of an adapter without its updates.
fn head_tensors(folder: &Path) -> Vec<String> {
    let file = tunesmith_ml::models::WeightFile::open(&[folder.join("adapter_model.safetensors")]).unwrap();
    file.names().into_iter().filter(|n| !n.contains(".lora_")).map(str::to_owned).collect()
}

#[test]
fn heads_of_two_parts_and_of_any_size_return_with_their_adapters() {
    let two_part = [
        ("distilbert-tiny", vec!["pre_classifier", "classifier"], vec!["classifier", "pre_classifier"]),
        ("roberta-tiny", vec!["classifier"], vec!["classifier.dense", "classifier.out_proj"]),
        ("bert-tiny", vec!["pooler", "classifier"], vec!["bert.pooler.dense", "classifier"]),
        ("bert-gamma", vec!["pooler", "classifier"], vec!["bert.pooler.dense", "classifier"]),
    ];
    for (folder, modules, tensors_there) in two_part {
        let base_folder = fixtures().join(folder);
        let base = Arc::new(ServedBase::load(&base_folder).unwrap());
        let rows = encoded(&base_folder);
        let mut adapters = Vec::new();
        for labels in [&["x", "y", "z"][..], &["no", "yes"], &["a", "b", "c", "d", "e"]] {
            let dir = tempfile::tempdir().unwrap();
            let logits = trained(&base_folder, &spec(lora(4, 8.0), labels), dir.path());
            let config = read_json(&dir.path().join("adapter_config.json")).unwrap();
            assert_eq!(config["modules_to_save"], json!(modules), "{folder}");
            let expected: Vec<String> =
                tensors_there.iter().flat_map(|m| ["bias", "weight"].map(|p| format!("base_model.model.{m}.{p}"))).collect();
            assert_eq!(head_tensors(dir.path()), expected, "{folder}");
            let classifier = ServedClassifier::adapter(base.clone(), dir.path()).unwrap();
            assert_eq!(classifier.labels, labels);
            assert_eq!(served(&rows, &classifier), logits, "{folder}: {labels:?}");
            adapters.push((classifier, logits, labels.len()));
        }
        // Each row by all three, in one batch.
        let mixed: Vec<(&Encoded, &ServedClassifier)> = rows.iter().flat_map(|r| adapters.iter().map(move |a| (r, &a.0))).collect();
        for (i, answer) in classify(&mixed).unwrap().into_iter().enumerate() {
            let (_, logits, labels) = &adapters[i % 3];
            assert_eq!(answer, logits[i / 3 * labels..(i / 3 + 1) * labels], "{folder}: row {i}");
        }
    }
}

#[test]
fn a_head_without_its_tensors_is_refused_by_name_for_each_family() {
    for (folder, tensor) in
        [("distilbert-tiny", "classifier.weight"), ("roberta-tiny", "classifier.out_proj.weight"), ("bert-gamma", "bert.pooler.dense.bias")]
    {
        let (dir, base) = (tempfile::tempdir().unwrap(), fixtures().join(folder));
        trained(&base, &spec(lora(4, 8.0), &["no", "yes"]), dir.path());
        let path = dir.path().join("adapter_model.safetensors");
        let file = tunesmith_ml::models::WeightFile::open(std::slice::from_ref(&path)).unwrap();
        let kept: Vec<_> = file
            .names()
            .into_iter()
            .filter(|n| !n.ends_with(tensor))
            .map(|n| (n.to_owned(), file.get_any(n, &Device::Cpu).unwrap()))
            .collect();
        drop(file);
        tunesmith_ml::models::write_safetensors(&path, &kept).unwrap();
        let error = ServedClassifier::adapter(Arc::new(ServedBase::load(&base).unwrap()), dir.path()).err().unwrap().to_string();
        assert!(error.contains(tensor), "{folder}: {error}");
    }
}

#[test]
fn label_names_keep_their_ids_through_training_evaluation_saving_and_serving() {
    // The request's sorted names; the rows show them in another order, and the evaluation lacks one.
    let labels = ["apple", "mango", "zebra"];
    let run = |eval_all: bool| {
        let mut spec = spec(Tuning::Full, &labels);
        (spec.training.num_train_epochs, spec.training.learning_rate) = (15.0, 2e-3);
        let train = with_targets(rows(30, 3, 1), |i| Target::Class([2, 0, 1][i % 3]));
        let mut eval = with_targets(rows(12, 3, 1), |i| Target::Class([2, 0, 1][i % 3]));
        if !eval_all {
            eval.retain(|r| r.target != Target::Class(2));
            eval.reverse();
        }
        let (finished, recorder) = Job::new(fixtures().join("bert-tiny"), spec, train, eval.clone()).finish();
        let classifier = ServedClassifier::whole(Arc::new(ServedBase::load(&finished.model).unwrap()), &finished.model).unwrap().unwrap();
        assert_eq!(classifier.labels, labels);
        let right = eval.iter().filter(|row| {
            let tokens = classifier.tokenizer().encode(&row.text, None).unwrap();
            let logits = &classify(&[(&tokens, &classifier)]).unwrap()[0];
            let best = (0..3).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            row.target == Target::Class(best as u32)
        });
        let accuracy = recorder.entries("eval_accuracy").into_values().next_back().unwrap();
        assert_eq!(right.count() as f64 / eval.len() as f64, accuracy);
        assert!(accuracy > 0.6, "the model learned too little to show an order: {accuracy}");
        let config: Value = read_json(&finished.model.join("config.json")).unwrap();
        assert_eq!(config["id2label"], json!({"0": "apple", "1": "mango", "2": "zebra"}));
        assert_eq!(config["label2id"], json!({"apple": 0, "mango": 1, "zebra": 2}));
        bytes_of(&finished.model)
    };
    let (whole, less) = (run(true), run(false));
    assert!(whole == less, "the evaluation rows changed the model");
}

#[test]
fn a_base_of_other_labels_lends_its_dense_layer_and_not_its_output() {
    let base = load_base(&fixtures().join("distilbert-tiny"), &Device::Cpu).unwrap();
    let file = tensors("distilbert-tiny/model.safetensors");
    let kept = |labels: &[&str]| {
        let base = load_base(&fixtures().join("distilbert-tiny"), &Device::Cpu).unwrap();
        let c = Classifier::new(base, &spec(Tuning::Full, labels), Precision::F32, Kernels::Native).unwrap();
        ["pre_classifier.weight", "classifier.weight"].map(|name| {
            let info = c.params.infos.iter().find(|i| i.name == name).unwrap();
            flat(&c.params.value(info).unwrap()) == values(&file, name)
        })
    };
    assert_eq!(kept(&["a", "b", "c"]), [true, false]);
    let own = base.labels();
    assert_eq!(kept(&own.iter().map(String::as_str).collect::<Vec<_>>()), [true, true]);
}
