//! Events: pages newest first, streams that replay, follow and close.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tunesmith_store::NewEvent;

use crate::harness::{Server, claim};

async fn open(server: &Server, job: &str, last: Option<&str>) -> Response {
    let mut request = server.request(Method::GET, &format!("/v1/fine_tuning/jobs/{job}/events")).header("accept", "text/event-stream");
    if let Some(id) = last {
        request = request.header("last-event-id", id);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert!(response.headers().get("content-encoding").is_none());
    response
}

/// The ids and data of a stream that closes by itself.
async fn all(response: Response) -> Vec<(String, Value)> {
    let text = tokio::time::timeout(Duration::from_secs(20), response.text()).await.expect("the stream closes").unwrap();
    parse(&text)
}

fn parse(text: &str) -> Vec<(String, Value)> {
    text.split("\n\n")
        .filter_map(|block| {
            let field = |name: &str| block.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
            Some((field("id:")?, serde_json::from_str(&field("data:")?).unwrap()))
        })
        .collect()
}

async fn cancelled_job(server: &Server) -> String {
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    for action in ["pause", "resume", "cancel"] {
        server.post(&format!("/v1/fine_tuning/jobs/{job}/{action}"), &json!({})).await.ok();
    }
    job
}

#[tokio::test]
async fn pages_are_newest_first_and_streams_oldest_first() {
    let server = Server::start();
    let job = cancelled_job(&server).await;
    let mut paged = Vec::new();
    let mut after = String::new();
    loop {
        let page = server.get(&format!("/v1/fine_tuning/jobs/{job}/events?limit=2{after}")).await.ok();
        for event in page["data"].as_array().unwrap() {
            assert_eq!(event["object"], "fine_tuning.job.event");
            paged.push(event["id"].as_str().unwrap().to_owned());
        }
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", paged.last().unwrap());
    }
    let streamed: Vec<String> = all(open(&server, &job, None).await).await.into_iter().map(|(id, _)| id).collect();
    paged.reverse();
    assert_eq!(paged, streamed);
    assert!(streamed.len() >= 5);
}

#[tokio::test]
async fn a_stream_goes_on_after_the_last_event_that_was_seen() {
    let server = Server::start();
    let job = cancelled_job(&server).await;
    let whole = all(open(&server, &job, None).await).await;
    for seen in [0, 2, whole.len() - 1] {
        let rest = all(open(&server, &job, Some(&whole[seen].0)).await).await;
        assert_eq!(rest, whole[seen + 1..], "after event {seen}");
    }
    let path = format!("/v1/fine_tuning/jobs/{job}/events");
    let wrong = server.request(Method::GET, &path).header("accept", "text/event-stream").header("last-event-id", "nothing");
    assert_eq!(crate::harness::answer(wrong).await.error(400)["param"], "Last-Event-ID");
    assert_eq!(server.get(&format!("{path}?after=ftevent-nothing")).await.error(400)["param"], "after");
}

#[tokio::test]
async fn a_stream_follows_a_worker_in_another_process_to_the_end() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let mut stream = open(&server, &job, None).await;
    let mut text = String::new();
    let mut wait_for = async |needle: &str| {
        while !text.contains(needle) {
            let chunk = tokio::time::timeout(Duration::from_secs(20), stream.chunk()).await.expect("news in time").unwrap();
            match chunk {
                Some(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
                None => return false,
            }
        }
        true
    };
    assert!(wait_for("Validating training file").await);
    let store = server.store().await;
    let lease = claim(&store).await;
    store.mark_running(&lease).await.unwrap();
    store.append_events(&lease, &[NewEvent::metrics("Step 1", json!({"step": 1, "loss": 0.5}))]).await.unwrap();
    assert!(wait_for("Step 1").await);
    assert!(wait_for("event: metrics").await, "metrics have their own event type");
    server.post(&format!("/v1/fine_tuning/jobs/{job}/cancel"), &json!({})).await.ok();
    assert!(wait_for("cancelled at step").await);
    assert!(!wait_for("never written").await, "the stream closes after the final event");
}

#[tokio::test]
async fn a_silent_stream_is_kept_open_by_comments() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let mut stream = open(&server, &job, None).await;
    let mut text = String::new();
    while !text.contains("\n: keep-alive") && !text.starts_with(": keep-alive") {
        let chunk = tokio::time::timeout(Duration::from_secs(60), stream.chunk()).await.expect("a comment within 15 s").unwrap();
        text.push_str(std::str::from_utf8(&chunk.expect("the stream stays open")).unwrap());
    }
}

#[tokio::test]
async fn many_streams_follow_one_job() {
    let server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await["id"].as_str().unwrap().to_owned();
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(open(&server, &job, None).await);
    }
    server.post(&format!("/v1/fine_tuning/jobs/{job}/cancel"), &json!({})).await.ok();
    let ends = futures::future::join_all(streams.into_iter().map(all)).await;
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(ends[0].last().unwrap().1["data"]["state"], "cancelled");
}
