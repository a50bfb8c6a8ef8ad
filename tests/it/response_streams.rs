//! Streams of `/v1/responses` that are told again, left and picked up, or cut off.

use futures::StreamExt;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::harness::Server;
use crate::text::{MODEL, server};

const RESPONSES: &str = "/v1/responses";

/// An answer of some hundred tokens, which takes its time.
fn long(extra: Value) -> Value {
    let words = "an answer that goes on and on; ".repeat(12);
    let format = json!({"type": "json_schema", "name": "long", "schema": {"enum": [words]}});
    let mut body = json!({"model": MODEL, "input": "tell", "max_output_tokens": 450, "temperature": 0, "text": {"format": format}});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect()
}

async fn again(server: &Server, id: &str, query: &str) -> Vec<Value> {
    let answer = server.get(&format!("{RESPONSES}/{id}?stream=true{query}")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream"));
    events(&answer.text())
}

fn deltas(events: &[Value]) -> String {
    events.iter().filter(|e| e["type"] == "response.output_text.delta").map(|e| e["delta"].as_str().unwrap()).collect()
}

async fn open(server: &Server, body: &Value) -> Response {
    let response = server.request(Method::POST, RESPONSES).json(body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

/// Reads a stream until it has told some text, and leaves it.
async fn begun(server: &Server, body: &Value) -> Vec<Value> {
    let mut stream = open(server, body).await.bytes_stream();
    let mut text = String::new();
    while !text.contains("output_text.delta") {
        text.push_str(std::str::from_utf8(&stream.next().await.expect("text before the end").unwrap()).unwrap());
    }
    events(&text[..text.rfind("\n\n").unwrap()])
}

#[tokio::test]
async fn a_kept_response_is_told_again_with_the_same_events() {
    let mut server = server();
    let plain = json!({"model": MODEL, "input": "hello", "max_output_tokens": 12, "temperature": 0, "stream": true});
    let mut logprobs = plain.clone();
    logprobs["include"] = json!(["message.output_text.logprobs"]);
    let mut told = Vec::new();
    for body in [plain, logprobs, long(json!({"stream": true}))] {
        let live = events(&open(&server, &body).await.text().await.unwrap());
        assert!(live.len() > 10, "{} events", live.len());
        let id = live[0]["response"]["id"].as_str().unwrap().to_owned();
        assert_eq!(again(&server, &id, "").await, live);
        for after in [0, 5, live.len() - 2, live.len() - 1, live.len() + 9] {
            let rest = again(&server, &id, &format!("&starting_after={after}&include_obfuscation=false")).await;
            assert_eq!(rest, live[(after + 1).min(live.len())..], "after {after}");
        }
        told.push((id, live));
    }
    // Made without a stream it is told as if there had been one.
    let whole = server.post(RESPONSES, &long(json!({}))).await.ok();
    let events = again(&server, whole["id"].as_str().unwrap(), "").await;
    assert_eq!((events.len(), deltas(&events)), (told[2].1.len(), deltas(&told[2].1)));
    let folder = server.folder.clone();
    server.stop();
    drop(server);
    let server = crate::trainer::server_in(folder, &["--workers", "0"]);
    for (id, live) in told {
        assert_eq!(again(&server, &id, "").await, live);
    }
}

#[tokio::test]
async fn a_stream_in_the_background_is_left_and_picked_up() {
    let server = server();
    let begun = begun(&server, &long(json!({"stream": true, "background": true}))).await;
    let id = begun[0]["response"]["id"].as_str().unwrap();
    let rest = again(&server, id, &format!("&starting_after={}", begun.len() - 1)).await;
    let all = [begun.clone(), rest].concat();
    assert!(all.iter().enumerate().all(|(i, e)| e["sequence_number"] == json!(i)));
    let last = &all[all.len() - 1];
    assert_eq!((&last["type"], &last["response"]["background"]), (&json!("response.completed"), &json!(true)));
    let kept = server.get(&format!("{RESPONSES}/{id}")).await.ok();
    assert_eq!((&kept, kept["output"][0]["content"][0]["text"].as_str().unwrap()), (&last["response"], &*deltas(&all)));
    assert_eq!(again(&server, id, "").await, all);
    // Nothing but the background lives on: the same without it is not kept.
    let left = self::begun(&server, &long(json!({"stream": true}))).await;
    server.get(&format!("{RESPONSES}/{}", left[0]["response"]["id"].as_str().unwrap())).await.error(404);
}

#[tokio::test]
async fn everyone_who_follows_hears_the_same() {
    let server = server();
    let started = server.post(RESPONSES, &long(json!({"background": true}))).await.ok();
    let id = started["id"].as_str().unwrap();
    let followers = futures::future::join_all((0..4).map(|_| again(&server, id, ""))).await;
    assert_eq!(followers[0][0]["response"], started);
    assert!(followers.iter().all(|f| *f == followers[0]));
    assert_eq!(followers[0].last().unwrap()["type"], "response.completed");
}

#[tokio::test]
async fn what_was_cancelled_keeps_what_was_said() {
    let server = server();
    let begun = begun(&server, &long(json!({"stream": true, "background": true}))).await;
    let path = format!("{RESPONSES}/{}", begun[0]["response"]["id"].as_str().unwrap());
    let (id, cancel, nothing) = (path.rsplit('/').next().unwrap(), format!("{path}/cancel"), json!({}));
    let (rest, cancelled) = futures::join!(again(&server, id, ""), server.post(&cancel, &nothing));
    let cancelled = cancelled.ok();
    assert_eq!(rest.last().unwrap()["response"], cancelled);
    assert_eq!(rest[..begun.len()], begun);
    assert_eq!(cancelled["output"][0]["content"][0]["text"].as_str().unwrap(), deltas(&rest));
    assert!(["cancelled", "completed"].contains(&cancelled["status"].as_str().unwrap()), "{cancelled}");
    assert_eq!(cancelled["output"][0]["status"], if cancelled["status"] == "cancelled" { "incomplete" } else { "completed" });
    assert_eq!(server.get(&path).await.ok(), cancelled);
}

#[tokio::test]
async fn a_question_about_a_response_that_makes_no_sense_is_refused_by_name() {
    let server = server();
    let body = json!({"model": MODEL, "input": "x", "max_output_tokens": 2});
    let id = server.post(RESPONSES, &body).await.ok()["id"].as_str().unwrap().to_owned();
    for (query, param) in [
        ("stream=yes", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
        ("include[]=all", "include[]"),
        ("colour=1", "colour"),
    ] {
        let error = server.get(&format!("{RESPONSES}/{id}?{query}")).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    let twice = "include[]=message.output_text.logprobs&include[]=file_search_call.results";
    server.get(&format!("{RESPONSES}/{id}?{twice}&stream=false")).await.ok();
    server.get(&format!("{RESPONSES}/{id}/input_items?{twice}")).await.ok();
    server.get(&format!("{RESPONSES}/resp_nothing?stream=true")).await.error(404);
}
