//! Two real models, where their files are there: `SMOLLM2_GGUF` names SmolLM2-135M-Instruct (Q4_1), `GEMMA3_GGUF` Gemma 3 270M (Q4_K_M).
//! What the engine continues texts with is what transformers does from the dequantised weights, wherever that was no close call.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tunesmith_ml::infer::ServedDecoder;

use crate::tiny::{Ask, answers};

fn file(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {variable} names no file");
    }
    path
}

/// Checks, behind every prompt and every part of its reference, each step at which the reference's best logit led by at least `close`.
fn check(model: &str, path: &Path, close: f64) {
    let all = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/greedy.json")).unwrap();
    let all: Vec<Value> = serde_json::from_slice(&all).unwrap();
    let served = Arc::new(ServedDecoder::load(path).unwrap());
    let integers = |v: &Value| v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
    let (mut clear, mut others, mut equal_others) = (0, 0, 0);
    for case in all.iter().filter(|case| case["model"] == model) {
        let (prompt, ids) = (integers(&case["prompt_ids"]), integers(&case["ids"]));
        assert_eq!(
            served.tokenizer().encode(case["prompt"].as_str().unwrap(), true).unwrap(),
            prompt,
            "{model}: other tokens of the prompt"
        );
        let asks: Vec<Ask> = (0..ids.len()).map(|i| Ask { prompt: [&prompt[..], &ids[..i]].concat(), adapter: None, new: 1 }).collect();
        for (i, ours) in answers(&served, &asks, 64, 1).iter().enumerate() {
            let (ours, margin) = (ours.tokens[0].id, case["margins"][i].as_f64().unwrap());
            if margin >= close {
                assert_eq!(ours, ids[i], "{model} {}: step {i}, whose margin was {margin}", case["prompt"]);
                clear += 1;
            } else {
                others += 1;
                equal_others += usize::from(ours == ids[i]);
            }
        }
    }
    println!("{model}: equal at all of {clear} clear steps, and at {equal_others} of {others} others");
    assert!(clear > 60, "{model}: only {clear} steps were clear");
}

#[test]
fn smollm2_continues_as_transformers_does() {
    if let Some(path) = file("SMOLLM2_GGUF") {
        check("smollm2", &path, 0.35);
    }
}

#[test]
fn gemma_3_continues_as_transformers_does() {
    if let Some(path) = file("GEMMA3_GGUF") {
        check("gemma3", &path, 0.35);
    }
}
