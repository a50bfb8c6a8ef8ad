//! The other side: what `transformers` and `peft` answer for our folders, and what we answer for theirs.
//!
//! With Python at hand (`TUNESMITH_TEST_PYTHON` names the interpreter, else `python3`) `tests/roundtrip.py` runs on freshly
//! trained models and on the committed folders; its outcome for the committed ones is recorded in the fixtures and always held.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json as value};
use tunesmith_ml::infer::{ServedBase, ServedClassifier, classify};
use tunesmith_ml::spec::{LoraSpec, ProblemType, TargetModules, Tuning};

use crate::jobs::*;
use crate::reference::*;

/// Logits of each text, or `[text, pair]`, by our own serving.
fn ours(texts: &Value, model: &Path, base: Option<&Path>) -> (Vec<String>, Vec<Vec<f32>>) {
    let served = Arc::new(ServedBase::load(base.unwrap_or(model)).unwrap());
    let classifier =
        if base.is_some() { ServedClassifier::adapter(served, model) } else { ServedClassifier::whole(served, model).map(Option::unwrap) };
    let classifier = classifier.unwrap();
    let logits = texts.as_array().unwrap().iter().map(|t| {
        let (text, pair) = match t {
            Value::Array(both) => (both[0].as_str().unwrap(), both[1].as_str()),
            text => (text.as_str().unwrap(), None),
        };
        let tokens = classifier.tokenizer().encode(text, pair).unwrap();
        classify(&[(&tokens, &classifier)]).unwrap().remove(0)
    });
    let logits = logits.collect();
    (classifier.labels, logits)
}

fn agrees(there: &Value, ours: &(Vec<String>, Vec<Vec<f32>>), names: bool, what: &str) {
    if names {
        assert_eq!(there["labels"], value!(ours.0), "{what}");
    }
    let rows: Vec<Vec<f32>> = serde_json::from_value(there["logits"].clone()).unwrap();
    assert_eq!(rows.len(), ours.1.len());
    for (i, (row, own)) in rows.iter().zip(&ours.1).enumerate() {
        let off = worst(row, own);
        assert!(off < 1e-4, "{what}: logits of text {i} are off by {off}");
    }
}

/// What roundtrip.py prints, or nothing where Python or a package is missing.
fn python(model: &Path, base: Option<&Path>, texts: &Value) -> Option<Value> {
    let interpreter = std::env::var("TUNESMITH_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = fixtures().join("../roundtrip.py");
    let mut command = Command::new(interpreter);
    command.arg(script).arg(model).args(base).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().unwrap().write_all(texts.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        return None;
    }
    assert!(output.status.success(), "{}: {}", model.display(), String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn committed_folders_answer_as_transformers_and_peft_did() {
    let recorded = json("roundtrip.json");
    let cases = recorded["cases"].as_array().unwrap();
    assert!(cases.len() >= 9);
    for case in cases {
        let (model, base) = (case["model"].as_str().unwrap(), case["base"].as_str());
        let own = ours(&recorded["texts"], &fixtures().join(model), base.map(|b| fixtures().join(b)).as_deref());
        // An adapter from elsewhere has no names; roundtrip.py invents them, we take the base's where their number fits.
        let named = base.is_none() || fixtures().join(model).join("labels.json").is_file();
        agrees(case, &own, named, model);
    }
}

/// A trained model: its folder, and the base of an adapter.
struct Trained {
    what: String,
    model: PathBuf,
    base: Option<PathBuf>,
    _kept: Recorder,
}

fn trained(folder: &str, tuning: Tuning, labels: &[&str], problem: ProblemType) -> Trained {
    let adapter = matches!(tuning, Tuning::Lora(_));
    let what = format!("{folder} {tuning:?} {problem:?}");
    let mut spec = spec(tuning, labels);
    (spec.data.problem_type, spec.training.learning_rate, spec.training.num_train_epochs) = (problem, 5e-3, 2.0);
    let target = |i: usize| match problem {
        ProblemType::SingleLabelClassification => tunesmith_data::Target::Class((i % labels.len()) as u32),
        ProblemType::MultiLabelClassification => tunesmith_data::Target::Classes(vec![(i % labels.len()) as u32]),
        ProblemType::Regression => tunesmith_data::Target::Value(i as f32 / 10.0),
    };
    let base = fixtures().join(folder);
    let (finished, kept) = Job::new(&base, spec, with_targets(rows(16, 4, 1), target), vec![]).finish();
    Trained { what, model: finished.model, base: adapter.then_some(base), _kept: kept }
}

#[test]
fn transformers_and_peft_load_what_training_wrote_and_give_the_same_logits() {
    let rslora = Tuning::Lora(LoraSpec {
        r: 4,
        lora_alpha: 16.0,
        lora_dropout: 0.1,
        use_rslora: true,
        target_modules: TargetModules::Pattern("all-linear".into()),
        modules_to_save: None,
    });
    let pooler = Tuning::Lora(LoraSpec {
        r: 2,
        lora_alpha: 4.0,
        lora_dropout: 0.0,
        use_rslora: false,
        target_modules: TargetModules::Names(vec!["query".into(), "value".into()]),
        modules_to_save: Some(vec!["pooler".into(), "classifier".into()]),
    });
    let (single, multi, number) = (ProblemType::SingleLabelClassification, ProblemType::MultiLabelClassification, ProblemType::Regression);
    let models = [
        ("bert-tiny", Tuning::Full, &["zebra", "apple", "mango"][..], single),
        ("bert-noprefix", Tuning::Full, &["no", "yes"], single),
        ("bert-gamma", Tuning::Full, &["a", "b", "c", "d"], multi),
        ("roberta-tiny", Tuning::Head, &["no", "yes"], single),
        ("distilbert-tiny", Tuning::Full, &[], number),
        ("bert-tiny", pooler, &["no", "yes"], single),
        ("bert-noprefix", lora(4, 8.0), &["no", "yes", "perhaps"], single),
        ("distilbert-tiny", lora(4, 8.0), &["a", "b", "c", "d", "e"], single),
        ("roberta-tiny", rslora, &["no", "yes"], single),
    ];
    let texts = json("roundtrip.json")["texts"].clone();
    let mut compared = 0;
    for (folder, tuning, labels, problem) in models {
        let model = trained(folder, tuning, labels, problem);
        let own = ours(&texts, &model.model, model.base.as_deref());
        let Some(there) = python(&model.model, model.base.as_deref(), &texts) else { continue };
        agrees(&there, &own, problem != ProblemType::Regression, &model.what);
        compared += 1;
    }
    assert!(compared == 0 || compared == 9, "Python answered for {compared} models of 9");
    if compared == 0 {
        eprintln!("no Python with torch, transformers and peft: only the recorded outcome was held");
    }
}
