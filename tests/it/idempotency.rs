//! `Idempotency-Key`: the same request files one job, another body under the same key is refused.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Server, answer, job_request};

const JOBS: &str = "/v1/fine_tuning/jobs";

async fn file_job(server: &Server, key: &str, body: &str) -> Answer {
    let request = server.request(Method::POST, JOBS).header("idempotency-key", key).header("content-type", "application/json");
    answer(request.body(body.to_owned())).await
}

async fn count(server: &Server) -> usize {
    server.get(JOBS).await.ok()["data"].as_array().unwrap().len()
}

#[tokio::test]
async fn the_same_key_files_one_job() {
    let server = Server::start();
    let file = server.data_set().await;
    let body = job_request(&file).to_string();
    let first = file_job(&server, "k1", &body).await.ok();
    assert_eq!(file_job(&server, "k1", &body).await.ok()["id"], first["id"]);
    // The same fields in another order and spacing are the same request.
    let turned = format!("{{ \"training_file\": \"{file}\", \"model\": \"file:tiny\" }}");
    let again = file_job(&server, "k1", &turned).await.ok();
    assert_eq!((&again["id"], &again["seed"]), (&first["id"], &first["seed"]));
    assert_eq!(count(&server).await, 1);
    assert_ne!(file_job(&server, "k2", &body).await.ok()["id"], first["id"]);
}

#[tokio::test]
async fn the_same_key_answers_the_job_though_its_file_is_gone() {
    let server = Server::start();
    let file = server.data_set().await;
    let body = job_request(&file).to_string();
    let first = file_job(&server, "k", &body).await.ok();
    let path = format!("{JOBS}/{}", first["id"].as_str().unwrap());
    server.post(&format!("{path}/cancel"), &json!({})).await.ok();
    server.delete(&format!("/v1/files/{file}")).await.ok();
    assert_eq!(file_job(&server, "k", &body).await.ok()["id"], first["id"]);
    assert_eq!(file_job(&server, "k2", &body).await.error(404)["code"], "file_not_found");
}

#[tokio::test]
async fn another_body_under_the_same_key_is_409() {
    let server = Server::start();
    let file = server.data_set().await;
    let mut request: Value = job_request(&file);
    file_job(&server, "k", &request.to_string()).await.ok();
    request["seed"] = json!(99);
    assert_eq!(file_job(&server, "k", &request.to_string()).await.error(409)["code"], "idempotency_conflict");
    assert_eq!(count(&server).await, 1);
}

#[tokio::test]
async fn requests_at_the_same_time_file_one_job() {
    let server = Server::start();
    let file = server.data_set().await;
    let body = job_request(&file).to_string();
    let all = futures::future::join_all((0..8).map(|_| file_job(&server, "race", &body))).await;
    let ids: std::collections::BTreeSet<String> = all.into_iter().map(|a| a.ok()["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((ids.len(), count(&server).await), (1, 1));
}

#[tokio::test]
async fn a_key_that_is_too_long_is_refused() {
    let server = Server::start();
    let file = server.data_set().await;
    let error = file_job(&server, &"k".repeat(256), &job_request(&file).to_string()).await.error(400);
    assert_eq!(error["param"], "Idempotency-Key");
}
