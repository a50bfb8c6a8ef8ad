//! Streamed answers: the same text in pieces, clients that leave or read slowly, a server that ends under them.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::harness::Server;
use crate::text::{ask, server};

async fn open(server: &Server, body: &Value) -> Response {
    let response = server.request(Method::POST, "/v1/chat/completions").json(body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    response
}

fn pieces(text: &str) -> Vec<Value> {
    text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|d| *d != "[DONE]").map(|d| serde_json::from_str(d).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_gives_the_same_text_whole_characters_and_the_usage() {
    let server = server();
    let schema = json!({"type": "json_schema", "json_schema": {"name": "t", "schema": {"enum": ["🦙🚀 naïve 東京"]}}});
    for extra in [json!({"temperature": 1.0, "seed": 4, "max_tokens": 40}), json!({"response_format": schema, "max_tokens": 80})] {
        let mut body = ask("stream", extra);
        let whole = server.post("/v1/chat/completions", &body).await.ok();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let text = open(&server, &body).await.text().await.unwrap();
        assert!(text.trim_end().ends_with("data: [DONE]"));
        let pieces = pieces(&text);
        let content: String = pieces.iter().filter_map(|p| p["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(content, whole["choices"][0]["message"]["content"].as_str().unwrap());
        assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
        assert!(pieces.iter().all(|p| p["id"] == pieces[0]["id"]));
        let last = &pieces[pieces.len() - 1];
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &whole["usage"]["completion_tokens"]));
        let finish = pieces.iter().rev().find_map(|p| p["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish, whole["choices"][0]["finish_reason"].as_str());
    }
}

#[tokio::test]
async fn clients_that_hang_up_free_their_places() {
    let server = server();
    let long =
        ask("a long story", json!({"stream": true, "max_tokens": 440, "temperature": 1.0, "logit_bias": {"256": -100, "258": -100}}));
    let mut kept = Vec::new();
    for i in 0..100 {
        let response = open(&server, &long).await;
        if i % 2 == 0 {
            let mut stream = response.bytes_stream();
            stream.next().await.unwrap().unwrap();
        } else if i < 20 {
            kept.push(response);
        }
    }
    // Those who stayed get everything, and a newcomer does not wait for those who left.
    tokio::time::timeout(Duration::from_secs(60), server.post("/v1/chat/completions", &ask("quick", json!({})))).await.unwrap().ok();
    for response in kept {
        assert!(response.text().await.unwrap().contains("[DONE]"));
    }
}

#[tokio::test]
async fn a_server_that_ends_tells_its_streams() {
    let mut server = server();
    let long = ask(
        "a long story",
        json!({"stream": true, "max_tokens": 440, "n": 60, "temperature": 1.0, "logit_bias": {"256": -100, "258": -100}}),
    );
    let mut stream = open(&server, &long).await.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let ended = tokio::task::spawn_blocking(move || server.stop());
    let mut text = String::new();
    while let Some(Ok(bytes)) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(text.contains("[DONE]") || text.contains("shutting_down"), "{}", &text[text.len().saturating_sub(300)..]);
    assert!(ended.await.unwrap().success());
}
