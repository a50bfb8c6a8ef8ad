//! Choices by a language model's likelihoods: `/v1/decisions`, and `/v1/classify` with labels.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::text::{MODEL, server};
use crate::trainer::{configured, server_in};
use crate::variants::{Models, chat_modules, load_adapter};

fn sum(probabilities: &Value, field: &str) -> f64 {
    probabilities.as_array().unwrap().iter().map(|p| p[field].as_f64().unwrap()).sum()
}

#[tokio::test]
async fn every_kind_of_question_gets_probabilities_that_do_not_depend_on_its_company() {
    let server = server();
    let choice = json!({"type": "choice", "name": "topic", "instructions": "What is it about?", "choices": [{"value": "sports", "description": "games"}, {"value": true}, {"value": "false"}]});
    let predicate = json!({"type": "predicate", "instructions": "It rains."});
    let scale = json!({"type": "score", "instructions": "How good?", "levels": [{"label": "bad"}, {"label": "good"}]});
    let body = |questions: Value| json!({"model": MODEL, "input": "A long day at the sea.", "questions": questions});
    let all = server.post("/v1/decisions", &body(json!([choice, predicate, scale]))).await.ok();
    let [c, p, s] = [0, 1, 2].map(|i| all["answers"][i].clone());
    assert_eq!((&c["type"], &c["name"], &p["type"], &s["type"]), (&json!("choice"), &json!("topic"), &json!("predicate"), &json!("score")));
    assert!((sum(&c["probabilities"], "probability") - 1.0).abs() < 1e-9 && (sum(&s["probabilities"], "probability") - 1.0).abs() < 1e-9);
    assert_eq!((&c["probabilities"][1]["value"], &c["probabilities"][2]["value"]), (&json!(true), &json!("false")));
    assert_eq!(all["usage"]["total_tokens"], all["usage"]["input_tokens"]);
    for (question, answer) in [(choice, c), (predicate, p), (scale, s)] {
        assert_eq!(server.post("/v1/decisions", &body(json!([question]))).await.ok()["answers"][0], answer);
    }
    let error = server.post("/v1/decisions", &body(json!([]))).await.error(400);
    assert_eq!(error["param"], "questions");
}

/// Before the calibration is kept, and while it is; under another model, and after the model came again.
#[tokio::test]
async fn a_kept_calibration_changes_no_bit() {
    let models = Models::new();
    models.chat("base");
    models.adapter("a", json!({"r": 8, "lora_alpha": 16}), &chat_modules(&["q_proj", "v_proj"]), 3, 0.4);
    let server = models.serve(&[]);
    load_adapter(&server, "A", "a", "file:base").await.ok();
    let classify = async |server: &Server, model: &str, labels: Value| {
        let body = json!({"model": model, "labels": labels, "input": "a text", "instruction": "Choose."});
        server.post("/v1/classify", &body).await.ok()["data"][0]["scores"].clone()
    };
    let decide = async |server: &Server, model: &str| {
        let questions = json!([{"type": "predicate", "instructions": "It rains."}, {"type": "predicate", "instructions": "It snows."}]);
        server.post("/v1/decisions", &json!({"model": model, "input": "a text", "questions": questions})).await.ok()["answers"].clone()
    };
    let all = async |server: &Server| {
        let mut answers = Vec::new();
        for model in ["file:base", "A"] {
            for labels in [json!(["one", "two"]), json!(["two", "one"]), json!(["one", "three"])] {
                answers.push(classify(server, model, labels).await);
            }
            answers.push(decide(server, model).await);
        }
        answers
    };
    let computed = all(&server).await;
    assert!(computed[0] != computed[4] && computed[3] != computed[7], "the adapter has a calibration of its own");
    assert_eq!(all(&server).await, computed);
    assert_eq!(server.post("/v1/unload_lora_adapter", &json!({"lora_name": "A"})).await.status, 200);
    // Another adapter under the name: nothing of the old one is left.
    models.adapter("b", json!({"r": 8, "lora_alpha": 16}), &chat_modules(&["q_proj", "v_proj"]), 4, 0.4);
    load_adapter(&server, "A", "b", "file:base").await.ok();
    let other = classify(&server, "A", json!(["one", "two"])).await;
    assert_ne!(other, computed[4]);
    let fresh = Models::new();
    fresh.chat("base");
    fresh.adapter("b", json!({"r": 8, "lora_alpha": 16}), &chat_modules(&["q_proj", "v_proj"]), 4, 0.4);
    let fresh_server = fresh.serve(&[]);
    load_adapter(&fresh_server, "A", "b", "file:base").await.ok();
    assert_eq!(classify(&fresh_server, "A", json!(["one", "two"])).await, other);
}

#[tokio::test]
async fn a_question_that_cannot_be_read_is_named_by_its_whole_path() {
    let server = server();
    let choice = |choices: Value| json!({"type": "choice", "instructions": "?", "choices": choices});
    let good = choice(json!([{"value": "a"}, {"value": "b"}]));
    for (question, param, told) in [
        (choice(json!([{"value": "a"}, {"text": "b"}])), "questions[1].choices[1].text", "text"),
        (choice(json!([{"value": "a"}, {}])), "questions[1].choices[1].value", "missing"),
        (choice(json!([{"value": "a"}, {"value": 7}])), "questions[1].choices[1].value", "7"),
        (choice(json!([{"value": "a"}, {"value": "a"}])), "questions[1].choices[1].value", "questions[1].choices[0].value"),
        (choice(json!("a")), "questions[1].choices", "a list"),
        (json!({"type": "rank", "instructions": "?"}), "questions[1].type", "predicate, choice or score"),
        (json!("?"), "questions[1]", "an object"),
        (json!({"type": "predicate", "instructions": "long ".repeat(300)}), "questions[1].instructions", "context"),
    ] {
        let body = json!({"model": MODEL, "input": "x", "questions": [good, question]});
        let error = server.post("/v1/decisions", &body).await.error(400);
        assert_eq!(error["param"], param, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(param) && message.contains(told), "{error}");
    }
    let long = json!({"model": MODEL, "labels": ["a", "b"], "input": "x", "instruction": "long ".repeat(300)});
    assert_eq!(server.post("/v1/classify", &long).await.error(400)["param"], "instruction");
}

#[tokio::test]
async fn a_queue_of_a_few_places_answers_questions_with_many_answers() {
    let small = server_in(configured("[budgets]\ngeneration_requests = 3\n"), &["--workers", "0"]);
    let roomy = server();
    let labels: Vec<String> = (0..40).map(|i| format!("label {i}")).collect();
    let classify = json!({"model": MODEL, "labels": labels, "input": ["one", "two", "three", "four"]});
    let choices: Vec<Value> = labels.iter().map(|l| json!({"value": l})).collect();
    let choice = json!({"type": "choice", "instructions": "?", "choices": choices});
    let questions = json!([choice, {"type": "predicate", "instructions": "It rains."}, {"type": "predicate", "instructions": "It snows."}]);
    let decide = json!({"model": MODEL, "input": "a text", "questions": questions});
    for (route, body, answers) in [("/v1/classify", classify, "data"), ("/v1/decisions", decide, "answers")] {
        let (few, many) = (small.post(route, &body).await.ok(), roomy.post(route, &body).await.ok());
        assert_eq!(few[answers], many[answers], "{route}");
    }
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
