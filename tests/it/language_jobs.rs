//! Language models from data to answer: conversations, plain texts and labelled rows train, and what was trained talks.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::trainer::{JOBS, act, file_job, history, server, succeeded, until_job, until_past, upload};

const MODEL: &str = "file:decoders/chat-tiny";

fn conversations() -> String {
    (0..24)
        .map(|i| {
            format!(
                "{}\n",
                json!({"messages": [{"role": "user", "content": format!("say {i}{}", " please".repeat(i % 3 * 4))}, {"role": "assistant", "content": "yes yes yes"}]})
            )
        })
        .collect()
}

fn request(file: &str, training: Value, extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "training_file": file, "seed": 7, "training": training});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn says(server: &Server, model: &str, text: &str) -> String {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 20, "temperature": 0});
    server.post("/v1/chat/completions", &body).await.ok()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// The case `train-eos-lost-when-pad-is-eos`, with rows of different lengths side by side.
#[tokio::test]
async fn conversations_are_learned_with_their_end_and_the_model_and_its_checkpoints_answer() {
    let server = server();
    let file = upload(&server, conversations()).await;
    for tuning in [json!({"type": "full"}), json!({"type": "lora", "r": 16, "lora_alpha": 64, "lora_dropout": 0.0})] {
        let training =
            json!({"max_steps": 120, "learning_rate": 0.01, "per_device_train_batch_size": 8, "save_steps": 60, "eval_steps": 60});
        let id = file_job(&server, &request(&file, training, json!({"tuning": tuning}))).await;
        let job = succeeded(&server, &id).await;
        assert_eq!(job["task"], "instruction");
        let model = job["fine_tuned_model"].as_str().unwrap();
        // A row's targets are its answer and the end, whatever stands beside it: two rows are held out.
        let log = history(&server, &id).await;
        let last = log.iter().rev().find(|e| e["eval_loss"].is_number()).unwrap();
        assert_eq!(last["eval_tokens"], 2 * (11 + 1));
        // The end token is learned although it is the pad token too: the answer ends by itself.
        assert_eq!(says(&server, model, "say 3").await, "yes yes yes", "{tuning}");
        let body = json!({"model": model, "messages": [{"role": "user", "content": "say 3"}], "max_tokens": 64, "temperature": 0});
        let answer = server.post("/v1/chat/completions", &body).await.ok();
        assert_eq!((&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]), (&json!("stop"), &json!(11 + 1)));
        let early = says(&server, &format!("{model}:ckpt-step-60"), "say 3").await;
        assert!(!early.is_empty());
        let metrics = server.get(&format!("{JOBS}/{id}/metrics")).await.ok();
        let last = metrics["log_history"].as_array().unwrap().iter().rev().find(|e| e["eval_loss"].is_number()).unwrap().clone();
        assert!(last["eval_loss"].as_f64().unwrap() < 1.0 && last["eval_token_accuracy"].as_f64().unwrap() > 0.9, "{last}");
        assert!((last["eval_perplexity"].as_f64().unwrap() - last["eval_loss"].as_f64().unwrap().exp()).abs() < 1e-9);
        let events = server.get(&format!("{JOBS}/{id}/events?limit=100")).await.ok();
        assert!(events["data"].as_array().unwrap().iter().any(|e| e["message"].as_str().unwrap().starts_with("Sample: ")), "{events}");
    }
}

#[tokio::test]
async fn plain_texts_labelled_rows_and_filters_train() {
    let server = server();
    let rows: String =
        (0..30).map(|i| format!("{}\n", json!({"text": format!("text {i}"), "label": if i % 3 == 0 { "a" } else { "b" }}))).collect();
    let file = upload(&server, rows).await;
    let short = json!({"max_steps": 2, "logging_steps": 1});
    let plain = json!({"task": "causal_lm", "data": {"filter": {"label": "a"}, "validation_split": 0.2}});
    let job = succeeded(&server, &file_job(&server, &request(&file, short.clone(), plain)).await).await;
    // 10 rows have the label, 2 of them are held out; 4 a step.
    assert_eq!(job["progress"]["epoch"], 1.0);
    // There is nothing to predict, and that is said.
    let error = server.get(&format!("{JOBS}/{}/metrics/predictions.jsonl", job["id"].as_str().unwrap())).await.error(404);
    assert!(error["message"].as_str().unwrap().contains("causal_lm"), "{error}");
    let numbered = upload(&server, "{\"text\":\"a\",\"n\":1}\n{\"text\":\"b\",\"n\":2}\n").await;
    for one in [json!(1), json!(1.0), json!("1"), json!([3, 1.0])] {
        let data = json!({"dataset_text_field": "text", "filter": {"n": one}, "validation_split": 0});
        let plan = server.post(JOBS, &request(&numbered, short.clone(), json!({"dry_run": true, "data": data}))).await.ok();
        assert_eq!(plan["train_rows"], 1, "{one}");
    }
    let template = json!({"task": "instruction", "data": {"prompt_template": "Is it {labels}? {text}", "label_column": "label"}});
    let job = succeeded(&server, &file_job(&server, &request(&file, short.clone(), template)).await).await;
    assert_eq!(job["data"]["labels"], json!(["a", "b"]));
    for (data, param) in [
        (json!({"prompt_template": "{none}"}), "data.prompt_template"),
        (json!({"prompt_template": "{"}), "data.prompt_template"),
        (json!({"prompt_template": "{text}", "filter": {"label": "c"}}), "data.filter.label"),
        (json!({"prompt_template": "{text}", "filter": {"none": "c"}}), "data.filter.none"),
    ] {
        let error = server.post(JOBS, &request(&file, short.clone(), json!({"task": "instruction", "data": data}))).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
}

#[tokio::test]
async fn a_paused_language_job_resumes_bit_exactly() {
    let server = server();
    let file = upload(&server, conversations()).await;
    let training = json!({"max_steps": 300, "save_steps": 1000, "eval_steps": 100, "logging_steps": 7, "gradient_accumulation_steps": 2});
    let filing = request(&file, training, json!({}));
    let undisturbed = file_job(&server, &filing).await;
    succeeded(&server, &undisturbed).await;
    let id = file_job(&server, &filing).await;
    until_past(&server, &id, 0).await;
    act(&server, &id, "pause").await;
    until_job(&server, &id, "that is paused", |j| j["status"] == "paused").await;
    act(&server, &id, "resume").await;
    succeeded(&server, &id).await;
    assert_eq!(history(&server, &id).await, history(&server, &undisturbed).await);
}

#[tokio::test]
async fn a_task_that_the_base_cannot_do_is_told_and_a_template_says_which_task_it_is() {
    let server = server();
    let labelled = upload(&server, crate::harness::two_classes(4)).await;
    let plan = async |extra: Value| server.post(JOBS, &request(&labelled, json!({"max_steps": 1}), extra)).await;
    let error = plan(json!({"dry_run": true})).await.error(400);
    assert_eq!(error["param"], "model");
    assert!(
        error["message"].as_str().unwrap().contains("language model") && error["message"].as_str().unwrap().contains("prompt_template"),
        "{error}"
    );
    let error = plan(json!({"dry_run": true, "task": "causal_lm", "model": "file:bert-tiny"})).await.error(400);
    assert!(error["param"] == "model" && error["message"].as_str().unwrap().contains("encoder"), "{error}");
    let told = plan(json!({"dry_run": true, "data": {"prompt_template": "Is this {labels}? {text}"}})).await.ok();
    assert_eq!(told["spec"]["task"], "instruction");
    // So it does beside the fields that it shares with classification, in a plan and in a job.
    for data in [
        json!({"prompt_template": "{text} {labels}", "labels": ["pos", "neg"]}),
        json!({"prompt_template": "{text}", "label_column": "label"}),
    ] {
        let told = plan(json!({"dry_run": true, "data": data})).await.ok();
        assert_eq!(told["spec"]["task"], "instruction", "{data}");
        let job = plan(json!({"data": data})).await.ok();
        assert_eq!(job["task"], "instruction", "{data}");
        act(&server, job["id"].as_str().unwrap(), "cancel").await;
    }
    let told = plan(json!({"dry_run": true, "data": {"dataset_text_field": "text"}})).await.ok();
    assert_eq!(told["spec"]["task"], "causal_lm");
}
