//! Models in memory: loaded when they are first asked for, dropped by least use, and loaded again.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server};
use crate::trainer::{classify, configured, server_in};

const BERT: &str = "file:bert-tiny";
const DISTILBERT: &str = "file:distilbert-tiny";
const ROBERTA: &str = "file:roberta-tiny";

/// What the log says of loading and dropping: `+` and `-` before the names.
fn moves(server: &Server) -> Vec<String> {
    let log = server.log();
    let name = |line: &str| line.split("name=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let told = log.lines().filter_map(|line| match line {
        l if l.contains(" loaded name=") => Some(format!("+{}", name(l))),
        l if l.contains(" evicted name=") => Some(format!("-{}", name(l))),
        _ => None,
    });
    told.collect()
}

/// Bytes of what each loaded model adds, and of its base, as the log tells them.
fn own_and_base(server: &Server) -> Vec<[u64; 2]> {
    let field = |line: &str, name: &str| -> u64 { line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap() };
    let log = server.log();
    log.lines().filter(|l| l.contains(" loaded name=")).map(|l| [field(l, " bytes="), field(l, " base_bytes=")]).collect()
}

async fn ask(server: &Server, model: &str) -> Value {
    classify(server, model, &json!(["good", "a bad film"])).await
}

#[tokio::test]
async fn the_model_that_was_used_least_recently_goes_and_comes_back() {
    let roomy = server_in(Arc::new(tempfile::tempdir().unwrap()), &["--workers", "0"]);
    let mut expected = Vec::new();
    for model in [BERT, DISTILBERT, ROBERTA] {
        expected.push(ask(&roomy, model).await);
    }
    let sizes: Vec<u64> = own_and_base(&roomy).iter().map(|bytes| bytes.iter().sum()).collect();
    drop(roomy);
    // Room for any two of them, whose files are a little larger than what comes of them, and not for all three.
    let budget = sizes.iter().sum::<u64>() - sizes.iter().min().unwrap() / 2;
    let server = server_in(configured(&format!("[budgets]\nmodels_bytes = {budget}\n")), &["--workers", "0"]);
    for (model, place) in [(BERT, 0), (DISTILBERT, 1), (BERT, 0), (ROBERTA, 2), (BERT, 0), (DISTILBERT, 1), (BERT, 0)] {
        assert_eq!(ask(&server, model).await, expected[place], "{model}");
    }
    let (b, d, r) = (BERT, DISTILBERT, ROBERTA);
    let story = [format!("+{b}"), format!("+{d}"), format!("-{d}"), format!("+{r}"), format!("-{r}"), format!("+{d}")];
    assert_eq!(moves(&server), story);
}

#[tokio::test]
async fn a_model_larger_than_the_budget_answers_alone() {
    let server = server_in(configured("[budgets]\nmodels_bytes = 1000\n"), &["--workers", "0"]);
    let first = ask(&server, BERT).await;
    assert_eq!(ask(&server, BERT).await, first);
    ask(&server, DISTILBERT).await;
    assert_eq!(ask(&server, BERT).await, first);
    let (b, d) = (BERT, DISTILBERT);
    assert_eq!(moves(&server), [format!("+{b}"), format!("-{b}"), format!("+{d}"), format!("-{d}"), format!("+{b}")]);
    assert_eq!(server.log().matches("is larger than budgets.models_bytes").count(), 3, "{}", server.log());
}

/// Everybody asks for what is just being dropped: a model in use ends its answers on what it has.
#[tokio::test]
async fn models_that_drive_each_other_out_answer_all_the_same() {
    let server = server_in(configured("[budgets]\nmodels_bytes = 1000\n"), &["--workers", "0"]);
    for name in ["bert", "roberta", "distilbert"] {
        let base = format!("file:{name}-tiny");
        server
            .post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": format!("lora/{name}"), "base_model": base}))
            .await
            .ok();
    }
    let models = [BERT, DISTILBERT, ROBERTA, "bert", "roberta", "distilbert"];
    let mut alone = Vec::new();
    for model in models {
        alone.push(ask(&server, model).await);
    }
    let answers = futures::future::join_all(models.iter().cycle().take(96).map(|model| ask(&server, model))).await;
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(*answer, alone[i % models.len()], "{}", models[i % models.len()]);
    }
}

#[tokio::test]
async fn adapters_of_one_base_share_its_bytes() {
    let server = server_in(Arc::new(tempfile::tempdir().unwrap()), &["--workers", "0"]);
    for name in ["bert", "bert-five", "bert-rslora"] {
        server
            .post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": format!("lora/{name}"), "base_model": BERT}))
            .await
            .ok();
        ask(&server, name).await;
    }
    let weights = std::fs::metadata(format!("{FIXTURES}/bert-tiny/model.safetensors")).unwrap().len();
    let sizes = own_and_base(&server);
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|[own, base]| *own < weights / 2 && *base == sizes[0][1]), "an adapter counts what it adds: {sizes:?}");
}
