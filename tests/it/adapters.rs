//! Adapters from outside: from a folder, from a zip, refused by the tensor that does not fit.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server};

fn server() -> Server {
    Server::with(&["--model-dir", FIXTURES])
}

/// Zips a fixture's PEFT files; `change` may replace a file's bytes or leave it out.
fn zipped(fixture: &str, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for entry in std::fs::read_dir(Path::new(FIXTURES).join(fixture)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(bytes) = change(name, std::fs::read(&path).unwrap()).filter(|_| !name.starts_with("expected")) {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&bytes).unwrap();
        }
    }
    zip.finish().unwrap().into_inner()
}

/// Replaces text of the same length in a binary file.
fn replaced(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes;
    let places: Vec<usize> = bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from.as_bytes()).map(|(i, _)| i).collect();
    assert!(!places.is_empty(), "{from} does not occur");
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

async fn scores(server: &Server, body: Value) -> Value {
    server.post("/v1/classify", &body).await.ok()["data"].clone()
}

async fn load_zip(server: &Server, name: &str, zip: Vec<u8>) -> crate::harness::Answer {
    let file = server.upload_for("adapter", "adapter.zip", zip).await.ok();
    server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "file_id": file["id"], "base_model": "file:bert-tiny"})).await
}

#[tokio::test]
async fn an_adapter_from_the_model_folder_answers_with_its_own_labels() {
    let server = server();
    let load = json!({"lora_name": "five", "lora_path": "lora/bert-five", "base_model": "file:bert-tiny"});
    let adapter = server.post("/v1/load_lora_adapter", &load).await.ok();
    assert_eq!((&adapter["id"], &adapter["base_model"]), (&json!("five"), &json!("file:bert-tiny")));
    assert_eq!(adapter["labels"].as_array().unwrap().len(), 5);
    let data = scores(&server, json!({"model": "five", "input": "good"})).await;
    assert_eq!(data[0]["scores"].as_array().unwrap().len(), 5);
    let same = scores(&server, json!({"model": "file:bert-tiny", "adapter_id": "five", "input": "good"})).await;
    assert_eq!(same, data);
    let other = server.post("/v1/classify", &json!({"model": "file:roberta-tiny", "adapter_id": "five", "input": "x"})).await;
    assert_eq!(other.error(400)["param"], "adapter_id");
    assert_eq!(server.get("/v1/adapters").await.ok()["data"][0]["id"], "five");
    assert!(server.get("/v1/models").await.ok()["data"].as_array().unwrap().iter().any(|m| m["id"] == "five"));
    assert_eq!(server.post("/v1/load_lora_adapter", &load).await.error(409)["code"], "in_use");
    server.post("/v1/unload_lora_adapter", &json!({"lora_name": "five"})).await.ok();
    assert_eq!(server.get("/v1/adapters").await.ok()["data"], json!([]));
    server.post("/v1/classify", &json!({"model": "five", "input": "good"})).await.error(404);
    server.post("/v1/unload_lora_adapter", &json!({"lora_name": "five"})).await.error(404);
}

#[tokio::test]
async fn a_zip_answers_like_its_folder_and_outlives_a_restart() {
    let mut server = server();
    let load = json!({"lora_name": "folder", "lora_path": "lora/bert", "base_model": "file:bert-tiny"});
    server.post("/v1/load_lora_adapter", &load).await.ok();
    load_zip(&server, "zip", zipped("lora/bert", |_, bytes| Some(bytes))).await.ok();
    let texts = json!(["good", "bad", "a film"]);
    let folder_scores = scores(&server, json!({"model": "folder", "input": texts})).await;
    assert_eq!(scores(&server, json!({"model": "zip", "input": texts})).await, folder_scores);
    let base_scores = scores(&server, json!({"model": "file:bert-tiny", "input": texts})).await;
    assert_ne!(base_scores, folder_scores);
    let data = server.folder.clone();
    server.stop();
    drop(server);
    let server = Server::in_folder(data, &["--model-dir", FIXTURES]);
    for name in ["folder", "zip"] {
        assert_eq!(scores(&server, json!({"model": name, "input": texts})).await, folder_scores, "{name}");
    }
}

#[tokio::test]
async fn adapters_of_one_base_answer_side_by_side() {
    let server = server();
    for name in ["bert", "bert-five", "bert-rslora", "bert-patterns", "bert-all-linear"] {
        let load = json!({"lora_name": name, "lora_path": format!("lora/{name}"), "base_model": "file:bert-tiny"});
        server.post("/v1/load_lora_adapter", &load).await.ok();
    }
    let ask = |name: &'static str| scores(&server, json!({"model": name, "input": ["good", "bad film"]}));
    let names = ["bert", "bert-five", "bert-rslora", "bert-patterns", "bert-all-linear", "file:bert-tiny"];
    let mut alone = Vec::new();
    for name in names {
        alone.push(ask(name).await);
    }
    let crowd = futures::future::join_all(names.iter().cycle().take(60).map(|name| ask(name))).await;
    for (i, got) in crowd.iter().enumerate() {
        assert_eq!(*got, alone[i % names.len()], "{}", names[i % names.len()]);
    }
}

#[tokio::test]
async fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let server = server();
    let model = "adapter_model.safetensors";
    let renamed =
        zipped("lora/bert", |name, bytes| Some(if name == model { replaced(bytes, "encoder.layer.0", "encoder.layex.0") } else { bytes }));
    let error = load_zip(&server, "renamed", renamed).await.error(400);
    assert_eq!(error["code"], "adapter_mismatch");
    assert!(error["message"].as_str().unwrap().contains("layex"), "{error}");
    let without_head = zipped("lora/bert", |name, bytes| {
        Some(if name == model { replaced(bytes, "model.classifier.weight", "model.classifiex.weight") } else { bytes })
    });
    let error = load_zip(&server, "headless", without_head).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("classifi"), "{error}");
    let cut = zipped("lora/bert", |name, mut bytes| {
        if name == model {
            bytes.truncate(bytes.len() / 2);
        }
        Some(bytes)
    });
    load_zip(&server, "cut", cut).await.error(400);
    let other_base = json!({"lora_name": "other", "lora_path": "lora/roberta", "base_model": "file:bert-tiny"});
    assert_eq!(server.post("/v1/load_lora_adapter", &other_base).await.error(400)["code"], "adapter_mismatch");
    assert_eq!(server.get("/v1/adapters").await.ok()["data"], json!([]));
    scores(&server, json!({"model": "file:bert-tiny", "input": "still here"})).await;
}

#[tokio::test]
async fn what_is_no_adapter_is_told_apart() {
    let server = server();
    for (body, status, param) in [
        (json!({"lora_name": "x"}), 400, "lora_path"),
        (json!({"lora_name": "x", "lora_path": "a", "file_id": "b"}), 400, "file_id"),
        (json!({"lora_name": "", "lora_path": "lora/bert"}), 400, "lora_name"),
        (json!({"lora_name": "a b", "lora_path": "lora/bert"}), 400, "lora_name"),
        (json!({"lora_name": "ft:mine", "lora_path": "lora/bert"}), 409, "lora_name"),
        (json!({"lora_name": "all-minilm-l6-v2", "lora_path": "lora/bert"}), 409, "lora_name"),
        (json!({"lora_name": "x", "lora_path": "../it"}), 404, "lora_path"),
        (json!({"lora_name": "x", "lora_path": "/etc"}), 404, "lora_path"),
        (json!({"lora_name": "x", "lora_path": "org/repo"}), 404, "lora_path"),
        (json!({"lora_name": "x", "file_id": "file-nothing"}), 404, "file_id"),
        (json!({"lora_name": "x", "lora_path": "lora/bert", "base_model": "nothing"}), 404, "base_model"),
        (json!({"lora_name": "x", "lora_path": "lora/bert", "rank": 8}), 400, "rank"),
    ] {
        let error = server.post("/v1/load_lora_adapter", &body).await.error(status);
        assert_eq!(error["param"], param, "{body}: {error}");
    }
    let file = server.upload_for("adapter", "a.zip", b"no zip".to_vec()).await.ok();
    let error = server.post("/v1/load_lora_adapter", &json!({"lora_name": "x", "file_id": file["id"]})).await.error(400);
    assert_eq!(error["param"], "file_id");
    let data = server.data_set().await;
    assert_eq!(server.post("/v1/load_lora_adapter", &json!({"lora_name": "x", "file_id": data})).await.error(400)["param"], "file_id");
}
