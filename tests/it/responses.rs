//! `/v1/responses` by a tiny model with random weights: what is kept, what goes on, what is refused.

use serde_json::{Value, json};

use crate::text::{MODEL, ask, server};
use crate::trainer::until;

const RESPONSES: &str = "/v1/responses";

fn request(input: Value, extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": input, "max_output_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn a_response_says_what_a_chat_says_and_a_stream_says_the_same() {
    let server = server();
    let chat = server.post("/v1/chat/completions", &ask("hello", json!({}))).await.ok();
    let whole = server.post(RESPONSES, &request(json!("hello"), json!({}))).await.ok();
    assert_eq!(text(&whole), chat["choices"][0]["message"]["content"]);
    assert_eq!(whole["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    let stream = server.post(RESPONSES, &request(json!("hello"), json!({"stream": true}))).await.text();
    let events: Vec<Value> = stream.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect();
    assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == json!(i)));
    assert_eq!(events[0]["type"], "response.created");
    let deltas: String =
        events.iter().filter(|e| e["type"] == "response.output_text.delta").map(|e| e["delta"].as_str().unwrap()).collect();
    assert_eq!(deltas, text(&whole));
    let last = events.last().unwrap();
    assert_eq!((&last["type"], text(&last["response"])), (&json!(format!("response.{}", whole["status"].as_str().unwrap())), text(&whole)));
}

#[tokio::test]
async fn a_conversation_goes_on_as_if_it_had_been_sent_whole() {
    let server = server();
    let first = server.post(RESPONSES, &request(json!("one"), json!({"instructions": "Be brief."}))).await.ok();
    let second = server.post(RESPONSES, &request(json!("two"), json!({"previous_response_id": first["id"]}))).await.ok();
    let whole =
        json!([{"role": "user", "content": "one"}, {"role": "assistant", "content": text(&first)}, {"role": "user", "content": "two"}]);
    let same = server.post(RESPONSES, &request(whole, json!({"store": false}))).await.ok();
    assert_eq!((text(&second), &second["usage"]["input_tokens"]), (text(&same), &same["usage"]["input_tokens"]));

    let id = second["id"].as_str().unwrap();
    let items = server.get(&format!("{RESPONSES}/{id}/input_items?order=asc&limit=2")).await.ok();
    assert_eq!((items["data"].as_array().unwrap().len(), &items["has_more"]), (2, &json!(true)));
    let rest = server.get(&format!("{RESPONSES}/{id}/input_items?order=asc&after={}", items["last_id"].as_str().unwrap())).await.ok();
    assert_eq!(rest["data"][0]["content"][0]["text"], "two");
    assert_eq!(server.get(&format!("{RESPONSES}/{id}")).await.ok(), second);

    let gone = first["id"].as_str().unwrap();
    server.delete(&format!("{RESPONSES}/{gone}")).await.ok();
    let error = server.post(RESPONSES, &request(json!("three"), json!({"previous_response_id": id}))).await.error(404);
    let message = error["message"].as_str().unwrap();
    assert!(error["param"] == "previous_response_id" && [id, gone, "`input`"].iter().all(|part| message.contains(part)), "{error}");
    let error = server.get(&format!("{RESPONSES}/{id}/input_items")).await.error(404);
    assert!(error["message"].as_str().unwrap().contains(gone) && error["param"] == "response_id", "{error}");
    let error = server.post(RESPONSES, &request(json!("three"), json!({"previous_response_id": gone}))).await.error(404);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(gone) && !message.contains(id) && error["param"] == "previous_response_id", "{error}");
    // What was not to be kept is not there.
    server.get(&format!("{RESPONSES}/{}", same["id"].as_str().unwrap())).await.error(404);
}

#[tokio::test]
async fn a_response_in_the_background_is_finished_or_cancelled() {
    let server = server();
    let started = server.post(RESPONSES, &request(json!("hello"), json!({"background": true}))).await.ok();
    assert_eq!(started["status"], "in_progress");
    let path = format!("{RESPONSES}/{}", started["id"].as_str().unwrap());
    let ended = until("the response ended", async || {
        let now = server.get(&path).await.ok();
        (now["status"] != "in_progress").then_some(now)
    })
    .await;
    assert_eq!(text(&ended), text(&server.post(RESPONSES, &request(json!("hello"), json!({}))).await.ok()));
    assert_eq!(server.post(&format!("{path}/cancel"), &json!({})).await.ok(), ended);
    let foreground = server.post(RESPONSES, &request(json!("x"), json!({}))).await.ok();
    server.post(&format!("{RESPONSES}/{}/cancel", foreground["id"].as_str().unwrap()), &json!({})).await.error(400);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let server = server();
    for (extra, param) in [
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"include": ["file_search_call.results"]}), "include"),
        (json!({"background": true, "store": false}), "store"),
        (json!({"truncation": "always"}), "truncation"),
        (json!({"metadata": {"a": 1}}), "metadata.a"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"colour": 1}), "colour"),
    ] {
        let error = server.post(RESPONSES, &request(json!("x"), extra)).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    let picture = json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]);
    let error = server.post(RESPONSES, &request(picture, json!({}))).await.error(400);
    assert_eq!(error["param"], "input[0].content[0].type");
    let long = request(json!([{"role": "user", "content": "y".repeat(9000)}, {"role": "user", "content": "x"}]), json!({}));
    assert_eq!(server.post(RESPONSES, &long).await.error(400)["code"], "context_length_exceeded");
    let mut cut = long;
    cut["truncation"] = json!("auto");
    server.post(RESPONSES, &cut).await.ok();
}
