//! Jobs that cannot succeed: each fails with a reason that its user can act on, and the worker takes the next one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server};
use crate::tensor_file::TensorFile;
use crate::trainer::{JOBS, ended, events, file_job, request, server_in, succeeded, twenty_rows, upload};

/// A server whose model folder holds a copy of the tiny BERT as `broken`, changed by the test, and the good one as `good`.
fn server_with(change: impl Fn(&Path)) -> Server {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let models = folder.path().join("models");
    for name in ["broken", "good"] {
        copy(&Path::new(FIXTURES).join("bert-tiny"), &models.join(name));
    }
    change(&models.join("broken"));
    Server::in_folder(folder, &["--workers", "1", "--worker-threads", "1"])
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn edit(path: PathBuf, change: impl Fn(&mut Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Trains on the changed folder, and then on the good one to see that the worker is well.
async fn failure(server: &Server) -> Value {
    let file = upload(server, twenty_rows()).await;
    let mut filing = request(&file, json!({"max_steps": 3}));
    filing["model"] = json!("file:broken");
    let id = file_job(server, &filing).await;
    let failed = ended(server, &id).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    assert_eq!((&failed["attempts"], &failed["progress"]["step"]), (&json!(0), &json!(0)), "trying again would not help");
    filing["model"] = json!("file:good");
    let next = file_job(server, &filing).await;
    succeeded(server, &next).await;
    failed["error"].clone()
}

/// One word's embedding is no number, and one row has that word: the batch that is named must have that row.
#[tokio::test]
async fn a_loss_that_is_no_number_ends_the_job_with_its_step_and_rows() {
    let server = server_with(|folder| {
        let path = folder.join("model.safetensors");
        let mut weights = TensorFile::read(&std::fs::read(&path).unwrap());
        weights.fill("bert.embeddings.word_embeddings.weight", EXCLAMATION_MARK * 32..(EXCLAMATION_MARK + 1) * 32, f32::NAN);
        std::fs::write(path, weights.write()).unwrap();
    });
    let file = upload(&server, twenty_rows().replace("row 13", "row 13!")).await;
    let mut filing = request(&file, json!({"max_steps": 50}));
    for tuning in ["full", "lora"] {
        (filing["model"], filing["tuning"]) = (json!("file:broken"), json!({"type": tuning}));
        let id = file_job(&server, &filing).await;
        let failed = ended(&server, &id).await;
        assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("not_finite")), "{failed}");
        let message = failed["error"]["message"].as_str().unwrap();
        let after = |what: &str| message.split_once(what).unwrap_or_else(|| panic!("no {what:?}: {message}")).1;
        let step: u64 = after("at step ").split(';').next().unwrap().parse().unwrap();
        let rows: Vec<u64> = after("rows of the batch: ").split('.').next().unwrap().split(", ").map(|n| n.parse().unwrap()).collect();
        assert!((1..=5).contains(&step), "every row stands in one of the first epoch's five steps: {message}");
        assert!(rows.len() == 4 && rows.contains(&13) && rows.iter().all(|line| (1..=20).contains(line)), "{message}");
        assert_eq!(failed["progress"]["step"].as_u64().unwrap(), step - 1, "the steps before it were made");
        assert_eq!(failed["attempts"], 0);
        let told = events(&server, &id).await;
        assert_eq!(
            (&told.last().unwrap()["level"], &told.last().unwrap()["data"]["error"]["code"]),
            (&json!("error"), &json!("not_finite"))
        );
    }
}

/// Weights that a step has blown up: the evaluation behind it says so, or where there is none the checkpoint, which is not kept.
#[tokio::test]
async fn a_run_that_diverges_ends_where_it_is_seen_and_offers_no_weights_of_it() {
    let server = server_in(Arc::new(tempfile::tempdir().unwrap()), &["--workers", "1"]);
    let file = upload(&server, twenty_rows()).await;
    for (split, what) in [(0.2, "evaluation loss"), (0.0, "trained weights")] {
        for (model, task) in [("file:bert-tiny", "classification"), ("file:decoders/chat-tiny", "causal_lm")] {
            let mut filing = request(&file, json!({"max_steps": 1, "learning_rate": 1e39, "save_steps": 1}));
            filing["data"]["validation_split"] = json!(split);
            (filing["model"], filing["task"], filing["tuning"]) = (json!(model), json!(task), json!({"type": "full"}));
            let id = file_job(&server, &filing).await;
            let failed = ended(&server, &id).await;
            assert_eq!((&failed["status"], &failed["error"]["code"]), (&json!("failed"), &json!("not_finite")), "{failed}");
            let message = failed["error"]["message"].as_str().unwrap();
            assert!(message.contains(what) && message.contains("after step 1") && message.contains("learning_rate"), "{message}");
            assert_eq!(server.get(&format!("{JOBS}/{id}/checkpoints")).await.ok()["data"], json!([]));
            assert!(failed["fine_tuned_model"].is_null());
        }
    }
}

/// A configuration of one layer on weights of two runs, and says that it does.
#[tokio::test]
async fn layers_beyond_the_configured_ones_are_told_in_the_events() {
    let server = server_with(|folder| edit(folder.join("config.json"), |c| c["num_hidden_layers"] = json!(1)));
    let file = upload(&server, twenty_rows()).await;
    for (model, told) in [("file:broken", true), ("file:good", false)] {
        let mut filing = request(&file, json!({"max_steps": 1}));
        filing["model"] = json!(model);
        let id = file_job(&server, &filing).await;
        succeeded(&server, &id).await;
        let warns = |e: &Value| e["level"] == "warn" && e["message"].as_str().unwrap().contains("1 layers and its weights have 2");
        assert_eq!(events(&server, &id).await.iter().any(warns), told, "{model}");
    }
}

/// Its id in the tiny BERT's vocabulary.
const EXCLAMATION_MARK: usize = 5;

#[tokio::test]
async fn an_unknown_architecture_is_named_with_the_known_ones() {
    let server = server_with(|folder| edit(folder.join("config.json"), |c| c["model_type"] = json!("llama4")));
    let error = failure(&server).await;
    assert_eq!((&error["code"], &error["param"]), (&json!("unsupported_model"), &json!("model")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("llama4") && message.contains("distilbert"), "{message}");
}

#[tokio::test]
async fn a_cut_weight_file_is_named() {
    let server = server_with(|folder| {
        let path = folder.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    let error = failure(&server).await;
    assert_eq!((&error["code"], &error["param"]), (&json!("unsupported_model"), &json!("model")));
    assert!(error["message"].as_str().unwrap().contains("model.safetensors"), "{error}");
}

#[tokio::test]
async fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let server = server_with(|folder| edit(folder.join("config.json"), |c| c["intermediate_size"] = json!(96)));
    let message = failure(&server).await["message"].as_str().unwrap().to_owned();
    assert!(message.contains("intermediate.dense") && message.contains("96") && message.contains("64"), "{message}");
}

#[tokio::test]
async fn the_tokenizer_of_another_model_is_refused() {
    // Its ids reach 319, and the table of embeddings has 200 rows.
    let server = server_with(|folder| {
        std::fs::copy(Path::new(FIXTURES).join("roberta-tiny/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    });
    let error = failure(&server).await;
    assert_eq!((&error["code"], &error["param"]), (&json!("unsupported_model"), &json!("model")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("tokenizer") && message.contains("200"), "{message}");
}

#[tokio::test]
async fn a_folder_without_a_tokenizer_says_what_is_missing() {
    let server = server_with(|folder| std::fs::remove_file(folder.join("tokenizer.json")).unwrap());
    let error = failure(&server).await;
    assert!(error["message"].as_str().unwrap().contains("tokenizer.json"), "{error}");
}

#[tokio::test]
async fn a_model_that_vanished_between_filing_and_training_fails_its_job() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let gone = folder.path().join("models/gone");
    copy(&Path::new(FIXTURES).join("bert-tiny"), &gone);
    let filing_server = Server::in_folder(folder.clone(), &[]);
    let file = upload(&filing_server, twenty_rows()).await;
    let mut filing = request(&file, json!({"max_steps": 3}));
    filing["model"] = json!("file:gone");
    let id = file_job(&filing_server, &filing).await;
    drop(filing_server);
    std::fs::remove_dir_all(gone).unwrap();
    let server = Server::in_folder(folder, &["--workers", "1"]);
    let failed = ended(&server, &id).await;
    assert_eq!((&failed["status"], &failed["error"]["param"]), (&json!("failed"), &json!("model")), "{failed}");
    assert!(failed["error"]["message"].as_str().unwrap().contains("gone"), "{failed}");
}
