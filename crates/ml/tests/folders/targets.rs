//! Which modules an adapter trains and saves, by PEFT's rules, and the scale of its updates.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::Device;
use tunesmith_ml::infer::{ServedBase, ServedClassifier};
use tunesmith_ml::models::{load_base, read_json};
use tunesmith_ml::nn::Kernels;
use tunesmith_ml::spec::{LoraSpec, TargetModules, Tuning};
use tunesmith_ml::train::Classifier;
use tunesmith_ops::matmul::Precision;

use crate::jobs::*;
use crate::reference::*;

fn lora_spec(targets: TargetModules, modules_to_save: Option<Vec<String>>) -> LoraSpec {
    LoraSpec { r: 4, lora_alpha: 8.0, lora_dropout: 0.0, use_rslora: false, target_modules: targets, modules_to_save }
}

fn classifier(folder: &str, lora: LoraSpec) -> Result<Classifier, String> {
    let base = load_base(&fixtures().join(folder), &Device::Cpu).unwrap();
    Classifier::new(base, &spec(Tuning::Lora(lora), &["no", "yes"]), Precision::F32, Kernels::Native).map_err(|e| e.to_string())
}

fn names(names: &[&str]) -> TargetModules {
    TargetModules::Names(names.iter().map(|n| (*n).to_owned()).collect())
}

#[test]
fn names_patterns_and_all_linear_choose_what_peft_chooses() {
    let chosen = |targets| classifier("bert-tiny", lora_spec(targets, None)).unwrap().target_modules().to_vec();
    let both = [0, 1].map(|i| ["query", "value"].map(|m| format!("bert.encoder.layer.{i}.attention.self.{m}"))).concat();
    assert_eq!(chosen(names(&["query", "value"])), both);
    assert_eq!(chosen(TargetModules::Pattern(r".*\.(query|value)".into())), both);
    assert_eq!(chosen(names(&["bert.encoder.layer.1.attention.self.key"])), ["bert.encoder.layer.1.attention.self.key"]);
    assert_eq!(chosen(names(&["output.dense"])).len(), 4);
    // A pattern must match the whole name, as in PEFT.
    assert!(classifier("bert-tiny", lora_spec(TargetModules::Pattern("query".into()), None)).is_err());
    let all = chosen(TargetModules::Pattern("all-linear".into()));
    assert_eq!(all.len(), 12);
    assert!(all.iter().all(|n| n.contains(".encoder.layer.")), "{all:?}");
    for (folder, module) in [("distilbert-tiny", "q_lin"), ("roberta-tiny", "key")] {
        assert_eq!(classifier(folder, lora_spec(names(&[module]), None)).unwrap().target_modules().len(), 2);
        assert_eq!(classifier(folder, lora_spec(TargetModules::Pattern("all-linear".into()), None)).unwrap().target_modules().len(), 12);
    }
}

#[test]
fn heads_cannot_be_targets_and_unknown_names_are_listed_with_known_ones() {
    for (folder, bad, known) in [
        ("bert-tiny", "pooler.dense", "dense"),
        ("distilbert-tiny", "pre_classifier", "q_lin"),
        ("roberta-tiny", "classifier.dense", "query, key, value"),
        ("bert-tiny", "q_proj", "query, key, value"),
    ] {
        let error = classifier(folder, lora_spec(names(&[bad]), None)).err().unwrap();
        assert!(error.contains(bad) && error.contains(known), "{error}");
    }
    assert!(classifier("bert-tiny", lora_spec(names(&[]), None)).is_err());
}

#[test]
fn the_whole_head_is_trained_unless_modules_to_save_says_otherwise() {
    let saved = |folder, modules: Option<&[&str]>| {
        let modules = modules.map(|m| m.iter().map(|n| (*n).to_owned()).collect());
        classifier(folder, lora_spec(names(&[if folder == "distilbert-tiny" { "q_lin" } else { "query" }]), modules))
    };
    let of = |c: Result<Classifier, String>| {
        let c = c.unwrap();
        let whole: Vec<String> = c.params.infos.iter().map(|i| i.name.clone()).filter(|n| !n.contains(".lora_")).collect();
        (c.modules_to_save().to_vec(), whole)
    };
    let modules = |folder, asked: Option<&[&str]>| {
        let (modules, trained) = of(saved(folder, asked));
        (modules.join(" "), trained.len())
    };
    assert_eq!(modules("bert-tiny", None), ("pooler classifier".into(), 4));
    assert_eq!(modules("bert-tiny", Some(&["classifier"])), ("classifier".into(), 2));
    assert_eq!(modules("bert-tiny", Some(&["pooler"])), ("pooler classifier".into(), 4));
    // Its pooler was drawn here, so nobody else has it.
    assert_eq!(modules("bert-gamma", Some(&["classifier"])), ("pooler classifier".into(), 4));
    assert_eq!(modules("distilbert-tiny", None), ("pre_classifier classifier".into(), 4));
    assert_eq!(modules("distilbert-tiny", Some(&["classifier"])), ("classifier".into(), 2));
    assert_eq!(modules("roberta-tiny", None), ("classifier".into(), 4));
    let error = saved("roberta-tiny", Some(&["lm_head"])).err().unwrap();
    assert!(error.contains("lm_head") && error.contains("classifier"), "{error}");
}

#[test]
fn rslora_scales_by_the_square_root_of_the_rank() {
    let plain = lora_spec(names(&["query"]), None);
    let rslora = LoraSpec { use_rslora: true, ..plain.clone() };
    assert_eq!((plain.scale(), rslora.scale()), (2.0, 4.0));
    let run = |lora: LoraSpec| {
        let mut spec = spec(Tuning::Lora(lora), &["film", "market"]);
        spec.training.learning_rate = 1e-2;
        let (finished, kept) = Job::new(fixtures().join("bert-tiny"), spec, rows(16, 2, 1), rows(4, 2, 1)).finish();
        let config = read_json(&finished.model.join("adapter_config.json")).unwrap();
        let base = Arc::new(ServedBase::load(&fixtures().join("bert-tiny")).unwrap());
        let served = ServedClassifier::adapter(base, &finished.model).unwrap();
        // The evaluation of the trained model and the answers of the served one agree only if both use one scale.
        let mut loss = 0.0;
        for (row, class) in rows(4, 2, 1).iter().zip([0usize, 1, 0, 1]) {
            let tokens = served.tokenizer().encode(&row.text, None).unwrap();
            let logits = tunesmith_ml::infer::classify(&[(&tokens, &served)]).unwrap().remove(0);
            loss -= tunesmith_ml::infer::softmax(&logits)[class].ln() / 4.0;
        }
        let reported = kept.entries("eval_loss").into_values().next_back().unwrap();
        assert!((loss - reported).abs() < 1e-6, "{loss} {reported}");
        (config["use_rslora"].as_bool().unwrap(), loss)
    };
    let (plain, rslora) = (run(plain), run(rslora));
    assert_eq!((plain.0, rslora.0), (false, true));
    assert!(plain.1 != rslora.1);
}
