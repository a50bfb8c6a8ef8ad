//! Filing a job: defaults, ranges, unknown fields, columns and labels, OpenAI's form.

use serde_json::{Value, json};

use crate::harness::{Server, job_request, two_classes};

const JOBS: &str = "/v1/fine_tuning/jobs";

/// The smallest request with one field changed, by its path.
fn with(file: &str, path: &str, value: Value) -> Value {
    let mut request = job_request(file);
    let mut place = &mut request;
    for name in path.split('.') {
        place = &mut place[name];
    }
    *place = value;
    request
}

#[tokio::test]
async fn a_job_echoes_every_default() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await;
    assert_eq!(
        (&job["object"], &job["status"], &job["task"]),
        (&json!("fine_tuning.job"), &json!("validating_files"), &json!("classification"))
    );
    assert_eq!(
        job["tuning"],
        json!({"type": "lora", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "use_rslora": false, "target_modules": "all-linear", "modules_to_save": null})
    );
    assert_eq!(job["data"]["labels"], json!(["neg", "pos"]));
    assert_eq!((&job["data"]["problem_type"], &job["data"]["validation_split"]), (&json!("single_label_classification"), &json!(0.1)));
    let training = &job["training"];
    for (name, value) in [
        ("num_train_epochs", json!(3.0)),
        ("max_steps", json!(-1)),
        ("per_device_train_batch_size", json!(16)),
        ("gradient_accumulation_steps", json!(1)),
        ("learning_rate", json!(1e-3)),
        ("lr_scheduler_type", json!("linear")),
        ("warmup_steps", json!(0.0)),
        ("weight_decay", json!(0.01)),
        ("adam_beta1", json!(0.9)),
        ("adam_beta2", json!(0.999)),
        ("adam_epsilon", json!(1e-8)),
        ("max_grad_norm", json!(1.0)),
        ("label_smoothing_factor", json!(0.0)),
        ("logging_steps", json!(10)),
        ("save_total_limit", json!(5)),
        ("load_best_model_at_end", json!(false)),
        ("gradient_checkpointing", json!(false)),
        ("dtype", json!("auto")),
    ] {
        assert_eq!(training[name], value, "{name}");
    }
    assert_eq!(job["hyperparameters"], json!({"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": "auto"}));
    assert_eq!(job["queue"]["position"], 1);
    assert!(job["seed"].is_u64() && job["organization_id"] == "org-local" && job["result_files"] == json!([]));
}

#[tokio::test]
async fn learning_rates_follow_the_kind_of_tuning() {
    let server = Server::start();
    let file = server.data_set().await;
    for (kind, rate) in [("full", 5e-5), ("lora", 1e-3), ("head", 1e-3)] {
        let job = server.post(JOBS, &with(&file, "tuning", json!({"type": kind}))).await.ok();
        assert_eq!(job["training"]["learning_rate"], json!(rate), "{kind}");
    }
}

#[tokio::test]
async fn openais_form_is_mapped() {
    let server = Server::start();
    let file = server.data_set().await;
    let settings = json!({"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5});
    for request in [
        with(&file, "hyperparameters", settings.clone()),
        with(&file, "method", json!({"type": "supervised", "supervised": {"hyperparameters": settings}})),
    ] {
        let job = server.post(JOBS, &request).await.ok();
        assert_eq!((&job["training"]["num_train_epochs"], &job["training"]["per_device_train_batch_size"]), (&json!(2.0), &json!(4)));
        assert_eq!(job["training"]["learning_rate"], json!(5e-4));
        assert_eq!(job["method"]["supervised"]["hyperparameters"], job["hyperparameters"]);
    }
    let auto = server.post(JOBS, &with(&file, "hyperparameters", json!({"n_epochs": "auto", "batch_size": "auto"}))).await.ok();
    assert_eq!(auto["training"]["num_train_epochs"], json!(3.0));
}

#[tokio::test]
async fn wrong_fields_are_named_by_their_path() {
    let server = Server::start();
    let file = server.data_set().await;
    for (path, value) in [
        ("training.learning_rate", json!(-1)),
        ("training.learning_rate", json!("fast")),
        ("training.num_train_epochs", json!(0)),
        ("training.max_steps", json!(-2)),
        ("training.per_device_train_batch_size", json!(0)),
        ("training.per_device_train_batch_size", json!(2.5)),
        ("training.gradient_accumulation_steps", json!(0)),
        ("training.lr_scheduler_type", json!("stepwise")),
        ("training.warmup_steps", json!(-1)),
        ("training.warmup_steps", json!(2.5)),
        ("training.adam_beta2", json!(1)),
        ("training.label_smoothing_factor", json!(1.5)),
        ("training.class_weights", json!("even")),
        ("training.class_weights", json!({"third": 1.0})),
        ("training.max_length", json!(0)),
        ("training.eval_steps", json!(0)),
        ("training.metric_for_best_model", json!("beauty")),
        ("training.early_stopping_patience", json!(0)),
        ("training.dtype", json!("int3")),
        ("training.packing", json!(true)),
        ("training.lr", json!(1)),
        ("tuning.r", json!(0)),
        ("tuning.type", json!("prefix")),
        ("tuning.type", json!("qlora")),
        ("tuning.lora_dropout", json!(1.0)),
        ("tuning.target_modules", json!([])),
        ("tuning.target_modules", json!(7)),
        ("data.validation_split", json!(0.6)),
        ("data.text_column", json!("body")),
        ("data.label_column", json!("class")),
        ("data.labels", json!(["neg"])),
        ("data.filter", json!("x")),
        ("suffix", json!("a b")),
        ("suffix", json!("x".repeat(65))),
        ("seed", json!(-1)),
        ("seed", json!(1u64 << 60)),
        ("task", json!("translation")),
        ("quantization", json!({"load_in_4bit": true})),
        ("integrations", json!([{"type": "wandb"}])),
        ("metadata", json!({"": "x"})),
        ("trainnig", json!({})),
    ] {
        let error = server.post(JOBS, &with(&file, path, value.clone())).await.error(400);
        assert_eq!(error["param"], path, "{value}: {error}");
    }
    assert_eq!(server.get(JOBS).await.ok()["data"], json!([]), "a refused request files nothing");
}

#[tokio::test]
async fn fields_that_contradict_each_other_are_refused() {
    let server = Server::start();
    let file = server.data_set().await;
    let mut lora_fields = job_request(&file);
    lora_fields["tuning"] = json!({"type": "full", "r": 8});
    assert_eq!(server.post(JOBS, &lora_fields).await.error(400)["param"], "tuning.r");
    let mut twice = job_request(&file);
    twice["training"] = json!({"num_train_epochs": 1});
    twice["hyperparameters"] = json!({"n_epochs": 2});
    assert_eq!(server.post(JOBS, &twice).await.error(400)["param"], "training.num_train_epochs");
    let mut blind = job_request(&file);
    blind["data"] = json!({"validation_split": 0});
    blind["training"] = json!({"early_stopping_patience": 2});
    assert_eq!(server.post(JOBS, &blind).await.error(400)["param"], "data.validation_split");
    let mut both = job_request(&file);
    both["validation_file"] = json!(file);
    both["data"] = json!({"validation_split": 0.2});
    assert_eq!(server.post(JOBS, &both).await.error(400)["param"], "data.validation_split");
}

#[tokio::test]
async fn nulls_stand_for_defaults() {
    let server = Server::start();
    let file = server.data_set().await;
    let mut request = job_request(&file);
    for name in
        ["validation_file", "suffix", "seed", "metadata", "data", "tuning", "training", "method", "integrations", "quantization", "task"]
    {
        request[name] = json!(null);
    }
    let job = server.post(JOBS, &request).await.ok();
    assert_eq!(job["training"], server.job(&file).await["training"]);
    // As OpenAI's clients say that they want none.
    request["integrations"] = json!([]);
    assert_eq!(server.post(JOBS, &request).await.ok()["integrations"], json!([]));
}

#[tokio::test]
async fn labels_and_columns_are_checked_within_the_request() {
    let server = Server::start();
    for (rows, param, needle) in [
        ("{\"text\":\"a\",\"label\":\"spam\"}\n{\"text\":\"b\",\"label\":\"spam\"}\n", "data.label_column", "spam"),
        ("{\"text\":\"a\",\"label\":null}\n{\"text\":\"b\",\"label\":\"\"}\n{\"text\":\"c\",\"label\":\"x\"}\n", "data.label_column", "1"),
        ("{\"text\":\"\",\"label\":\"a\"}\n{\"text\":\"x\",\"label\":\"b\"}\n", "data.text_column", "line 1"),
    ] {
        let file = server.upload("rows.jsonl", rows).await.ok()["id"].as_str().unwrap().to_owned();
        let error = server.post(JOBS, &job_request(&file)).await.error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.to_lowercase().contains(needle), "{error}");
        assert!(error["param"] == param || error["param"] == "training_file", "{error}");
    }
    let train = server.data_set().await;
    let eval = server.upload("eval.jsonl", "{\"text\":\"x\",\"label\":\"new\"}\n{\"text\":\"y\",\"label\":\"pos\"}\n").await.ok();
    let mut request = job_request(&train);
    request["validation_file"] = eval["id"].clone();
    let error = server.post(JOBS, &request).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("new"), "{error}");
}

#[tokio::test]
async fn the_task_is_inferred_from_the_columns_or_asked_for() {
    let server = Server::start();
    let named = server.upload("rows.jsonl", two_classes(10).replace("\"text\"", "\"body\"").replace("\"label\"", "\"topic\"")).await.ok();
    let file = named["id"].as_str().unwrap();
    let error = server.post(JOBS, &job_request(file)).await.error(400);
    assert_eq!(error["param"], "task");
    assert!(error["message"].as_str().unwrap().contains("body, topic"), "{error}");
    let job = server.post(JOBS, &with(file, "data", json!({"text_column": "body", "label_column": "topic"}))).await.ok();
    assert_eq!((&job["task"], &job["data"]["text_column"]), (&json!("classification"), &json!("body")));
    let chat = server.upload("chat.jsonl", "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}\n").await.ok();
    let job = server.post(JOBS, &job_request(chat["id"].as_str().unwrap())).await.ok();
    assert_eq!((&job["task"], &job["training"]["assistant_only_loss"]), (&json!("instruction"), &json!(true)));
    let plain = server.upload("plain.jsonl", "{\"text\":\"a plain text\"}\n").await.ok();
    let job = server.post(JOBS, &job_request(plain["id"].as_str().unwrap())).await.ok();
    assert_eq!((&job["task"], &job["training"]["per_device_train_batch_size"]), (&json!("causal_lm"), &json!(4)));
    let error = server.post(JOBS, &with(plain["id"].as_str().unwrap(), "tuning", json!({"type": "head"}))).await.error(400);
    assert_eq!(error["param"], "tuning.type");
}

#[tokio::test]
async fn unknown_files_and_models_are_404() {
    let server = Server::start();
    let file = server.data_set().await;
    let error = server.post(JOBS, &job_request("file-nothing")).await.error(404);
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some("file_not_found"), Some("training_file")));
    let error = server.post(JOBS, &with(&file, "model", json!("no-such-model"))).await.error(404);
    assert_eq!(error["code"], "model_not_found");
    assert!(error["message"].as_str().unwrap().contains("no-such-model"), "{error}");
    for outside in ["ag_news", "file:../..", "file:/etc", "wheel:x==1/y"] {
        server.post(JOBS, &with(&file, "model", json!(outside))).await.error(404);
    }
    let other = server.upload_for("batch", "a.bin", vec![1]).await.ok();
    assert_eq!(server.post(JOBS, &job_request(other["id"].as_str().unwrap())).await.error(400)["param"], "training_file");
}

#[tokio::test]
async fn warnings_about_the_data_become_events() {
    let server = Server::start();
    let rows: String = two_classes(10).replacen("\"pos\"", "\" pos\"", 1);
    let file = server.upload("rows.jsonl", rows).await.ok();
    let job = server.job(file["id"].as_str().unwrap()).await;
    assert_eq!(job["data"]["labels"], json!(["neg", "pos"]));
    let events = server.get(&format!("{JOBS}/{}/events", job["id"].as_str().unwrap())).await.ok();
    assert!(events["data"].as_array().unwrap().iter().any(|e| e["level"] == "warn"), "{events}");
}
