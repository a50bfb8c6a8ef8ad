//! Choices by a language model's likelihoods: `/v1/decisions`, and `/v1/classify` with labels.

use serde_json::{Value, json};

use crate::text::{MODEL, server};

fn sum(probabilities: &Value, field: &str) -> f64 {
    probabilities.as_array().unwrap().iter().map(|p| p[field].as_f64().unwrap()).sum()
}

#[tokio::test]
async fn every_kind_of_question_gets_probabilities_that_do_not_depend_on_its_company() {
    let server = server();
    let choice = json!({"type": "choice", "name": "topic", "instructions": "What is it about?", "choices": [{"value": "sports", "description": "games"}, {"value": true}, {"value": "true"}]});
    let predicate = json!({"type": "predicate", "instructions": "It rains."});
    let scale = json!({"type": "score", "instructions": "How good?", "levels": [{"label": "bad"}, {"label": "good"}]});
    let body = |questions: Value| json!({"model": MODEL, "input": "A long day at the sea.", "questions": questions});
    let all = server.post("/v1/decisions", &body(json!([choice, predicate, scale]))).await.ok();
    let [c, p, s] = [0, 1, 2].map(|i| all["answers"][i].clone());
    assert_eq!((&c["type"], &c["name"], &p["type"], &s["type"]), (&json!("choice"), &json!("topic"), &json!("predicate"), &json!("score")));
    assert!((sum(&c["probabilities"], "probability") - 1.0).abs() < 1e-9 && (sum(&s["probabilities"], "probability") - 1.0).abs() < 1e-9);
    assert_eq!((&c["probabilities"][1]["value"], &c["probabilities"][2]["value"]), (&json!(true), &json!("true")));
    assert_eq!(all["usage"]["total_tokens"], all["usage"]["input_tokens"]);
    for (question, answer) in [(choice, c), (predicate, p), (scale, s)] {
        assert_eq!(server.post("/v1/decisions", &body(json!([question]))).await.ok()["answers"][0], answer);
    }
    let error = server.post("/v1/decisions", &body(json!([]))).await.error(400);
    assert_eq!(error["param"], "questions");
}

#[tokio::test]
async fn labels_make_a_classifier_of_a_language_model() {
    let server = server();
    let body = |input: Value, extra: Value| {
        let mut body = json!({"model": MODEL, "labels": ["one", "two", "three"], "input": input});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let both = server.post("/v1/classify", &body(json!(["first text", "second text"]), json!({}))).await.ok();
    let alone = server.post("/v1/classify", &body(json!("second text"), json!({}))).await.ok();
    assert_eq!(both["data"][1]["scores"], alone["data"][0]["scores"]);
    assert!((sum(&alone["data"][0]["scores"], "score") - 1.0).abs() < 1e-9);
    let shots = json!({"examples": [{"text": "second text", "label": "two"}, {"text": "other", "label": "one"}], "instruction": "Count."});
    let told = server.post("/v1/classify", &body(json!("second text"), shots)).await.ok();
    assert_ne!(told["data"][0]["scores"], alone["data"][0]["scores"]);
    assert_eq!(
        server.post("/v1/classify", &body(json!("x"), json!({"top_k": 1}))).await.ok()["data"][0]["scores"].as_array().unwrap().len(),
        1
    );

    let long = server.post("/v1/classify", &body(json!("y".repeat(9000)), json!({}))).await.ok();
    assert_eq!(long["usage"]["truncated_inputs"], 1);
    let error = server.post("/v1/classify", &body(json!("y".repeat(9000)), json!({"truncate": false}))).await.error(400);
    assert_eq!(error["param"], "input[0]");
    for (extra, param) in [
        (json!({"labels": ["one"]}), "labels"),
        (json!({"labels": ["one", "one"]}), "labels[1]"),
        (json!({"labels": null, "examples": []}), "examples"),
        (json!({"examples": [{"text": "x", "label": "four"}]}), "examples[0].label"),
        (json!({"input": [{"text": "a", "text_pair": "b"}]}), "input[0].text_pair"),
    ] {
        let error = server.post("/v1/classify", &body(json!("x"), extra)).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    let classifier = server.post("/v1/classify", &json!({"model": MODEL, "input": "x"})).await.error(400);
    assert!(classifier["message"].as_str().unwrap().contains("labels"), "{classifier}");
}
