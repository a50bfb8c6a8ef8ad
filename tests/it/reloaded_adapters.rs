//! Adapters that leave the server and come back, and adapters of PEFT's own: what they answer, and which are refused.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Answer, FIXTURES, Server};
use crate::tensor_file::TensorFile;
use crate::trainer::{classify, download, file_job, request, server, server_in, succeeded, upload};

type Files = BTreeMap<String, Vec<u8>>;

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

fn zipped(files: &Files) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A fixture's files, less what the reference computed.
fn fixture(name: &str) -> Files {
    let folder = Path::new(FIXTURES).join("lora").join(name);
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let named = files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()));
    named.filter(|(name, _)| !name.starts_with("expected")).collect()
}

async fn load(server: &Server, name: &str, files: &Files, base: &str) -> Answer {
    let file = server.upload_for("adapter", "adapter.zip", zipped(files)).await.ok();
    server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "file_id": file["id"], "base_model": base})).await
}

fn with_tensors(files: &Files, change: impl Fn(TensorFile) -> TensorFile) -> Files {
    let mut files = files.clone();
    let changed = change(TensorFile::read(&files[WEIGHTS]));
    files.insert(WEIGHTS.into(), changed.write());
    files
}

fn with_config(files: &Files, field: &str, value: Value) -> Files {
    let mut files = files.clone();
    let mut config: Value = serde_json::from_slice(&files[CONFIG]).unwrap();
    config[field] = value;
    files.insert(CONFIG.into(), serde_json::to_vec(&config).unwrap());
    files
}

/// Rows of some classes, told apart by their words.
fn rows(labels: &[&str], each: usize) -> String {
    let row = |i: usize, label: &str| format!("{}\n", json!({"text": format!("{label} number {i} rose"), "label": label}));
    (0..each).flat_map(|i| labels.iter().map(move |label| row(i, label))).collect()
}

async fn train(server: &Server, base: &str, data: &str, tuning: Value) -> Value {
    let file = upload(server, data).await;
    let mut filing = request(&file, json!({"max_steps": 12, "per_device_train_batch_size": 8}));
    (filing["model"], filing["tuning"]) = (json!(base), tuning);
    let id = file_job(server, &filing).await;
    succeeded(server, &id).await
}

fn name_of(job: &Value) -> String {
    job["fine_tuned_model"].as_str().unwrap().to_owned()
}

fn restarted(mut server: Server) -> Server {
    let folder = server.folder.clone();
    assert!(server.stop().success());
    drop(server);
    server_in(folder, &["--workers", "1"])
}

/// The case `adapter-classifier-head-lost`.
#[tokio::test]
async fn a_trained_adapter_comes_back_with_its_head() {
    let server = server();
    let texts = json!(["spam number 1", "mail", "the market rose", "number", "mail spam mail"]);
    let job = train(&server, "file:bert-tiny", &rows(&["spam", "mail"], 20), json!({"type": "lora"})).await;
    let model = name_of(&job);
    let first = classify(&server, &model, &texts).await;
    let files = download(&server, &model).await;
    server.delete(&format!("/v1/models/{model}")).await.ok();
    let server = restarted(server);
    server.post("/v1/classify", &json!({"model": model, "input": "x"})).await.error(404);
    load(&server, "again", &files, "file:bert-tiny").await.ok();
    assert_eq!(classify(&server, "again", &texts).await, first);
    // As PEFT holds them in memory, and as it writes them.
    for (name, part) in [("wrapped", "classifier.modules_to_save.default."), ("plain", "classifier.")] {
        let renamed =
            with_tensors(&files, |t| t.rename(|n| n.replace("base_model.model.classifier.", &format!("base_model.model.{part}"))));
        let renamed = with_config(&renamed, "modules_to_save", json!(["classifier"]));
        load(&server, name, &renamed, "file:bert-tiny").await.ok();
        assert_eq!(classify(&server, name, &texts).await, first, "{name}");
    }
    let headless = with_tensors(&files, |mut t| {
        t.0.retain(|name, _| !name.contains("classifier"));
        t
    });
    let error = load(&server, "headless", &headless, "file:bert-tiny").await.error(400);
    assert_eq!(error["code"], "adapter_mismatch");
    assert!(error["message"].as_str().unwrap().contains("base_model.model.classifier.weight"), "{error}");
    let server = restarted(server);
    for name in ["again", "wrapped", "plain"] {
        assert_eq!(classify(&server, name, &texts).await, first, "{name}, in another process");
    }
}

/// The case `adapter-two-part-head`: the bases have heads of their own, for three labels, which must not show through.
#[tokio::test]
async fn a_head_of_two_layers_is_saved_whole_and_labels_may_differ_from_the_base() {
    let server = server();
    let texts = json!(["red number 1", "green", "the market rose", "number", "blue red"]);
    let five = ["red", "green", "blue", "black", "white"];
    for (base, head) in
        [("file:distilbert-tiny", ["pre_classifier", "classifier"]), ("file:roberta-tiny", ["classifier.dense", "classifier.out_proj"])]
    {
        let mut expected = Vec::new();
        for labels in [&five[..3], &five[..2], &five[..]] {
            let job = train(&server, base, &rows(labels, 8), json!({"type": "lora"})).await;
            let answer = classify(&server, &name_of(&job), &texts).await;
            assert_eq!(answer[0]["scores"].as_array().unwrap().len(), labels.len());
            let files = download(&server, &name_of(&job)).await;
            let tensors = TensorFile::read(&files[WEIGHTS]);
            for module in head {
                for part in ["weight", "bias"] {
                    let name = format!("base_model.model.{module}.{part}");
                    assert!(tensors.0.contains_key(&name), "{name} is not among {:?}", tensors.names());
                }
            }
            let last = format!("base_model.model.{}.weight", head[1]);
            assert_eq!(tensors.0[&last].0, [labels.len(), 32]);
            let config: Value = serde_json::from_slice(&files[CONFIG]).unwrap();
            let saved: Vec<&str> = config["modules_to_save"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
            assert!(head.iter().all(|module| saved.iter().any(|s| module == s || module.starts_with(&format!("{s}.")))), "{saved:?}");
            let mut named: Vec<String> = serde_json::from_slice(&files["labels.json"]).unwrap();
            let mut wanted: Vec<&str> = labels.to_vec();
            named.sort();
            wanted.sort();
            assert_eq!(named, wanted);
            server.delete(&format!("/v1/models/{}", name_of(&job))).await.ok();
            let name = format!("{}-{}", &base[5..], labels.len());
            load(&server, &name, &files, base).await.ok();
            expected.push((name, answer));
        }
        let asked = expected.iter().cycle().take(24).map(|(name, _)| classify(&server, name, &texts));
        for (got, (name, answer)) in futures::future::join_all(asked).await.iter().zip(expected.iter().cycle()) {
            assert_eq!(got, answer, "{name} in a mixed batch");
        }
    }
}

/// The case `train-label-order-after-reload`.
#[tokio::test]
async fn names_of_labels_stay_with_their_outputs() {
    let server = server();
    let train_file = upload(&server, rows(&["zebra", "apple", "mango"], 10)).await;
    let held_out: Vec<(String, &str)> =
        ["mango", "apple", "mango", "apple", "apple"].iter().enumerate().map(|(i, l)| (format!("{l} {i}"), *l)).collect();
    let lines: String = held_out.iter().map(|(text, label)| format!("{}\n", json!({"text": text, "label": label}))).collect();
    let eval_file = upload(&server, lines).await;
    let texts = json!(["zebra 1", "apple 2", "mango 3", "zebra rose", "apple mango", "nothing of these"]);
    for tuning in [json!({"type": "full"}), json!({"type": "lora"})] {
        let mut filing = request(&train_file, json!({"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 3e-3}));
        (filing["tuning"], filing["validation_file"], filing["data"]) = (tuning.clone(), json!(eval_file), json!({}));
        let mut jobs = Vec::new();
        for _ in 0..2 {
            let id = file_job(&server, &filing).await;
            jobs.push(succeeded(&server, &id).await);
        }
        let mut without = filing.clone();
        without.as_object_mut().unwrap().remove("validation_file");
        without["data"] = json!({"validation_split": 0});
        let id = file_job(&server, &without).await;
        jobs.push(succeeded(&server, &id).await);
        let first = classify(&server, &name_of(&jobs[0]), &texts).await;
        for job in &jobs {
            assert_eq!(job["data"]["labels"], json!(["apple", "mango", "zebra"]));
            assert_eq!(
                classify(&server, &name_of(job), &texts).await,
                first,
                "neither another run nor the validation file changes it: {tuning}"
            );
        }
        let files = download(&server, &name_of(&jobs[0])).await;
        if tuning["type"] == "full" {
            let config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
            assert_eq!(config["id2label"], json!({"0": "apple", "1": "mango", "2": "zebra"}));
            assert_eq!(config["label2id"], json!({"apple": 0, "mango": 1, "zebra": 2}));
        } else {
            assert_eq!(serde_json::from_slice::<Value>(&files["labels.json"]).unwrap(), json!(["apple", "mango", "zebra"]));
        }
        let held_texts: Vec<&str> = held_out.iter().map(|(text, _)| text.as_str()).collect();
        let answers = classify(&server, &name_of(&jobs[0]), &json!(held_texts)).await;
        let right = answers.as_array().unwrap().iter().zip(&held_out).filter(|(a, (_, label))| a["label"] == json!(label)).count();
        let metrics = server.get(&format!("{}/{}/metrics", crate::trainer::JOBS, jobs[0]["id"].as_str().unwrap())).await.ok();
        assert!((metrics["report"]["evaluation"]["eval_accuracy"].as_f64().unwrap() - right as f64 / 5.0).abs() < 1e-9, "{metrics}");
    }
    let models: Vec<String> = server.get("/v1/models").await.ok()["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|m| Some(m["id"].as_str()?.to_owned()))
        .filter(|n| n.starts_with("ft:"))
        .collect();
    let mut before = Vec::new();
    for name in &models {
        before.push(classify(&server, name, &texts).await);
    }
    let server = restarted(server);
    for (name, expected) in models.iter().zip(before) {
        assert_eq!(classify(&server, name, &texts).await, expected, "{name}");
    }
    assert_eq!(models.len(), 6);
}

/// The case `adapter-matches-no-module`, in its three variants.
#[tokio::test]
async fn an_adapter_without_a_place_for_every_tensor_is_refused_whole() {
    let server = server();
    let bert = fixture("bert-five");
    let elsewhere = |t: TensorFile| t.rename(|n| n.replace("model.bert.encoder.", "model.language_model.bert.encoder."));
    let half = |t: TensorFile| t.rename(|n| n.replace("encoder.layer.1.", "encoder.layers.1."));
    for (name, files, tensor) in [
        ("elsewhere", with_tensors(&bert, elsewhere), "language_model"),
        ("other-target", with_config(&bert, "target_modules", json!(["intermediate.dense"])), "query"),
        ("half", with_tensors(&bert, half), "encoder.layers.1."),
    ] {
        let error = load(&server, name, &files, "file:bert-tiny").await.error(400);
        assert_eq!(error["code"], "adapter_mismatch");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("base_model.model.") && message.contains(tensor), "{name}: {message}");
        assert_eq!(server.get("/v1/adapters").await.ok()["data"], json!([]));
        server.post("/v1/classify", &json!({"model": name, "input": "x"})).await.error(404);
    }
    load(&server, "whole", &bert, "file:bert-tiny").await.ok();
    classify(&server, "whole", &json!("still here")).await;
}

/// The fixtures' rows are token ids, so their bases get a tokenizer that reads ids: `t33` is 33.
#[tokio::test]
async fn adapters_of_peft_answer_with_the_probabilities_that_peft_computes() {
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let models = folder.path().join("models");
    for base in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
        copy(&Path::new(FIXTURES).join(base), &models.join(base));
        read_ids(&models.join(base).join("tokenizer.json"));
    }
    let names = ["bert", "bert-five", "bert-rslora", "bert-patterns", "bert-all-linear", "distilbert", "roberta"];
    for name in names {
        copy(&Path::new(FIXTURES).join("lora").join(name), &models.join(name));
    }
    let server = Server::in_folder(folder, &[]);
    for name in names {
        let expected: Value = serde_json::from_slice(&std::fs::read(models.join(name).join("expected.json")).unwrap()).unwrap();
        let base = format!("file:{}", expected["base"].as_str().unwrap());
        let rows = expected["rows"].as_array().unwrap();
        let input: Vec<Value> = rows.iter().map(as_text).collect();
        let logits = TensorFile::read(&std::fs::read(models.join(name).join("expected.safetensors")).unwrap()).floats("logits");
        server.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": name, "base_model": base})).await.ok();
        load(&server, &format!("{name}-zip"), &fixture(name), &base).await.ok();
        for model in [name.to_owned(), format!("{name}-zip")] {
            let answers = classify(&server, &model, &json!(input)).await;
            for (answer, logits) in answers.as_array().unwrap().iter().zip(logits.chunks_exact(logits.len() / rows.len())) {
                let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                for (label, logit) in expected["names"].as_array().unwrap().iter().zip(logits) {
                    let score = answer["scores"].as_array().unwrap().iter().find(|s| s["label"] == *label);
                    let score = score.unwrap_or_else(|| panic!("{model} has no {label}: {answer}"))["score"].as_f64().unwrap();
                    let wanted = f64::from(*logit).exp() / sum;
                    assert!((score - wanted).abs() < 1e-5, "{model}, {label}: {score}, and PEFT says {wanted}");
                }
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Leaves a tokenizer its special tokens, and gives it words that name their ids.
fn read_ids(path: &Path) {
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let count = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let words: serde_json::Map<String, Value> = (0..count).map(|id| (format!("t{id}"), json!(id))).collect();
    (tokenizer["normalizer"], tokenizer["pre_tokenizer"], tokenizer["added_tokens"]) =
        (json!(null), json!({"type": "WhitespaceSplit"}), json!([]));
    tokenizer["model"] = json!({"type": "WordLevel", "vocab": words, "unk_token": "t1"});
    std::fs::write(path, serde_json::to_vec(&tokenizer).unwrap()).unwrap();
}

/// A row's ids as a text or a pair, less the special tokens that the tokenizer sets by itself.
fn as_text(row: &Value) -> Value {
    let ids: Vec<u64> = row["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let separator = *ids.last().unwrap();
    let words = |ids: &[u64]| ids.iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ");
    let parts: Vec<String> = ids[1..ids.len() - 1].split(|id| *id == separator).map(words).collect();
    match &parts[..] {
        [one] => json!(one),
        [one, two] => json!({"text": one, "text_pair": two}),
        more => panic!("{more:?}"),
    }
}

#[tokio::test]
async fn a_model_with_adapters_on_it_cannot_be_deleted() {
    let server = server();
    let job = train(&server, "file:bert-tiny", &rows(&["spam", "mail"], 8), json!({"type": "full"})).await;
    let base = name_of(&job);
    load(&server, "on-top", &fixture("bert-five"), &base).await.ok();
    let answer = classify(&server, "on-top", &json!("good")).await;
    assert_eq!(answer[0]["scores"].as_array().unwrap().len(), 5);
    load(&server, "on-the-untrained", &fixture("bert-five"), "file:bert-tiny").await.ok();
    assert_ne!(classify(&server, "on-the-untrained", &json!("good")).await, answer, "it stands on the trained weights");
    let error = server.delete(&format!("/v1/models/{base}")).await.error(409);
    assert_eq!(error["code"], "in_use");
    assert!(error["message"].as_str().unwrap().contains("on-top"), "{error}");
    server.post("/v1/unload_lora_adapter", &json!({"lora_name": "on-top"})).await.ok();
    server.delete(&format!("/v1/models/{base}")).await.ok();
}
