//! How much text a model takes: RoBERTa's two lost positions, limits that folders declare, and very long lines.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use tempfile::TempDir;
use tunesmith_ml::infer::{ServedBase, ServedClassifier, classify};
use tunesmith_ml::models::{normal, write_safetensors};
use tunesmith_ml::nn::Batch;
use tunesmith_ml::text::TextTokenizer;
use tunesmith_ml::train::Outcome;

use crate::jobs::*;
use crate::reference::*;

/// roberta-tiny with the 514 positions of the published models.
fn roberta_514() -> TempDir {
    let dir = edited("roberta-tiny", |c| {
        c.insert("max_position_embeddings".into(), 514.into());
    });
    let file = tensors("roberta-tiny/model.safetensors");
    let grown: Vec<_> = file
        .names()
        .into_iter()
        .map(|n| {
            let value = if n.ends_with("position_embeddings.weight") {
                normal(&[514, 32], 0.2, 1, n, &Device::Cpu).unwrap()
            } else {
                file.get_any(n, &Device::Cpu).unwrap()
            };
            (n.to_owned(), value)
        })
        .collect();
    write_safetensors(&dir.path().join("model.safetensors"), &grown).unwrap();
    let mut tokenizer = json("roberta-tiny/tokenizer_config.json");
    tokenizer["model_max_length"] = 512.into();
    write_value(&dir.path().join("tokenizer_config.json"), &tokenizer);
    dir
}

fn words(n: usize) -> String {
    vec!["a"; n].join(" ")
}

#[test]
fn roberta_with_514_positions_takes_512_tokens() {
    let dir = roberta_514();
    let base = Arc::new(ServedBase::load(dir.path()).unwrap());
    assert_eq!((base.config().max_tokens(), base.tokenizer().max_length()), (512, 512));
    let classifier = ServedClassifier::whole(base.clone(), dir.path()).unwrap().unwrap();
    let encode = |n: usize| base.tokenizer().encode(&words(n), None).unwrap();
    let rows: Vec<_> = [509, 510, 511, 512, 2000].map(encode).to_vec();
    assert_eq!(rows.iter().map(|r| r.ids.len()).collect::<Vec<_>>(), [511, 512, 512, 512, 512]);
    assert_eq!(rows.iter().map(|r| r.truncated).collect::<Vec<_>>(), [0, 0, 1, 2, 1490]);
    let one = base.tokenizer().encode("a", None).unwrap();
    let alone: Vec<Vec<f32>> = rows.iter().chain([&one]).map(|r| classify(&[(r, &classifier)]).unwrap().remove(0)).collect();
    assert!(alone[1] != alone[0], "the last position must matter");
    assert!(alone[2..5].iter().all(|l| *l == alone[1]));
    let together = classify(&rows.iter().chain([&one]).map(|r| (r, &classifier)).collect::<Vec<_>>()).unwrap();
    assert_eq!(together, alone);
}

#[test]
fn robertas_first_position_is_two_and_its_last_513() {
    let mut batch = Batch::new();
    batch.push(&[0; 512], &[0; 512], 0, 2);
    assert_eq!((batch.positions[0], batch.positions[511]), (2, 513));
    // A text that names the padding token: as in transformers it stands at the pad id and is not counted.
    let mut batch = Batch::new();
    batch.push(&[0, 9, 1, 9, 2], &[0; 5], 0, 2);
    assert_eq!(batch.positions, [2, 3, 1, 4, 5]);
    let mut batch = Batch::new();
    batch.push(&[2, 0, 9], &[0; 3], 0, 0);
    assert_eq!(batch.positions, [0, 1, 2], "other families count every token");
}

#[test]
fn a_job_for_514_tokens_is_clamped_to_512_and_runs() {
    let dir = roberta_514();
    for (asked, given) in [(Some(512), 512), (Some(514), 512), (None, 512), (Some(64), 64)] {
        let mut spec = spec(lora(4, 8.0), &["film", "market"]);
        (spec.training.max_length, spec.training.max_steps) = (asked, 1);
        let mut train = rows(4, 2, 1);
        train[0].text = words(600);
        let job = Job::new(dir.path(), spec, train, vec![]);
        let plan = job.prepare().unwrap().plan;
        assert_eq!((plan.max_length, plan.longest_row_tokens, plan.truncated_rows), (given, given, 1));
        assert_eq!(plan.truncated_tokens, 602 - given as u64);
        let mut recorder = Recorder::new(None);
        assert!(matches!(job.run(None, &mut recorder).unwrap(), Outcome::Finished(_)));
    }
}

#[test]
fn a_folders_own_limits_hold_and_its_tokenizers_padding_and_cut_do_not() {
    let base = ServedBase::load(&fixtures().join("bert-noprefix")).unwrap();
    assert_eq!(base.tokenizer().max_length(), 48);
    assert!(base.tokenizer().encode("a film", None).unwrap().ids.len() < 8, "padded");
    let long = base.tokenizer().encode(&words(100), None).unwrap();
    assert_eq!((long.ids.len(), long.truncated), (48, 54));
    // What is written has neither, and the job's limit.
    let mut spec = spec(lora(4, 8.0), &["film", "market"]);
    spec.training.max_length = Some(20);
    let (finished, _kept) = Job::new(fixtures().join("bert-noprefix"), spec, rows(4, 2, 1), vec![]).finish();
    let tokenizer = tunesmith_ml::models::read_json(&finished.model.join("tokenizer.json")).unwrap();
    assert!(tokenizer["padding"].is_null() && tokenizer["truncation"].is_null());
    let adapter = ServedClassifier::adapter(Arc::new(base), &finished.model).unwrap();
    assert_eq!(adapter.tokenizer().max_length(), 20);
}

#[test]
fn a_very_long_text_is_read_as_far_as_the_model_takes_it() {
    let started = Instant::now();
    for folder in ["bert-tiny", "roberta-tiny"] {
        let tokenizer = TextTokenizer::read(&fixtures().join(folder), 64, 400).unwrap();
        // Every text is 16 MiB, the longest line that is accepted.
        let sentence = "The striker scored twice in the final. ";
        let long = sentence.repeat((16 << 20) / sentence.len());
        let (whole, part) = (tokenizer.encode(&long, None).unwrap(), tokenizer.encode(&long[..4096], None).unwrap());
        assert_eq!((&whole.ids, whole.ids.len()), (&part.ids, 64), "{folder}");
        let per_sentence = (tokenizer.encode(sentence, None).unwrap().ids.len() - 2) as f64;
        let expected = per_sentence * (long.len() / sentence.len()) as f64 - 62.0;
        assert!((whole.truncated as f64 / expected - 1.0).abs() < 0.02, "{folder}: {} for about {expected}", whole.truncated);
        // As the second of a pair, and beside another one.
        let pair = tokenizer.encode("short", Some(&long)).unwrap();
        assert_eq!(pair.ids, tokenizer.encode("short", Some(&long[..4096])).unwrap().ids);
        assert_eq!(tokenizer.encode(&long, Some(&long)).unwrap().ids.len(), 64);
    }
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds < 60.0, "{seconds} s");
}

#[test]
fn long_texts_of_spaces_or_of_one_word_are_not_lost() {
    let tokenizer = TextTokenizer::read(&fixtures().join("bert-tiny"), 64, 400).unwrap();
    let spaces = " ".repeat(1 << 19) + "the film";
    assert_eq!(tokenizer.encode(&spaces, None).unwrap(), tokenizer.encode("the film", None).unwrap());
    let word = "x".repeat(1 << 19) + " the film";
    let short = "x".repeat(200) + " the film";
    assert_eq!(tokenizer.encode(&word, None).unwrap(), tokenizer.encode(&short, None).unwrap());
    // Beyond a mebibyte nothing is read, which is counted.
    let longer = tokenizer.encode(&("x".repeat(1 << 22) + " the film"), None).unwrap();
    assert_eq!(longer.ids, tokenizer.encode(&"x".repeat(200), None).unwrap().ids);
    assert!(longer.truncated > 0);
    // A cut inside a character would be a panic.
    let wide = "é".repeat(1 << 17);
    assert_eq!(tokenizer.encode(&wide, None).unwrap().ids.len(), 3);
}
