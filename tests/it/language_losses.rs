//! What language models learn from, to the token: losses of jobs beside the likelihoods that the server tells of the same tokens.
//!
//! Jobs whose learning rate is next to nothing measure a loss and leave the model as it was.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::tensor_file::TensorFile;
use crate::trainer::{JOBS, ended, events, file_job, history, succeeded, upload, weights};
use crate::variants::Models;

/// The token that ends a text or a turn of the tiny chat model.
const END: u32 = 258;

fn rows(all: &[Value]) -> String {
    all.iter().map(|row| format!("{row}\n")).collect()
}

fn request(model: &str, file: &str, training: Value, extra: Value) -> Value {
    let mut settings =
        json!({"logging_steps": 1, "dtype": "f32", "learning_rate": 1e-12, "lr_scheduler_type": "constant", "num_train_epochs": 1});
    settings.as_object_mut().unwrap().extend(training.as_object().unwrap().clone());
    let mut body = json!({"model": model, "training_file": file, "seed": 3, "training": settings, "data": {"validation_split": 0},
        "tuning": {"type": "lora", "r": 4, "lora_dropout": 0.0}});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The entry of a job's first step.
async fn first_step(server: &Server, id: &str) -> Value {
    succeeded(server, id).await;
    history(server, id).await.into_iter().find(|e| e["loss"].is_number()).unwrap()
}

/// The last evaluation of a job.
async fn evaluation(server: &Server, id: &str) -> Value {
    succeeded(server, id).await;
    history(server, id).await.into_iter().rev().find(|e| e["eval_loss"].is_number()).unwrap()
}

/// The logarithms of the probabilities of tokens from `first` on, as the server tells them of the base.
async fn likelihood(server: &Server, model: &str, ids: &[u32], first: usize) -> Vec<f64> {
    let body = json!({"model": model, "prompt": ids, "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = server.post("/v1/completions", &body).await.ok();
    let logs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[first..].to_vec();
    logs.iter().map(|p| p.as_f64().unwrap()).collect()
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn mean_loss(logs: &[f64]) -> f64 {
    -logs.iter().sum::<f64>() / logs.len() as f64
}

fn close(a: f64, b: f64, error: f64) {
    assert!((a - b).abs() <= error * b.abs().max(1.0), "{a} and {b}");
}

/// The case `train-grad-accum-token-normalisation`.
#[tokio::test]
async fn a_step_is_the_same_however_its_rows_are_divided() {
    let models = Models::new();
    models.chat("m");
    let server = models.serve(&["--workers", "1"]);
    let words = |n: usize| "word ".repeat(n);
    let texts = ["a b c".to_owned(), "the cat sat on the mat today".to_owned(), words(20), words(90)];
    let file = upload(&server, rows(&texts.iter().map(|t| json!({"text": t})).collect::<Vec<_>>())).await;
    let mut logs = Vec::new();
    for text in &texts {
        let ids = [bytes(text), vec![END]].concat();
        logs.extend(likelihood(&server, "file:m", &ids, 1).await);
    }
    let mut seen: Vec<(f64, f64, Vec<f32>)> = Vec::new();
    for (batch, accumulation) in [(4, 1), (1, 4), (3, 2)] {
        let training = json!({"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "learning_rate": 1e-3,
            "weight_decay": 0.0, "max_grad_norm": 1e9});
        let id = file_job(&server, &request("file:m", &file, training, json!({}))).await;
        let job = succeeded(&server, &id).await;
        let step = first_step(&server, &id).await;
        let tensors = TensorFile::read(&weights(&server, &job).await);
        let all = tensors.names().iter().flat_map(|name| tensors.floats(name)).collect();
        seen.push((step["loss"].as_f64().unwrap(), step["grad_norm"].as_f64().unwrap(), all));
    }
    close(seen[0].0, mean_loss(&logs), 1e-4);
    for (loss, norm, tensors) in &seen[1..] {
        close(*loss, seen[0].0, 1e-4);
        close(*norm, seen[0].1, 1e-3);
        assert!(tensors.iter().zip(&seen[0].2).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

/// The case `train-packing-contamination`, with learned positions and with rotary ones.
#[tokio::test]
async fn a_row_s_loss_does_not_depend_on_what_it_is_packed_with() {
    let models = Models::new();
    models.chat("llama").gpt2("gpt2");
    let server = models.serve(&["--workers", "1"]);
    let texts = ["xxxx", "123456", "a third of twenty ch", "b"];
    let orders = [[0, 1, 2, 3], [2, 0, 3, 1]];
    for model in ["file:llama", "file:gpt2"] {
        let mut losses = Vec::new();
        for (order, packing) in [(0, false), (0, true), (1, true)] {
            let all: Vec<Value> = orders[order].iter().map(|i| json!({"text": texts[*i]})).collect();
            let file = upload(&server, rows(&all)).await;
            let batch = if packing { 1 } else { 4 };
            let training = json!({"packing": packing, "max_length": 64, "per_device_train_batch_size": batch});
            let id = file_job(&server, &request(model, &file, training, json!({}))).await;
            losses.push(first_step(&server, &id).await["loss"].as_f64().unwrap());
        }
        close(losses[1], losses[0], 1e-4);
        close(losses[2], losses[0], 1e-4);
    }
}

/// The case `train-double-shift`.
#[tokio::test]
async fn what_follows_is_learned_and_not_what_follows_that() {
    let models = Models::new();
    models.chat("m");
    let server = models.serve(&["--workers", "1"]);
    let file = upload(&server, rows(&vec![json!({"text": "a b c d e f g h i j k l m n o p"}); 4])).await;
    let training = json!({"max_steps": 200, "learning_rate": 1e-2, "logging_steps": 50});
    let id = file_job(&server, &request("file:m", &file, training, json!({"tuning": {"type": "full"}}))).await;
    let job = succeeded(&server, &id).await;
    let body = json!({"model": job["fine_tuned_model"], "prompt": "a b c", "max_tokens": 10, "temperature": 0});
    assert_eq!(server.post("/v1/completions", &body).await.ok()["choices"][0]["text"], " d e f g h");
}

/// The case `train-loss-mask-boundary`: spaces, newlines, marks and the pad token where an answer begins.
#[tokio::test]
async fn exactly_the_completion_and_its_end_are_learned() {
    let models = Models::new();
    models.chat("m");
    let server = models.serve(&["--workers", "1"]);
    let pairs = [
        ("Answer: ", " yes"),
        ("Q\nAnswer:", "yes"),
        ("say ### Response: twice", "ok ### Response: ok"),
        ("x <|im_end|> y", "z"),
        ("a <|im_start|>assistant\nno", "yes"),
    ];
    let mut every = Vec::new();
    for (prompt, completion) in pairs {
        let row = rows(&[json!({"prompt": prompt, "completion": completion})]);
        let (train, eval) = (upload(&server, row.clone()).await, upload(&server, row).await);
        let id = file_job(
            &server,
            &request("file:m", &train, json!({"per_device_train_batch_size": 1}), json!({"validation_file": eval, "data": {}})),
        )
        .await;
        let found = evaluation(&server, &id).await;
        assert_eq!(found["eval_tokens"], completion.len() + 1, "{prompt:?}");
        // Special tokens that are spelled out are taken for what they say, in training as in serving.
        let text = format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n");
        let mut ids = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let special = [("<|im_start|>", 257), ("<|im_end|>", END)].into_iter().find(|(mark, _)| rest.starts_with(mark));
            let (token, len) = special.map_or((u32::from(rest.as_bytes()[0]), 1), |(mark, id)| (id, mark.len()));
            ids.push(token);
            rest = &rest[len..];
        }
        let first = ids.len();
        ids.extend(bytes(completion));
        ids.push(END);
        let logs = likelihood(&server, "file:m", &ids, first).await;
        close(found["eval_loss"].as_f64().unwrap(), mean_loss(&logs), 1e-4);
        close(first_step(&server, &id).await["loss"].as_f64().unwrap(), mean_loss(&logs), 1e-4);
        every.push(row_of(prompt, completion));
    }
    let (train, eval) = (upload(&server, rows(&every)).await, upload(&server, rows(&every)).await);
    let id = file_job(&server, &request("file:m", &train, json!({}), json!({"validation_file": eval, "data": {}}))).await;
    let sum: usize = pairs.iter().map(|(_, completion)| completion.len() + 1).sum();
    assert_eq!(evaluation(&server, &id).await["eval_tokens"], sum);
}

fn row_of(prompt: &str, completion: &str) -> Value {
    json!({"prompt": prompt, "completion": completion})
}

/// The case `serve-template-default-system-prompt`: a template that adds a system message of its own where there is none.
#[tokio::test]
async fn a_default_system_prompt_is_the_same_in_training_and_in_serving() {
    let template = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}\
        {% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let models = Models::new();
    models.chat("m").template("m", template);
    let server = models.serve(&["--workers", "1"]);
    let row = rows(&[json!({"messages": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "alpha-1"}]})]);
    let (train, eval) = (upload(&server, row.clone()).await, upload(&server, row).await);
    let id = file_job(&server, &request("file:m", &train, json!({}), json!({"validation_file": eval, "data": {}}))).await;
    let loss = evaluation(&server, &id).await["eval_loss"].as_f64().unwrap();
    let tokens = async |messages: Value| {
        let body = json!({"model": "file:m", "messages": messages, "max_tokens": 1});
        server.post("/v1/chat/completions", &body).await.ok()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let user = json!({"role": "user", "content": "q1"});
    // A role, a newline and three more tokens around each message's text.
    let (system, question, ask) = (6 + 8 + 4, 4 + 2 + 4, 11);
    assert_eq!(tokens(json!([user])).await, system + question + ask);
    assert_eq!(tokens(json!([{"role": "system", "content": ""}, user])).await, system - 8 + question + ask);
    let turn = |role: &str, text: &str| [vec![257], bytes(role), bytes("\n"), bytes(text), vec![END], bytes("\n")].concat();
    let mut ids = [turn("system", "Be good."), turn("user", "q1"), vec![257], bytes("assistant\n")].concat();
    assert_eq!(ids.len() as u64, tokens(json!([user])).await);
    let first = ids.len();
    ids.extend(bytes("alpha-1"));
    ids.push(END);
    close(loss, mean_loss(&likelihood(&server, "file:m", &ids, first).await), 1e-3);
}

/// The case `tok-double-bos-chat`: a template and a tokenizer that both write the first token.
#[tokio::test]
async fn a_first_token_that_the_template_writes_is_not_written_again() {
    let template = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
    let models = Models::new();
    models.chat("m").template("m", template).edit("m", "tokenizer.json", |t| {
        t["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"]}}});
    });
    let server = models.serve(&["--workers", "1"]);
    let expected = 1 + 8 + 4 + 1 + 13;
    let chat =
        json!({"model": "file:m", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 4, "temperature": 0, "logprobs": true});
    let chat = server.post("/v1/chat/completions", &chat).await.ok();
    assert_eq!(chat["usage"]["prompt_tokens"], expected);
    let complete = async |prompt: Value| {
        let body = json!({"model": "file:m", "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 0});
        server.post("/v1/completions", &body).await.ok()
    };
    let text = "<|user|>ping<|im_end|><|assistant|>";
    let with = complete(json!(format!("<|endoftext|>{text}"))).await;
    assert_eq!(with["usage"]["prompt_tokens"], expected);
    assert_eq!(with["choices"], complete(json!(text)).await["choices"]);
    let of_chat: Vec<&Value> = chat["choices"][0]["logprobs"]["content"].as_array().unwrap().iter().map(|t| &t["logprob"]).collect();
    assert_eq!(json!(of_chat), with["choices"][0]["logprobs"]["token_logprobs"]);
    let plain = complete(json!("ping")).await;
    assert_eq!(plain["usage"]["prompt_tokens"], 5);
    // Training sees the same: one first token, and the answer.
    let file =
        upload(&server, rows(&[json!({"messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]})]))
            .await;
    let mut dry = request("file:m", &file, json!({}), json!({"dry_run": true}));
    assert_eq!(server.post(JOBS, &dry).await.ok()["train_tokens"], expected + 4 + 1);
    dry["training_file"] = json!(upload(&server, rows(&[json!({"text": "<|endoftext|>ping"}), json!({"text": "ping"})])).await);
    // The end follows a plain text.
    assert_eq!(server.post(JOBS, &dry).await.ok()["train_tokens"], 2 * (1 + 4 + 1));
}

/// The case `train-zero-target-row-nan`.
#[tokio::test]
async fn rows_without_anything_to_learn_are_left_out_and_named() {
    let models = Models::new();
    models.chat("m");
    let server = models.serve(&["--workers", "1"]);
    let talk = |user: &str| json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "yes"}]});
    let (long, short) = (talk(&"word ".repeat(500)), talk("a"));
    let file = upload(&server, rows(&[long.clone(), short.clone(), long.clone()])).await;
    let training = json!({"per_device_train_batch_size": 1, "max_length": 40, "max_steps": 3, "learning_rate": 1e-3});
    let id = file_job(&server, &request("file:m", &file, training.clone(), json!({}))).await;
    let job = succeeded(&server, &id).await;
    let told = events(&server, &id).await;
    assert!(
        told.iter()
            .any(|e| e["message"].as_str().unwrap().contains("2 of 3 rows") && e["message"].as_str().unwrap().contains("lines 1, 3")),
        "{told:?}"
    );
    for entry in history(&server, &id).await {
        for (name, value) in entry.as_object().unwrap().iter().filter(|(name, _)| name.contains("loss") || name.contains("norm")) {
            assert!(value.as_f64().is_some_and(f64::is_finite), "{name}: {value}");
        }
    }
    let body = json!({"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "a"}], "max_tokens": 4});
    server.post("/v1/chat/completions", &body).await.ok();
    let (good, bad) = (upload(&server, rows(&[short])).await, upload(&server, rows(&[long])).await);
    for (train, eval, param) in [(&good, &bad, "validation_file"), (&bad, &good, "training_file")] {
        let id = file_job(&server, &request("file:m", train, training.clone(), json!({"validation_file": eval, "data": {}}))).await;
        let job = ended(&server, &id).await;
        assert_eq!((&job["status"], &job["error"]["param"]), (&json!("failed"), &json!(param)), "{job}");
        assert!(job["error"]["message"].as_str().unwrap().contains("no"), "{job}");
    }
    // A text of one token teaches where it ends; an empty one is refused with its line.
    let texts = |all: &[&str]| rows(&all.iter().map(|t| json!({"text": t})).collect::<Vec<_>>());
    let id = file_job(&server, &request("file:m", &upload(&server, texts(&["a", "b c d"])).await, training.clone(), json!({}))).await;
    succeeded(&server, &id).await;
    let empty = upload(&server, texts(&["a", "", "b c d"])).await;
    let error = server.post(JOBS, &request("file:m", &empty, training, json!({}))).await.error(400);
    assert!(error["param"] == "training_file" && error["message"].as_str().unwrap().contains("line 2"), "{error}");
}
