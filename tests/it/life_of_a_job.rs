//! One job from upload to answer, seen from outside: its events, checkpoints, results, and what is left when it is deleted.

use serde_json::{Value, json};

use crate::harness::two_classes;
use crate::trainer::{
    JOBS, act, classify, download, events, file_job, history, job, reached, request, server, states, succeeded, twenty_rows, until, upload,
};

#[tokio::test]
async fn every_moment_of_a_job_is_an_event_in_order() {
    let server = server();
    let file = upload(&server, two_classes(20)).await;
    let mut filing = request(&file, json!({"num_train_epochs": 2, "per_device_train_batch_size": 8}));
    filing["data"] = json!({"validation_split": 0.2});
    let id = file_job(&server, &filing).await;
    let done = succeeded(&server, &id).await;
    let events = events(&server, &id).await;
    let place = |what: &str| {
        let at = events.iter().position(|e| e["message"].as_str().unwrap().contains(what));
        at.unwrap_or_else(|| panic!("no event says {what:?}: {events:#?}"))
    };
    let story = [
        "Created fine-tuning job",
        "Files validated",
        "Fine-tuning job started",
        "Training ",
        "Step 1: training loss",
        "Step 4: evaluation loss",
        "Checkpoint created at step 4",
        "Step 8: training loss",
        "Step 8: evaluation loss",
        "Checkpoint created at step 8",
        "New fine-tuned model created",
        "The job has successfully completed",
    ];
    let places: Vec<usize> = story.iter().map(|what| place(what)).collect();
    assert!(places.is_sorted(), "{places:?} {events:#?}");
    assert_eq!(places.last(), Some(&(events.len() - 1)), "nothing follows the end");
    assert_eq!(states(&server, &id).await.last().map(String::as_str), Some("succeeded"));
    assert!(done["started_at"].is_u64() && done["finished_at"].is_u64() && done["error"].is_null());
    assert_eq!(
        (&done["progress"]["step"], &done["progress"]["total_steps"], &done["progress"]["epoch"]),
        (&json!(8), &json!(8), &json!(2.0))
    );
    assert!(done["trained_tokens"].as_u64().unwrap() > 2 * 32 * 3);
}

#[tokio::test]
async fn a_checkpoint_answers_by_name_while_the_job_trains() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 20_000, "save_steps": 20, "logging_steps": 100}))).await;
    reached(&server, &id, 20).await;
    let list = server.get(&format!("{JOBS}/{id}/checkpoints")).await.ok();
    let newest = list["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap().to_owned();
    let data = classify(&server, &newest, &json!(["row 03", "row 04"])).await;
    assert_eq!(data[1]["scores"].as_array().unwrap().len(), 2);
    let state = job(&server, &id).await;
    assert_eq!(state["status"], "running", "the test wants to see it answer before the end: {state}");
    act(&server, &id, "cancel").await;
}

#[tokio::test]
async fn an_expired_checkpoint_says_so_and_the_kept_ones_answer() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 12, "save_steps": 2, "save_total_limit": 2}))).await;
    let done = succeeded(&server, &id).await;
    let list = server.get(&format!("{JOBS}/{id}/checkpoints?limit=100")).await.ok();
    let kept: Vec<(u64, bool)> =
        list["data"].as_array().unwrap().iter().map(|c| (c["step_number"].as_u64().unwrap(), c["available"] == true)).collect();
    assert_eq!(kept, [(12, true), (10, true), (8, false), (6, false), (4, false), (2, false)]);
    let model = done["fine_tuned_model"].as_str().unwrap();
    for (step, available) in kept {
        let name = format!("{model}:ckpt-step-{step}");
        let answer = server.post("/v1/classify", &json!({"model": name, "input": "row 03"})).await;
        if available {
            answer.ok();
        } else {
            assert_eq!(answer.error(404)["code"], "checkpoint_expired");
        }
    }
    let missing = server.post("/v1/classify", &json!({"model": format!("{model}:ckpt-step-3"), "input": "x"})).await;
    assert_eq!(missing.error(404)["code"], "model_not_found");
}

#[tokio::test]
async fn the_last_checkpoint_is_the_model() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 10}))).await;
    let model = succeeded(&server, &id).await["fine_tuned_model"].as_str().unwrap().to_owned();
    let checkpoint = format!("{model}:ckpt-step-10");
    let texts = json!(["row 03", "row 04", "something else"]);
    assert_eq!(classify(&server, &checkpoint, &texts).await, classify(&server, &model, &texts).await);
    let (ours, theirs) = (download(&server, &model).await, download(&server, &checkpoint).await);
    assert_eq!(ours["adapter_model.safetensors"], theirs["adapter_model.safetensors"]);
    assert!(!theirs.keys().any(|name| name.starts_with("state.")), "what a resume needs is no part of a model");
}

/// The figures that the job reports are those that anybody gets who asks the model for the same rows.
#[tokio::test]
async fn the_confusion_matrix_and_the_predictions_are_what_classify_answers() {
    let server = server();
    let train = upload(&server, two_classes(20)).await;
    let rows: Vec<(String, &str)> =
        (30..45).map(|i| if i % 3 == 0 { (format!("good {i}"), "pos") } else { (format!("bad {i}"), "neg") }).collect();
    let lines: String = rows.iter().map(|(text, label)| format!("{}\n", json!({"text": text, "label": label}))).collect();
    let eval = upload(&server, lines).await;
    let mut filing = request(&train, json!({"max_steps": 6}));
    filing["validation_file"] = json!(eval);
    filing["data"] = json!({});
    let id = file_job(&server, &filing).await;
    let done = succeeded(&server, &id).await;
    let texts: Vec<&str> = rows.iter().map(|(text, _)| text.as_str()).collect();
    let answers = classify(&server, done["fine_tuned_model"].as_str().unwrap(), &json!(texts)).await;
    let labels = ["neg", "pos"];
    let mut expected = [[0u64; 2]; 2];
    for ((_, truth), answer) in rows.iter().zip(answers.as_array().unwrap()) {
        let place = |label: &str| labels.iter().position(|l| *l == label).unwrap();
        expected[place(truth)][place(answer["label"].as_str().unwrap())] += 1;
    }
    let metrics = server.get(&format!("{JOBS}/{id}/metrics")).await.ok();
    assert_eq!(metrics["confusion_matrix"], json!({"labels": labels, "matrix": expected}));
    let right = expected[0][0] + expected[1][1];
    assert!((metrics["report"]["evaluation"]["eval_accuracy"].as_f64().unwrap() - right as f64 / 15.0).abs() < 1e-9, "{metrics}");
    let predictions = server.get(&format!("{JOBS}/{id}/metrics/predictions.jsonl")).await.text();
    let predictions: Vec<Value> = predictions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(predictions.len(), 15);
    for ((prediction, answer), (_, truth)) in predictions.iter().zip(answers.as_array().unwrap()).zip(&rows) {
        assert_eq!((&prediction["label"], &prediction["prediction"]), (&json!(truth), &answer["label"]), "{prediction}");
        assert!((prediction["score"].as_f64().unwrap() - answer["score"].as_f64().unwrap()).abs() < 1e-6, "{prediction} {answer}");
    }
}

#[tokio::test]
async fn the_result_file_has_a_line_for_each_step() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 7}))).await;
    let done = succeeded(&server, &id).await;
    let csv = server.get(&format!("/v1/files/{}/content", done["result_files"][0].as_str().unwrap())).await.text();
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).unwrap();
    let (step, loss) = (column("step"), column("loss"));
    let read: Vec<(u64, f64)> = lines
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            (cells[step].parse().unwrap(), cells[loss].parse().unwrap())
        })
        .collect();
    let told: Vec<(u64, f64)> =
        history(&server, &id).await.iter().map(|e| (e["step"].as_u64().unwrap(), e["loss"].as_f64().unwrap())).collect();
    assert_eq!(read, told);
    assert_eq!(read.iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_deleted_model_is_gone_from_memory_too() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 4}))).await;
    let model = succeeded(&server, &id).await["fine_tuned_model"].as_str().unwrap().to_owned();
    let names = [model.clone(), format!("{model}:ckpt-step-4")];
    for name in &names {
        classify(&server, name, &json!("row 03")).await;
    }
    server.delete(&format!("/v1/models/{model}")).await.ok();
    for name in &names {
        let error = server.post("/v1/classify", &json!({"model": name, "input": "row 03"})).await.error(404);
        assert_eq!(error["code"], "model_not_found", "{error}");
    }
    assert_eq!(job(&server, &id).await["status"], "succeeded", "the job's story stays");
}

#[tokio::test]
async fn a_checkpoint_that_expires_in_memory_stops_answering() {
    let server = server();
    let file = upload(&server, twenty_rows()).await;
    let id =
        file_job(&server, &request(&file, json!({"max_steps": 3000, "save_steps": 20, "save_total_limit": 2, "logging_steps": 100}))).await;
    reached(&server, &id, 20).await;
    let list = server.get(&format!("{JOBS}/{id}/checkpoints?limit=1")).await.ok();
    let name = list["data"][0]["fine_tuned_model_checkpoint"].as_str().unwrap().to_owned();
    classify(&server, &name, &json!("row 03")).await;
    let refused = until("the checkpoint to expire", async || {
        let answer = server.post("/v1/classify", &json!({"model": name, "input": "row 03"})).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.error(404)["code"], "checkpoint_expired");
    act(&server, &id, "cancel").await;
}
