//! Classifying with a small real model: shapes of input, limits, the queue, the routes in TEI's form.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server, answer};

const MODEL: &str = "file:bert-tiny";

fn server() -> Server {
    Server::with(&["--model-dir", FIXTURES])
}

async fn classify(server: &Server, body: Value) -> Value {
    server.post("/v1/classify", &body).await.ok()
}

#[tokio::test]
async fn every_shape_of_input_is_answered_in_order() {
    let server = server();
    let one = classify(&server, json!({"model": MODEL, "input": "good"})).await;
    assert_eq!((&one["object"], &one["model"], &one["data"][0]["index"]), (&json!("list"), &json!(MODEL), &json!(0)));
    let scores = one["data"][0]["scores"].as_array().unwrap();
    let sum: f64 = scores.iter().map(|s| s["score"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6 && scores.len() == 3, "{one}");
    assert!(scores[0]["score"].as_f64() >= scores[1]["score"].as_f64());
    assert_eq!((&one["data"][0]["label"], &one["data"][0]["score"]), (&scores[0]["label"], &scores[0]["score"]));
    let many =
        classify(&server, json!({"model": MODEL, "input": ["bad", {"text": "good"}, {"text": "good", "text_pair": "bad"}], "top_k": 1}))
            .await;
    assert_eq!(many["data"][1]["score"], one["data"][0]["score"]);
    assert_ne!(many["data"][2]["score"], one["data"][0]["score"]);
    assert!(many["data"].as_array().unwrap().iter().all(|d| d["scores"].as_array().unwrap().len() == 1));
    assert!(many["usage"]["prompt_tokens"].as_u64().unwrap() > one["usage"]["prompt_tokens"].as_u64().unwrap());
}

#[tokio::test]
async fn a_row_alone_and_in_a_crowd_gets_the_same_bits() {
    let server = server();
    let ask = async |texts: Vec<String>| classify(&server, json!({"model": MODEL, "input": texts})).await["data"][0].clone();
    let text = "the film was good".to_owned();
    let alone = ask(vec![text.clone()]).await;
    for n in [1, 2, 16, 63] {
        let crowd = std::iter::once(text.clone()).chain((0..n).map(|i| format!("row {i} {}", "bad ".repeat(i)))).collect();
        assert_eq!(ask(crowd).await, alone, "{n} others");
    }
}

#[tokio::test]
async fn wrong_requests_are_named() {
    let server = server();
    let cases = [
        (json!({"input": "x"}), "model"),
        (json!({"model": MODEL}), "input"),
        (json!({"model": MODEL, "input": []}), "input"),
        (json!({"model": MODEL, "input": 7}), "input"),
        (json!({"model": MODEL, "input": ["x", 7]}), "input[1]"),
        (json!({"model": MODEL, "input": "x", "top_k": 0}), "top_k"),
        (json!({"model": MODEL, "input": "x", "threshold": 2}), "threshold"),
        (json!({"model": MODEL, "input": "x", "topk": 1}), "topk"),
        (json!({"model": MODEL, "input": vec!["x"; 2049]}), "input"),
        (json!({"model": "file:bert-noprefix", "input": "x"}), "model"),
        (json!({"model": MODEL, "input": "x", "threshold": 0.5}), "threshold"),
        (json!({"model": "file:decoders/llama-tiny", "input": "x"}), "model"),
    ];
    server.refuses("/v1/classify", 400, cases).await;
    for model in ["nothing", "ft:x::y", "file:../it", "org/repo"] {
        assert_eq!(
            server.post("/v1/classify", &json!({"model": model, "input": "x"})).await.error(404)["code"],
            "model_not_found",
            "{model}"
        );
    }
}

#[tokio::test]
async fn long_texts_are_cut_and_counted_or_refused() {
    let server = server();
    let long = "good ".repeat(500);
    let cut = classify(&server, json!({"model": MODEL, "input": [long, "good"]})).await;
    assert_eq!(cut["usage"]["truncated_inputs"], 1);
    let error = server.post("/v1/classify", &json!({"model": MODEL, "input": ["good", long], "truncate": false})).await.error(400);
    assert_eq!(error["param"], "input[1]");
    assert!(error["message"].as_str().unwrap().contains("64"), "{error}");
}

#[tokio::test]
async fn a_full_queue_is_429_and_nothing_else_fails() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("tunesmith.toml"), "[budgets]\nclassify_queue_rows = 64\n").unwrap();
    let server = Server::in_folder(folder, &["--model-dir", FIXTURES]);
    classify(&server, json!({"model": MODEL, "input": "warm"})).await;
    let body = json!({"model": MODEL, "input": vec!["a rather long text that takes its time to be read by the model"; 48], "top_k": 1});
    let answers = futures::future::join_all((0..128).map(|_| server.post("/v1/classify", &body))).await;
    let mut full = 0;
    for got in answers {
        if got.status == 429 {
            full += 1;
            assert_eq!(got.header("retry-after"), "1");
            assert_eq!(got.error(429)["code"], "queue_full");
        } else {
            got.ok();
        }
    }
    assert!((1..128).contains(&full), "{full} were refused");
    classify(&server, json!({"model": MODEL, "input": "after the storm"})).await;
}

#[tokio::test]
async fn the_predict_route_answers_in_its_own_form() {
    let server = server();
    let predict = async |inputs: Value| server.post("/predict", &json!({"model": MODEL, "inputs": inputs})).await;
    let single = predict(json!("good")).await.ok();
    assert_eq!(single.as_array().unwrap().len(), 3);
    assert!(single[0]["label"].is_string() && single[0]["score"].is_f64());
    let batch = predict(json!([["good"], ["good", "bad"]])).await.ok();
    assert_eq!(batch[0], single);
    assert_ne!(batch[1], single);
    assert_eq!(predict(json!({"a": 1})).await.error(422)["param"], "inputs");
    let long = predict(json!("good ".repeat(500))).await.error(422);
    assert_eq!(long["param"], "inputs[0]");
    let cut =
        server.post("/predict", &json!({"model": MODEL, "inputs": "good ".repeat(500), "truncate": true, "raw_scores": true})).await.ok();
    assert_eq!(cut.as_array().unwrap().len(), 3);
    // With no model of its own the server asks for a name.
    assert_eq!(server.post("/predict", &json!({"inputs": "x"})).await.error(422)["param"], "model");
}

#[tokio::test]
async fn the_tokenize_route_shows_what_the_model_reads() {
    let server = server();
    let tokenize = async |body: Value| answer(server.request(Method::POST, "/tokenize").json(&body)).await;
    let got = tokenize(json!({"model": MODEL, "inputs": ["good", "good ".repeat(500)]})).await;
    let cut: Vec<u32> = got.header("x-truncated-tokens").split(',').map(|n| n.parse().unwrap()).collect();
    assert!(cut[0] == 0 && cut[1] > 400, "{cut:?}");
    let tokens = got.ok();
    let first = tokens[0].as_array().unwrap();
    assert!(first[0]["special"] == true && first[0]["start"].is_null());
    assert_eq!((&first[1]["special"], &first[1]["start"]), (&json!(false), &json!(0)));
    assert_eq!(tokens[1].as_array().unwrap().len(), 64);
    let plain = tokenize(json!({"model": MODEL, "inputs": "good", "add_special_tokens": false})).await.ok();
    assert!(plain[0].as_array().unwrap().iter().all(|t| t["special"] == false));
    assert_eq!(tokenize(json!({"model": MODEL, "inputs": 7})).await.error(422)["param"], "inputs");
    // Neither a classifier nor an encoder is needed to read a text.
    for model in ["file:bert-noprefix", "file:decoders/chat-tiny"] {
        let tokens = tokenize(json!({"model": model, "inputs": "good"})).await.ok();
        assert!(tokens[0].as_array().unwrap().iter().any(|t| t["start"] == 0 && t["special"] == false), "{model}: {tokens}");
    }
}

#[tokio::test]
async fn a_folder_that_lacks_a_file_or_holds_half_of_one_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let bert = std::path::Path::new(FIXTURES).join("bert-tiny");
    for (name, files) in
        [("no-config", &["model.safetensors", "tokenizer.json"][..]), ("no-tokenizer", &["model.safetensors", "config.json"])]
    {
        std::fs::create_dir_all(folder.path().join(name)).unwrap();
        for file in files {
            std::fs::copy(bert.join(file), folder.path().join(name).join(file)).unwrap();
        }
    }
    let half = folder.path().join("half");
    std::fs::create_dir_all(&half).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(bert.join(file), half.join(file)).unwrap();
    }
    let bytes = std::fs::read(bert.join("model.safetensors")).unwrap();
    std::fs::write(half.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    let server = Server::with(&["--model-dir", folder.path().to_str().unwrap()]);
    for (name, wanted) in
        [("no-config", "neither a config.json"), ("no-tokenizer", "tokenizer.json is missing"), ("half", "cut short: tensor ")]
    {
        let error = server.post("/v1/classify", &json!({"model": format!("file:{name}"), "input": "x"})).await.error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(wanted) && !message.contains(folder.path().to_str().unwrap()), "{message}");
        assert_eq!(error["param"], "model");
    }
}
