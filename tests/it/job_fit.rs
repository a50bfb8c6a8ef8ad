//! Jobs that do not fit their base are told so by the field that is at fault, before they are filed wherever the base is at hand: the
//! modules to train, the length of rows, the kind of model. A worker that learns of it first says the same.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server, two_classes};
use crate::trainer::{JOBS, ended, server_in, upload};

const LLAMA: &str = "file:decoders/chat-tiny";
const LLAMA_HAS: &str = "The model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
const BERT: &str = "file:bert-tiny";

fn without_workers() -> Server {
    server_in(Arc::new(tempfile::tempdir().unwrap()), &[])
}

/// A job on a base with some of its fields set.
fn request(model: &str, file: &str, extra: &Value) -> Value {
    let mut body = json!({"model": model, "training_file": file});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The refusal of a request, the same as a dry run and as a job.
async fn refusal(server: &Server, request: &Value) -> (String, String) {
    let filed = server.post(JOBS, request).await.error(400);
    let mut dry = request.clone();
    dry["dry_run"] = json!(true);
    assert_eq!(server.post(JOBS, &dry).await.error(400), filed);
    let text = |name: &str| filed[name].as_str().unwrap().to_owned();
    (text("param"), text("message"))
}

#[tokio::test]
async fn targets_that_are_no_layer_are_refused_with_those_that_are() {
    let server = without_workers();
    let file = upload(&server, two_classes(4)).await;
    for (model, targets, says, has) in [
        (LLAMA, json!(["query"]), "\"query\" names no linear layer of the model", LLAMA_HAS),
        (LLAMA, json!(["q_proj", "wq"]), "\"wq\" names no linear layer of the model", LLAMA_HAS),
        (LLAMA, json!("q_proj"), "\"q_proj\" matches the whole name of no linear layer", LLAMA_HAS),
        (LLAMA, json!(["lm_head"]), "\"lm_head\" is the output layer", LLAMA_HAS),
        (LLAMA, json!(["embed_tokens"]), "\"embed_tokens\" is an embedding", LLAMA_HAS),
        (LLAMA, json!("lm_head|.*embed_tokens"), "which is an embedding", LLAMA_HAS),
        (BERT, json!(["q_proj"]), "\"q_proj\" names no linear layer of the model", "The model has query, key, value, dense"),
        (BERT, json!(["classifier"]), "\"classifier\" is a part of the head", "The model has query, key, value, dense"),
        (BERT, json!(["pooler"]), "\"pooler\" is a part of the head", "The model has query, key, value, dense"),
    ] {
        let task = if model == LLAMA { "causal_lm" } else { "classification" };
        let body = request(model, &file, &json!({"task": task, "tuning": {"type": "lora", "target_modules": targets}}));
        let (param, message) = refusal(&server, &body).await;
        assert_eq!(param, "tuning.target_modules");
        assert!(message.starts_with("`tuning.target_modules`: ") && message.contains(says) && message.ends_with(has), "{message}");
    }
    assert_eq!(server.get(JOBS).await.ok()["data"], json!([]), "a refused request files nothing");
    // What names a layer is filed, whatever else it may name.
    for targets in [json!(["q_proj"]), json!(["mlp.up_proj"]), json!(r".*\.(0|1)\.self_attn\..*"), json!("all-linear")] {
        let body = request(LLAMA, &file, &json!({"task": "causal_lm", "tuning": {"target_modules": targets}}));
        server.post(JOBS, &body).await.ok();
    }
}

/// Before there is a model to match it with: the harness's own one cannot be read.
#[tokio::test]
async fn an_expression_that_is_none_is_refused_without_the_model() {
    let server = Server::start();
    let file = server.data_set().await;
    let body = request("file:tiny", &file, &json!({"tuning": {"target_modules": "layer.(query"}}));
    let error = server.post(JOBS, &body).await.error(400);
    assert_eq!(error["param"], "tuning.target_modules");
    assert!(error["message"].as_str().unwrap().contains("layer.(query"), "{error}");
}

#[tokio::test]
async fn a_length_beyond_what_the_model_reads_is_refused_with_both_numbers() {
    let server = without_workers();
    let file = upload(&server, two_classes(4)).await;
    for (model, task, most) in [(LLAMA, "causal_lm", 512), (BERT, "classification", 64)] {
        let asks = |length: u64| request(model, &file, &json!({"task": task, "training": {"max_length": length}}));
        let (param, message) = refusal(&server, &asks(most + 1)).await;
        assert_eq!(param, "training.max_length");
        assert!(message.contains(&format!("{} tokens are more than the {most} that", most + 1)), "{message}");
        server.post(JOBS, &asks(most)).await.ok();
    }
}

#[tokio::test]
async fn the_wrong_kind_of_base_and_modules_of_no_head_are_refused_before_filing() {
    let server = without_workers();
    let file = upload(&server, two_classes(4)).await;
    for (model, extra, param) in [
        (LLAMA, json!({}), "model"),
        (BERT, json!({"task": "causal_lm"}), "model"),
        (BERT, json!({"tuning": {"modules_to_save": ["score"]}}), "tuning.modules_to_save"),
    ] {
        assert_eq!(refusal(&server, &request(model, &file, &extra)).await.0, param);
    }
}

/// The base comes after the job was filed, as one that has to be downloaded does.
#[tokio::test]
async fn a_worker_that_is_the_first_to_see_the_base_says_the_same() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let later = folder.path().join("models/later");
    std::fs::create_dir_all(&later).unwrap();
    std::fs::write(later.join("config.json"), "{}").unwrap();
    std::fs::write(later.join("model.safetensors"), [0; 8]).unwrap();
    let filing = Server::in_folder(folder.clone(), &[]);
    let file = upload(&filing, two_classes(4)).await;
    let mut ids = Vec::new();
    let cases = [
        (json!({"tuning": {"target_modules": ["lm_head"]}}), "tuning.target_modules", "\"lm_head\" is the output layer"),
        (json!({"training": {"max_length": 4096}}), "training.max_length", "4096 tokens are more than the 512 that"),
    ];
    for (extra, ..) in &cases {
        let mut body = request("file:later", &file, extra);
        body["task"] = json!("causal_lm");
        ids.push(filing.post(JOBS, &body).await.ok()["id"].as_str().unwrap().to_owned());
    }
    drop(filing);
    for entry in std::fs::read_dir(Path::new(FIXTURES).join("decoders/chat-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), later.join(entry.file_name())).unwrap();
    }
    let server = Server::in_folder(folder, &["--workers", "1", "--worker-threads", "1"]);
    for ((_, param, says), id) in cases.iter().zip(&ids) {
        let job = ended(&server, id).await;
        let error = &job["error"];
        assert_eq!((&job["status"], &error["code"], &error["param"]), (&json!("failed"), &json!("invalid_setting"), &json!(param)));
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        assert!(job["started_at"].is_null(), "it never trained: {job}");
    }
}
