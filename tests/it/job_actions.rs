//! Steering jobs: pause, resume, cancel, delete; lists and their filters.

use serde_json::json;

use crate::harness::{Server, claim, job_request};

const JOBS: &str = "/v1/fine_tuning/jobs";

#[tokio::test]
async fn a_waiting_job_pauses_resumes_and_ends() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let act = async |action: &str| server.post(&format!("{JOBS}/{job}/{action}"), &json!({})).await;
    assert_eq!(act("pause").await.ok()["status"], "paused");
    assert_eq!(act("pause").await.ok()["status"], "paused", "repeating is fine");
    assert_eq!(act("resume").await.ok()["status"], "queued");
    assert_eq!(act("cancel").await.ok()["status"], "cancelled");
    assert_eq!(act("cancel").await.ok()["status"], "cancelled");
    for action in ["pause", "resume"] {
        let error = act(action).await.error(409);
        assert_eq!(error["code"], "invalid_job_state");
        assert!(error["message"].as_str().unwrap().contains("cancelled"), "{error}");
    }
}

#[tokio::test]
async fn a_running_job_is_pausing_until_its_worker_has_saved() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let store = server.store().await;
    let lease = claim(&store).await;
    store.mark_running(&lease).await.unwrap();
    let pausing = server.post(&format!("{JOBS}/{job}/pause"), &json!({})).await.ok();
    assert_eq!((&pausing["status"], &pausing["pausing"]), (&json!("running"), &json!(true)));
    store.paused(&lease).await.unwrap();
    let paused = server.get(&format!("{JOBS}/{job}")).await.ok();
    assert_eq!((&paused["status"], &paused["pausing"]), (&json!("paused"), &json!(false)));
}

#[tokio::test]
async fn actions_take_an_empty_body_and_no_fields() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let empty = crate::harness::answer(server.request(reqwest::Method::POST, &format!("{JOBS}/{job}/pause"))).await;
    assert_eq!(empty.ok()["status"], "paused");
    let error = server.post(&format!("{JOBS}/{job}/resume"), &json!({"now": true})).await.error(400);
    assert_eq!(error["param"], "now");
    for action in ["pause", "resume", "cancel"] {
        assert_eq!(server.post(&format!("{JOBS}/ftjob-nothing/{action}"), &json!({})).await.error(404)["code"], "job_not_found");
    }
}

#[tokio::test]
async fn only_a_finished_job_is_deleted() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let path = format!("{JOBS}/{job}");
    assert_eq!(server.delete(&path).await.error(409)["code"], "invalid_job_state");
    server.post(&format!("{path}/cancel"), &json!({})).await.ok();
    assert_eq!(server.delete(&path).await.ok(), json!({"id": job, "object": "fine_tuning.job", "deleted": true}));
    server.get(&path).await.error(404);
    server.get(&format!("{path}/events")).await.error(404);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_and_filtered() {
    let server = Server::start();
    let file = server.data_set().await;
    let mut ids = Vec::new();
    for team in ["red", "blue", "red"] {
        let mut request = job_request(&file);
        request["metadata"] = json!({"team": team});
        ids.push(server.post(JOBS, &request).await.ok()["id"].as_str().unwrap().to_owned());
    }
    ids.reverse();
    let listed = async |query: &str| -> Vec<String> {
        let page = server.get(&format!("{JOBS}?{query}")).await.ok();
        page["data"].as_array().unwrap().iter().map(|j| j["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed("").await, ids);
    assert_eq!(listed("metadata[team]=blue").await, [ids[1].clone()]);
    assert_eq!(listed(&format!("limit=1&after={}", ids[0])).await, [ids[1].clone()]);
    server.post(&format!("{JOBS}/{}/cancel", ids[2]), &json!({})).await.ok();
    assert_eq!(listed("status=cancelled").await, [ids[2].clone()]);
}

#[tokio::test]
async fn a_higher_priority_stands_further_ahead_in_line() {
    let server = Server::start();
    let file = server.data_set().await;
    let first = server.job(&file).await;
    let mut urgent = job_request(&file);
    urgent["priority"] = json!(5);
    let urgent = server.post(JOBS, &urgent).await.ok();
    assert_eq!((&urgent["queue"]["position"], &urgent["queue"]["waiting"]), (&json!(1), &json!(2)));
    let first = server.get(&format!("{JOBS}/{}", first["id"].as_str().unwrap())).await.ok();
    assert_eq!(first["queue"]["position"], 2);
    assert!(first["queue"]["reason"].as_str().unwrap().contains("1 before it"), "{first}");
}
