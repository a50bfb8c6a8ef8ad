//! Each setting of a job is honoured, or refused by the name under which the request has it; a job's object and its model tell those
//! that its task has.

use serde_json::{Value, json};

use crate::harness::{Server, job_request, two_classes};
use crate::trainer::{JOBS, file_job, server, succeeded, upload};

/// A request with one more field, by its path.
fn with(mut request: Value, path: &str, value: &Value) -> Value {
    let mut place = &mut request;
    for name in path.split('.') {
        place = &mut place[name];
    }
    *place = value.clone();
    request
}

async fn refusal(server: &Server, request: &Value) -> (String, String) {
    let error = server.post(JOBS, request).await.error(400);
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("param"), text("message"))
}

#[tokio::test]
async fn a_wrong_value_is_named_where_the_request_has_it() {
    let server = Server::start();
    let file = server.data_set().await;
    for place in ["hyperparameters", "method.supervised.hyperparameters"] {
        for (name, value) in [
            ("n_epochs", json!(0)),
            ("n_epochs", json!(1_000_000)),
            ("n_epochs", json!("some")),
            ("n_epochs", json!(1.5)),
            ("batch_size", json!(0)),
            ("batch_size", json!(5000)),
            ("batch_size", json!("many")),
            ("learning_rate_multiplier", json!(0)),
            ("learning_rate_multiplier", json!(-1)),
            ("learning_rate_multiplier", json!(1e9)),
            ("learning_rate_multiplier", json!("fast")),
            ("beta", json!(0.1)),
        ] {
            let mut request = job_request(&file);
            if place != "hyperparameters" {
                request["method"] = json!({"type": "supervised"});
            }
            let path = format!("{place}.{name}");
            let (param, message) = refusal(&server, &with(request, &path, &value)).await;
            assert_eq!(param, path, "{message}");
            assert!(message.contains(name), "{message}");
        }
    }
    for (method, path) in [
        (json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}), "method.type"),
        (json!({"type": "supervised", "dpo": {"hyperparameters": {"beta": 0.1}}}), "method.dpo"),
        (json!({"type": "supervised", "reinforcement": {"grader": {}}}), "method.reinforcement"),
        (json!({"supervised": {}}), "method.type"),
    ] {
        let (param, message) = refusal(&server, &with(job_request(&file), "method", &method)).await;
        assert_eq!(param, path, "{message}");
    }
    // Two names of one setting: both are told.
    let mut twice = with(job_request(&file), "training.learning_rate", &json!(0.5));
    twice["hyperparameters"] = json!({"learning_rate_multiplier": 2});
    let (param, message) = refusal(&server, &twice).await;
    assert!(param == "training.learning_rate" && message.contains("`hyperparameters.learning_rate_multiplier`"), "{message}");
    let (param, message) = refusal(&server, &with(job_request(&file), "training.max_steps", &json!(1_000_000_000_000_000_i64))).await;
    assert!(param == "training.max_steps" && message.contains("between 1 and 1000000000"), "{message}");
    let ratio = |value: Value| with(job_request(&file), "training.warmup_ratio", &value);
    assert_eq!(refusal(&server, &ratio(json!(1.0))).await.0, "training.warmup_ratio");
    assert_eq!(server.post(JOBS, &ratio(json!(0.1))).await.ok()["training"]["warmup_steps"], json!(0.1));
}

#[tokio::test]
async fn a_setting_that_would_change_nothing_is_refused() {
    let server = Server::start();
    let labelled = upload(&server, two_classes(20)).await;
    let plain = upload(&server, "{\"text\":\"a plain text\"}\n{\"text\":\"another one\"}\n").await;
    let chat = upload(&server, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"y\"}]}\n").await;
    let template = json!({"prompt_template": "What is {text}?"});
    let classify = job_request(&labelled);
    let (causal, instruct) = (job_request(&plain), job_request(&chat));
    let templated = with(job_request(&labelled), "data", &template);
    for (request, path, value) in [
        (&classify, "training.assistant_only_loss", json!(false)),
        (&classify, "training.packing", json!(true)),
        (&classify, "training.greater_is_better", json!(true)),
        (&classify, "data.filter", json!({"label": "pos"})),
        (&causal, "training.assistant_only_loss", json!(true)),
        (&causal, "training.assistant_only_loss", json!(false)),
        (&causal, "training.class_weights", json!("balanced")),
        (&causal, "training.label_smoothing_factor", json!(0.1)),
        (&causal, "training.metric_for_best_model", json!("f1")),
        (&causal, "tuning.modules_to_save", json!(["lm_head"])),
        (&instruct, "training.class_weights", json!({"a": 1})),
        (&instruct, "training.label_smoothing_factor", json!(0.1)),
        (&instruct, "data.text_column", json!("messages")),
        (&templated, "data.text_column", json!("text")),
        (&templated, "data.text_pair_column", json!("label")),
        (&templated, "data.dataset_text_field", json!("text")),
        // There is no {labels} in the template.
        (&templated, "data.labels", json!(["neg", "pos"])),
    ] {
        let (param, message) = refusal(&server, &with(request.clone(), path, &value)).await;
        assert_eq!(param, path, "{message}");
    }
    for (task, file) in [("causal_lm", &plain), ("instruction", &chat)] {
        for (path, value) in [
            ("data.label_column", json!("label")),
            ("data.labels", json!(["neg", "pos"])),
            ("data.problem_type", json!("regression")),
            ("data.text_pair_column", json!("text")),
        ] {
            let request = with(with(job_request(file), "task", &json!(task)), path, &value);
            let (param, message) = refusal(&server, &request).await;
            assert!(param == path && message.contains(task), "{message}");
        }
    }
    for (training, path) in [
        (json!({"lr_scheduler_type": "constant", "warmup_steps": 5}), "training.warmup_steps"),
        (json!({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}), "training.warmup_ratio"),
        (json!({"warmup_steps": 5, "warmup_ratio": 0.1}), "training.warmup_ratio"),
        (json!({"max_tokens_per_batch": 512, "per_device_train_batch_size": 4}), "training.per_device_train_batch_size"),
        (json!({"max_tokens_per_batch": 512, "packing": true}), "training.packing"),
    ] {
        let (param, message) = refusal(&server, &with(causal.clone(), "training", &training)).await;
        assert_eq!(param, path, "{message}");
    }
    let blind = with(with(classify.clone(), "data.validation_split", &json!(0)), "training.eval_steps", &json!(5));
    assert_eq!(refusal(&server, &blind).await.0, "training.eval_steps");
    // Values that say what would happen anyway, and those that do something.
    for (request, path, value) in [
        (&classify, "training.packing", json!(false)),
        (&causal, "training.label_smoothing_factor", json!(0)),
        (&causal, "training.packing", json!(true)),
        (&causal, "data.text_column", json!("text")),
        (&instruct, "training.assistant_only_loss", json!(false)),
        (&templated, "data.label_column", json!("label")),
    ] {
        let (status, text) = {
            let a = server.post(JOBS, &with(request.clone(), path, &value)).await;
            (a.status, a.text())
        };
        assert_eq!(status, 200, "{path}: {text}");
    }
    let unlisted = with(classify, "data", &json!({"prompt_template": "{text}? {labels}", "labels": []}));
    assert_eq!(refusal(&server, &unlisted).await.0, "data.labels");
}

#[tokio::test]
async fn a_wrong_validation_file_is_named_with_what_is_wrong() {
    let server = Server::start();
    let labelled = upload(&server, two_classes(10)).await;
    let plain = upload(&server, "{\"text\":\"a plain text\"}\n{\"text\":\"another one\"}\n").await;
    let turn = |role: &str| json!({"messages": [{"role": "user", "content": "x"}, {"role": role, "content": "y"}]}).to_string();
    let chat = upload(&server, turn("assistant")).await;
    let other = upload(&server, "{\"body\":\"x\",\"topic\":\"y\"}\n").await;
    let emptied = upload(&server, "{\"text\":\"x\"}\n{\"text\":\"\"}\n").await;
    let strange = upload(&server, "{\"text\":\"x\",\"label\":\"unheard\"}\n").await;
    let numbers = upload(&server, "{\"text\":\"x\",\"label\":[\"pos\"]}\n").await;
    let batch = server.upload_for("batch", "a.bin", vec![1]).await.ok()["id"].as_str().unwrap().to_owned();
    let template = json!({"prompt_template": "What is {text}?"});
    for (train, eval, data, status, says) in [
        (&labelled, "file-unknown", json!({}), 404, "file-unknown"),
        (&labelled, batch.as_str(), json!({}), 400, "purpose `batch`"),
        (&labelled, plain.as_str(), json!({}), 400, "no column \"label\"; its columns are text; give it the columns of the training file"),
        (&labelled, other.as_str(), json!({}), 400, "no column \"text\"; its columns are body, topic"),
        (&labelled, strange.as_str(), json!({}), 400, "unheard"),
        (&labelled, numbers.as_str(), json!({}), 400, "holds lists in line 1"),
        (&labelled, other.as_str(), template.clone(), 400, "no column `label`; its columns are body, topic"),
        (&plain, other.as_str(), json!({}), 400, "no column `text`; its columns are body, topic"),
        (&plain, emptied.as_str(), json!({}), 400, "is empty in line 2"),
        (&chat, plain.as_str(), json!({}), 400, "columns of `validation_file` (text)"),
        (&labelled, strange.as_str(), json!({"prompt_template": "{text}", "filter": {"label": "pos"}}), 400, "No row of `validation_file`"),
    ] {
        let mut request = with(job_request(train), "data", &data);
        request["validation_file"] = json!(eval);
        let error = server.post(JOBS, &request).await.error(status);
        assert_eq!(error["param"], "validation_file", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says) && message.replace(' ', "_").contains("validation_file"), "{message}");
    }
    // An empty file does not get so far.
    let error = server.upload("none.jsonl", "").await.error(400);
    assert!(error["message"].as_str().unwrap().contains("no rows"), "{error}");
}

/// The summary cannot tell: each column has the value, but no row has both. Only the dry run, or the worker, reads the rows.
#[tokio::test]
async fn a_validation_file_that_a_filter_empties_is_named() {
    let server = server();
    let rows = |pairs: &[(&str, &str)]| -> String {
        pairs.iter().map(|(a, b)| format!("{}\n", json!({"text": "some words", "a": a, "b": b}))).collect()
    };
    let train = upload(&server, rows(&[("1", "1"), ("1", "2"), ("2", "1")])).await;
    let eval = upload(&server, rows(&[("1", "2"), ("2", "1")])).await;
    let request = |train: &str, eval: Option<&str>| {
        json!({"model": "file:decoders/chat-tiny", "training_file": train, "validation_file": eval, "dry_run": true,
            "data": {"filter": {"a": "1", "b": "1"}}})
    };
    for (train, eval, param) in [(&train, Some(eval.as_str()), "validation_file"), (&eval, None, "training_file")] {
        let (named, message) = refusal(&server, &request(train, eval)).await;
        assert!(named == param && message.contains("data.filter"), "{message}");
    }
}

#[tokio::test]
async fn objects_of_language_jobs_and_models_tell_what_applies_to_them() {
    let server = server();
    let names = |section: &Value| section.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let labelled = upload(&server, two_classes(8)).await;
    let request = |extra: Value| {
        let mut body =
            json!({"model": "file:decoders/chat-tiny", "training_file": labelled, "training": {"max_steps": 1, "max_length": 256}});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let causal = json!({"task": "causal_lm", "data": {"filter": {"label": "pos"}}});
    let template = json!({"data": {"prompt_template": "Is it {labels}? {text}"}, "tuning": {"type": "full"}});
    for (extra, task, data, foreign) in [
        (causal, "causal_lm", vec!["dataset_text_field", "filter", "validation_split"], "assistant_only_loss"),
        (template, "instruction", vec!["label_column", "labels", "prompt_template", "validation_split"], "class_weights"),
    ] {
        let job = succeeded(&server, &file_job(&server, &request(extra.clone())).await).await;
        let mut told = names(&job["data"]);
        told.sort_unstable();
        assert_eq!((&job["task"], told), (&json!(task), data.into_iter().map(str::to_owned).collect()));
        for name in [foreign, "class_weights", "label_smoothing_factor"] {
            assert!(!names(&job["training"]).contains(&name.to_owned()), "{name}: {job}");
        }
        assert!(job["training"]["packing"] == false && job["tuning"].get("modules_to_save").is_none(), "{job}");
        // What is told can be asked for again.
        let again = json!({"task": task, "data": job["data"], "tuning": job["tuning"], "training": job["training"], "dry_run": true});
        let plan = server.post(JOBS, &request(again)).await.ok();
        assert_eq!((&plan["spec"]["data"], &plan["spec"]["training"]), (&job["data"], &job["training"]));
        let model = server.get(&format!("/v1/models/{}", job["fine_tuned_model"].as_str().unwrap())).await.ok();
        // It was trained on 256 tokens at a time, and answers within the context of its base.
        assert_eq!((&model["max_length"], &model["labels"], &model["card"]["problem_type"]), (&json!(512), &json!(null), &json!(null)));
        let prompt = vec![65; 500];
        let body = json!({"model": model["id"], "prompt": prompt, "max_tokens": 1});
        assert_eq!(server.post("/v1/completions", &body).await.ok()["usage"]["prompt_tokens"], 500);
    }
    let file = server.data_set().await;
    let job = server.post(JOBS, &json!({"model": "file:bert-tiny", "training_file": file})).await.ok();
    assert!(job["data"].get("language").is_none() && job["training"].get("packing").is_none(), "{job}");
}
