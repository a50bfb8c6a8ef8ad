//! Vectors over HTTP: both routes alike, every shape of input, any batch, any adapter, and what is refused.

use std::path::Path;

use base64::Engine;
use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server};

const MODEL: &str = "file:bert-tiny";

fn server() -> Server {
    Server::with(&["--model-dir", FIXTURES])
}

async fn embed(server: &Server, body: Value) -> Value {
    server.post("/v1/embeddings", &body).await.ok()
}

fn numbers(vector: &Value) -> Vec<f32> {
    vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// A folder with two models of the same weights: `mean`, which is normalised, and `first`, which takes the first token as it is.
fn two_recipes() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, recipe) in [("mean", "mean"), ("first", "cls")] {
        let to = folder.path().join(name);
        let pooling = to.join("1_Pooling");
        std::fs::create_dir_all(&pooling).unwrap();
        for (from, to) in
            [("bert-tiny".to_owned(), &to), (format!("embeddings/{recipe}"), &to), (format!("embeddings/{recipe}/1_Pooling"), &pooling)]
        {
            for entry in std::fs::read_dir(Path::new(FIXTURES).join(&from)).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_file() {
                    std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        }
    }
    folder
}

#[tokio::test]
async fn texts_and_their_tokens_have_the_same_vectors_in_order() {
    let server = server();
    let texts = json!(["good", "the film was bad", "good"]);
    let got = embed(&server, json!({"model": MODEL, "input": texts, "user": "me"})).await;
    assert_eq!((&got["object"], &got["model"], &got["data"][1]["object"]), (&json!("list"), &json!(MODEL), &json!("embedding")));
    let data = got["data"].as_array().unwrap();
    assert!(data.iter().enumerate().all(|(i, d)| d["index"] == i && numbers(&d["embedding"]).len() == 32));
    assert_eq!(data[0]["embedding"], data[2]["embedding"]);
    assert_ne!(data[0]["embedding"], data[1]["embedding"]);
    let tokens = server.post("/tokenize", &json!({"model": MODEL, "inputs": texts})).await.ok();
    let ids = |i: usize| -> Vec<Value> { tokens[i].as_array().unwrap().iter().map(|t| t["id"].clone()).collect() };
    let of_tokens = embed(&server, json!({"model": MODEL, "input": [ids(0), ids(1), ids(2)]})).await;
    assert_eq!((&of_tokens["data"], &of_tokens["usage"]), (&got["data"], &got["usage"]));
    assert_eq!(embed(&server, json!({"model": MODEL, "input": ids(1)})).await["data"][0]["embedding"], data[1]["embedding"]);
    assert_eq!(got["usage"]["prompt_tokens"], (0..3).map(|i| ids(i).len()).sum::<usize>());
    let packed = embed(&server, json!({"model": MODEL, "input": "good", "encoding_format": "base64"})).await;
    let bytes = base64::engine::general_purpose::STANDARD.decode(packed["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let unpacked: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(unpacked, numbers(&data[0]["embedding"]));
}

/// The case embed-pooling-from-config of comparable servers.
#[tokio::test]
async fn pooling_and_normalisation_are_those_of_the_files_on_both_routes() {
    let folder = two_recipes();
    let server = Server::with(&["--model-dir", folder.path().to_str().unwrap()]);
    let texts = json!(["good", "bad film", "good"]);
    for (model, normalized) in [("file:mean", true), ("file:first", false)] {
        for normalize in [None, Some(true), Some(false)] {
            let with = |field: &str| {
                let mut body = json!({"model": model, field: texts});
                normalize.inspect(|n| body["normalize"] = json!(n));
                body
            };
            let openai = embed(&server, with("input")).await;
            let openai: Vec<&Value> = openai["data"].as_array().unwrap().iter().map(|d| &d["embedding"]).collect();
            let tei = server.post("/embed", &with("inputs")).await.ok();
            assert_eq!(openai, tei.as_array().unwrap().iter().collect::<Vec<_>>(), "{model} {normalize:?}");
            let off = (length(&numbers(openai[1])) - 1.0).abs();
            assert_eq!(off < 1e-4, normalize.unwrap_or(normalized), "{model} {normalize:?}: {off}");
        }
    }
    let single = server.post("/embed", &json!({"model": "file:mean", "inputs": "good"})).await.ok();
    assert_eq!(single.as_array().unwrap().len(), 1);
}

/// The case embed-batch-invariance, with bits where it asks for 1e-5.
#[tokio::test]
async fn a_texts_vector_does_not_depend_on_what_is_beside_it() {
    let server = server();
    let of = |got: &Value, i: usize| got["data"][i]["embedding"].clone();
    let alone = of(&embed(&server, json!({"model": MODEL, "input": "good"})).await, 0);
    let mixed = embed(&server, json!({"model": MODEL, "input": ["good", "the film was bad ".repeat(10), "a", "bad", "good"]})).await;
    assert_eq!((of(&mixed, 0), of(&mixed, 4)), (alone.clone(), alone.clone()));
    let reversed = embed(&server, json!({"model": MODEL, "input": ["good", "bad", "a", "the film was bad ".repeat(10), "good"]})).await;
    assert_eq!((of(&reversed, 1), of(&reversed, 3)), (of(&mixed, 3), of(&mixed, 1)));
    let text = |i: usize| if i.is_multiple_of(4) { "good".to_owned() } else { "bad film ".repeat(i) };
    let bodies: Vec<Value> = (0..32).map(|i| json!({"model": MODEL, "input": text(i)})).collect();
    let crowd = futures::future::join_all(bodies.iter().map(|body| server.post("/v1/embeddings", body))).await;
    for (i, got) in crowd.into_iter().enumerate().filter(|(i, _)| i.is_multiple_of(4)) {
        assert_eq!(of(&got.ok(), 0), alone, "request {i}");
    }
}

#[tokio::test]
async fn int8_answers_are_near_those_of_f32_with_adapters_too() {
    let servers = [server(), Server::with(&["--model-dir", FIXTURES, "--serve-dtype", "int8"])];
    let mut vectors = Vec::new();
    for server in &servers {
        let body = json!({"lora_name": "five", "lora_path": "lora/bert-five", "base_model": MODEL});
        server.post("/v1/load_lora_adapter", &body).await.ok();
        let body = |model: &str| json!({"model": model, "input": ["good", "the film was bad"], "normalize": true});
        let (bare, adapted) = (embed(server, body(MODEL)).await, embed(server, body("five")).await);
        vectors.push([&bare, &adapted].map(|got| [0, 1].map(|i| numbers(&got["data"][i]["embedding"]))));
    }
    for (f32, int8) in vectors[0].iter().flatten().zip(vectors[1].iter().flatten()) {
        let cosine: f32 = f32.iter().zip(int8).map(|(a, b)| a * b).sum();
        assert!(f32 != int8 && cosine > 0.999, "{cosine}");
    }
}

#[tokio::test]
async fn adapters_have_vectors_of_their_own_with_and_without_a_classifier() {
    let server = server();
    for (name, path, base) in [("five", "lora/bert-five", MODEL), ("bare", "embeddings/adapter", "file:bert-noprefix")] {
        server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path, "base_model": base})).await.ok();
        let of = async |body: Value| embed(&server, body).await["data"][0]["embedding"].clone();
        let adapted = of(json!({"model": name, "input": "good"})).await;
        assert_ne!(adapted, of(json!({"model": base, "input": "good"})).await, "{name}");
        assert_eq!(adapted, of(json!({"model": base, "adapter_id": name, "input": "good"})).await, "{name}");
    }
    let error = server.post("/v1/classify", &json!({"model": "bare", "input": "good"})).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("/v1/embeddings"), "{error}");
}

#[tokio::test]
async fn dimensions_and_long_texts_keep_their_bounds() {
    let folder = two_recipes();
    let server = Server::with(&["--model-dir", folder.path().to_str().unwrap()]);
    let got = embed(&server, json!({"model": "file:mean", "input": "good", "dimensions": 8})).await;
    let vector = numbers(&got["data"][0]["embedding"]);
    assert!(vector.len() == 8 && (length(&vector) - 1.0).abs() < 1e-5);
    let long = "good ".repeat(500);
    let cut = embed(&server, json!({"model": "file:mean", "input": [long, "good"]})).await;
    let read = 64 + got["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!((&cut["usage"]["truncated_inputs"], &cut["usage"]["prompt_tokens"]), (&json!(1), &json!(read)));
    let error = server.post("/v1/embeddings", &json!({"model": "file:mean", "input": ["good", long], "truncate": false})).await.error(400);
    assert_eq!(error["param"], "input[1]");
    let error = server.post("/embed", &json!({"model": "file:mean", "inputs": long})).await.error(422);
    assert_eq!(error["param"], "inputs[0]");
    server.post("/embed", &json!({"model": "file:mean", "inputs": long, "truncate": true})).await.ok();
}

#[tokio::test]
async fn wrong_requests_are_named() {
    let server = server();
    let cases = [
        (json!({"input": "x"}), "model"),
        (json!({"model": MODEL}), "input"),
        (json!({"model": MODEL, "input": []}), "input"),
        (json!({"model": MODEL, "input": ""}), "input[0]"),
        (json!({"model": MODEL, "input": ["x", ""]}), "input[1]"),
        (json!({"model": MODEL, "input": [[2, 3], []]}), "input[1]"),
        (json!({"model": MODEL, "input": [2, 100_000]}), "input[0]"),
        (json!({"model": MODEL, "input": ["x", 7]}), "input[1]"),
        (json!({"model": MODEL, "input": {"text": "x"}}), "input"),
        (json!({"model": MODEL, "input": "x", "dimensions": 33}), "dimensions"),
        (json!({"model": MODEL, "input": "x", "dimensions": 0}), "dimensions"),
        (json!({"model": MODEL, "input": "x", "encoding_format": "int8"}), "encoding_format"),
        (json!({"model": MODEL, "input": "x", "prompt_name": "poem"}), "prompt_name"),
        (json!({"model": MODEL, "input": "x", "dims": 3}), "dims"),
        (json!({"model": MODEL, "input": vec!["x"; 2049]}), "input"),
        (json!({"model": "file:decoders/llama-tiny", "input": "x"}), "model"),
    ];
    server.refuses("/v1/embeddings", 400, cases).await;
    server.post("/v1/embeddings", &json!({"model": "nothing", "input": "x"})).await.error(404);
    let cases = [
        (json!({"model": MODEL, "inputs": ""}), "inputs[0]"),
        (json!({"model": MODEL, "inputs": "x", "dimensions": 99}), "dimensions"),
        (json!({"model": MODEL, "inputs": "x", "prompt_name": "poem"}), "prompt_name"),
        (json!({"model": MODEL, "inputs": "x", "truncation_direction": "Left"}), "truncation_direction"),
    ];
    server.refuses("/embed", 422, cases).await;
}
