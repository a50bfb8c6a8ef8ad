//! What `transformers` and `peft` answer for the language models and adapters that training writes.
//!
//! Needs Python with both (`TUNESMITH_TEST_PYTHON` names the interpreter, else `python3`); without it the test holds only that our
//! own loading gives back what was trained. The other direction, their files here, needs no Python: `adapters.rs`, `files.rs`.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json as value};
use tunesmith_ml::models::source::Weights;
use tunesmith_ml::nn::Mode;
use tunesmith_ml::peft::load_language_adapter;
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::text::LanguageTokenizer;
use tunesmith_ml::train::LanguageModel;
use tunesmith_ops::optim::AdamW;

use crate::*;

/// Steps of training, enough to move every weight visibly.
const STEPS: u64 = 3;

fn trained(family: &str, tuning: &Tuning) -> LanguageModel {
    let mut model = LanguageModel::new(base(family), &spec(tuning.clone(), &[]), Precision::F32, Kernels::Native).unwrap();
    let all = sequences(&expected(family));
    let kept: f64 = all.iter().map(Sequence::weight).sum();
    for step in 1..=STEPS {
        model.zero_grads().unwrap();
        model.train_batch(&all.iter().collect::<Vec<_>>(), 0, kept, Mode::Eval).unwrap();
        let adamw = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step };
        model.update(&adamw, 1.0).unwrap();
    }
    model
}

/// Logits of a saved model, or of a saved adapter on its base, by our own loading.
fn reloaded(saved: &Path, family: &str, tuning: &Tuning, all: &[Sequence]) -> Vec<f32> {
    match tuning {
        Tuning::Lora(_) => {
            let mut base = base(family);
            let mut loaded = load_language_adapter(saved, &base).unwrap();
            loaded.adapter.pack(false).unwrap();
            logits(&mut base, all, Kernels::Native, Some(&loaded.adapter))
        }
        _ => logits(&mut DecoderBase::load(saved, &Device::Cpu).unwrap(), all, Kernels::Native, None),
    }
}

/// What roundtrip_decoders.py prints, or nothing where Python or a package is missing.
fn python(question: &Value) -> Option<Vec<Vec<f32>>> {
    let interpreter = std::env::var("TUNESMITH_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(interpreter);
    command.arg(fixtures().join("../roundtrip_decoders.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    // A Python that lacks a package ends before it reads.
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    if output.status.code() == Some(77) {
        return None;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn transformers_and_peft_load_every_family_that_training_wrote_and_give_the_same_logits() {
    let words = folder("chat-tiny");
    let tokenizer = LanguageTokenizer::read(&Weights::open(&words).unwrap(), &words, 259).unwrap();
    let kept = tempfile::tempdir().unwrap();
    let all = sequences(&expected(FAMILIES[0]));
    let mut cases = Vec::new();
    let mut ours = Vec::new();
    for family in FAMILIES {
        let untrained = logits(&mut base(family), &all, Kernels::Native, None);
        for tuning in [Tuning::Full, lora(4, 8.0)] {
            let saved: PathBuf = kept.path().join(format!("{family}-{}", ours.len()));
            std::fs::create_dir(&saved).unwrap();
            let model = trained(family, &tuning);
            match &tuning {
                Tuning::Lora(lora) => model.save_adapter(&saved, lora, family, &tokenizer).unwrap(),
                _ => model.save_whole(&saved, &tokenizer).unwrap(),
            }
            let own = reloaded(&saved, family, &tuning, &all);
            assert!(worst(&own, &untrained) > 0.01, "{family} {tuning:?}: training changed nothing");
            cases.push(value!({"model": saved, "base": matches!(tuning, Tuning::Lora(_)).then(|| folder(family))}));
            ours.push((format!("{family} {tuning:?}"), own));
        }
    }
    let ids: Vec<&[u32]> = all.iter().map(|s| &s.ids[..]).collect();
    let Some(there) = python(&value!({"ids": ids, "cases": cases})) else {
        eprintln!("no Python with torch, transformers and peft: only our own loading was held");
        return;
    };
    assert_eq!(there.len(), ours.len());
    for ((what, own), there) in ours.iter().zip(&there) {
        let off = worst(own, there);
        assert!(off < 5e-4, "{what}: logits are off by {off}");
    }
}
