//! Chat and completions by a tiny model with random weights: what it says is noise, how it is said is not.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::Server;
use crate::trainer::server_in;

const CHAT: &str = "/v1/chat/completions";
const COMPLETE: &str = "/v1/completions";
pub const MODEL: &str = "file:decoders/chat-tiny";

pub fn server() -> Server {
    server_in(Arc::new(tempfile::tempdir().unwrap()), &["--workers", "0"])
}

pub fn ask(text: &str, extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn said(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn a_chat_and_a_completion_have_openais_shape() {
    let server = server();
    let chat = server.post(CHAT, &ask("hello", json!({}))).await.ok();
    assert_eq!((&chat["object"], &chat["choices"][0]["message"]["role"]), (&json!("chat.completion"), &json!("assistant")));
    assert!(["stop", "length"].contains(&chat["choices"][0]["finish_reason"].as_str().unwrap()));
    // <|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n, a token a byte: no first token that the template did not write.
    assert_eq!(chat["usage"]["prompt_tokens"], 1 + 5 + 5 + 1 + 1 + 1 + 10);
    let text = json!({"model": MODEL, "prompt": "hello", "max_tokens": 5, "temperature": 0});
    let complete = server.post(COMPLETE, &text).await.ok();
    assert_eq!((&complete["object"], &complete["usage"]["prompt_tokens"]), (&json!("text_completion"), &json!(5)));
    let tokens = json!({"model": MODEL, "prompt": "hello".bytes().collect::<Vec<u8>>(), "max_tokens": 5, "temperature": 0});
    assert_eq!(server.post(COMPLETE, &tokens).await.ok()["choices"], complete["choices"]);
}

#[tokio::test]
async fn an_answer_is_the_same_alone_and_in_a_crowd_greedy_or_drawn_by_a_seed() {
    let server = server();
    let mut alone = Vec::new();
    let questions: Vec<Value> = (0..8)
        .map(|i| {
            ask(&format!("question {i} {}", "x".repeat(i * 9)), if i % 2 == 0 { json!({}) } else { json!({"temperature": 1.0, "seed": i}) })
        })
        .collect();
    for question in &questions {
        alone.push(said(&server.post(CHAT, question).await.ok()).to_owned());
    }
    let noise = (0..12).map(|i| ask(&format!("noise {i}"), json!({"temperature": 1.5, "max_tokens": 40})));
    let all = questions.iter().cloned().chain(noise);
    let crowd = futures::future::join_all(all.map(|q| async { server.post(CHAT, &{ q }).await.ok() })).await;
    for (i, answer) in alone.iter().enumerate() {
        assert_eq!(said(&crowd[i]), answer, "question {i}");
    }
    let drawn = |seed: u64| ask("draw", json!({"temperature": 1.0, "seed": seed, "max_tokens": 30}));
    assert_ne!(said(&server.post(CHAT, &drawn(1)).await.ok()), said(&server.post(CHAT, &drawn(2)).await.ok()));
}

#[tokio::test]
async fn a_cache_for_two_answers_gives_twenty_the_same_text_as_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    // 2 layers, 2 key heads of 8, f32: 4 KiB a page of 16 tokens; 24 pages are 384 tokens.
    std::fs::write(folder.path().join("tunesmith.toml"), "[budgets]\nkv_cache_bytes = 98304\n").unwrap();
    let small = server_in(Arc::new(folder), &["--workers", "0"]);
    let questions: Vec<Value> = (0..20)
        .map(|i| ask(&format!("question {i} {}", "y".repeat(90)), json!({"max_tokens": 60, "temperature": 1.0, "seed": i})))
        .collect();
    let crowd = futures::future::join_all(questions.iter().map(|q| async { said(&small.post(CHAT, q).await.ok()).to_owned() })).await;
    let roomy = server();
    for (i, question) in questions.iter().enumerate() {
        assert_eq!(said(&roomy.post(CHAT, question).await.ok()), crowd[i], "question {i}");
    }
    let long = ask(&"z".repeat(400), json!({}));
    let error = small.post(CHAT, &long).await.error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(["kv_cache_bytes", " 419 tokens", " 384 tokens"].iter().all(|part| message.contains(part)), "{message}");
    let rest = ask(&"z".repeat(300), json!({"max_tokens": 500, "logit_bias": {"256": -100, "258": -100}}));
    assert_eq!(small.post(CHAT, &rest).await.ok()["usage"]["total_tokens"], 384);
}

#[tokio::test]
async fn an_equal_beginning_is_computed_once_and_changes_nothing() {
    let server = server();
    let question = ask(&"the same long beginning ".repeat(6), json!({}));
    let first = server.post(CHAT, &question).await.ok();
    let second = server.post(CHAT, &question).await.ok();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 100);
    assert_eq!(said(&first), said(&second));
}

#[tokio::test]
async fn stop_strings_n_and_limits_hold() {
    let server = server();
    let whole = server.post(CHAT, &ask("go", json!({"max_tokens": 40, "temperature": 1.0, "seed": 3}))).await.ok();
    let text = said(&whole);
    let chars: Vec<char> = text.chars().collect();
    let cut: String = chars[3..6].iter().collect();
    let stopped = server.post(CHAT, &ask("go", json!({"max_tokens": 40, "temperature": 1.0, "seed": 3, "stop": [cut]}))).await.ok();
    assert_eq!(said(&stopped), &text[..text.find(&cut).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let many = server.post(CHAT, &ask("go", json!({"n": 3, "temperature": 1.2, "seed": 5}))).await.ok();
    let indices: Vec<u64> = many["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_ne!(many["choices"][0]["message"]["content"], many["choices"][1]["message"]["content"]);
}

#[tokio::test]
async fn log_probabilities_add_up_and_echo_scores_the_prompt() {
    let server = server();
    let answer = server.post(CHAT, &ask("go", json!({"logprobs": true, "top_logprobs": 3}))).await.ok();
    for token in answer["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert!((top[0]["logprob"].as_f64().unwrap() - token["logprob"].as_f64().unwrap()).abs() < 1e-6, "greedy takes the likeliest");
    }
    let scored = json!({"model": MODEL, "prompt": "hello", "max_tokens": 0, "echo": true, "logprobs": 1});
    let choice = server.post(COMPLETE, &scored).await.ok()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["logprobs"]["token_logprobs"][0]), (&json!("hello"), &Value::Null));
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2, 3, 4]));
}

#[tokio::test]
async fn an_echoed_prompt_is_the_first_piece_of_a_stream() {
    let server = server();
    let mut body = json!({"model": MODEL, "prompt": ["hello", "you"], "max_tokens": 5, "temperature": 0, "echo": true, "logprobs": 1});
    let whole = server.post(COMPLETE, &body).await.ok();
    body["stream"] = json!(true);
    let stream = server.post(COMPLETE, &body).await.text();
    let pieces = stream.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|d| *d != "[DONE]");
    let pieces: Vec<Value> = pieces.map(|d| serde_json::from_str::<Value>(d).unwrap()["choices"][0].clone()).collect();
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let own: Vec<&Value> = pieces.iter().filter(|p| p["index"] == json!(i)).collect();
        assert_eq!(own.iter().map(|p| p["text"].as_str().unwrap()).collect::<String>(), choice["text"].as_str().unwrap());
        for list in ["tokens", "text_offset"] {
            let told = own.iter().filter_map(|p| p["logprobs"][list].as_array()).flatten().cloned();
            assert_eq!(told.collect::<Vec<Value>>(), *choice["logprobs"][list].as_array().unwrap(), "{list}");
        }
    }
}

#[tokio::test]
async fn offsets_count_the_characters_of_the_text_before_a_token() {
    let server = server();
    let offsets = async |prompt: Value, echo: bool| {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 3, "temperature": 0, "echo": echo, "logprobs": 0,
            "logit_bias": {"97": 100}});
        let choice = server.post(COMPLETE, &body).await.ok()["choices"][0].clone();
        (choice["text"].clone(), choice["logprobs"]["text_offset"].clone())
    };
    // A token a byte, of which those of one character stand where it begins; the answer goes on behind the prompt.
    let text = "日🎉é";
    let places = json!([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 4, 5]);
    assert_eq!(offsets(json!(text), true).await, (json!(format!("{text}aaa")), places.clone()));
    assert_eq!(offsets(json!(text.bytes().collect::<Vec<u8>>()), true).await, (json!(format!("{text}aaa")), places));
    assert_eq!(offsets(json!(text), false).await, (json!("aaa"), json!([0, 1, 2])));
    // A special token that the text leaves out, and one that it spells out.
    assert_eq!(offsets(json!([257, 104, 105]), true).await, (json!("hiaaa"), json!([0, 0, 1, 2, 3, 4])));
    assert_eq!(offsets(json!("<|im_start|>hi"), true).await.1, json!([0, 12, 13, 14, 15, 16]));
}

#[tokio::test]
async fn a_prompt_may_fill_the_context_where_nothing_is_generated() {
    let server = server();
    let body = |length: usize, tokens: u64| {
        let prompt = "x".repeat(length);
        json!({"model": MODEL, "prompt": prompt, "max_tokens": tokens, "echo": true, "logprobs": 0})
    };
    // The same numbers whether something is generated or not, across the chunks of a long prompt and of a single token.
    for length in [1, 2, 256, 257, 300] {
        let (alone, before) = (server.post(COMPLETE, &body(length, 0)).await.ok(), server.post(COMPLETE, &body(length, 1)).await.ok());
        let [alone, before] = [alone, before].map(|answer| answer["choices"][0]["logprobs"]["token_logprobs"].clone());
        assert_eq!(alone.as_array().unwrap()[..], before.as_array().unwrap()[..length], "{length}");
    }
    let choice = server.post(COMPLETE, &body(512, 0)).await.ok()["choices"][0].clone();
    assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), 512);
    for (length, tokens, says) in
        [(512, 1, "an answer needs room for at least one more"), (513, 0, "has 513 tokens, but the model's context")]
    {
        let error = server.post(COMPLETE, &body(length, tokens)).await.error(400);
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}

#[tokio::test]
async fn grammars_are_kept_whatever_the_weights_say() {
    let server = server();
    for seed in 0..3 {
        let format = |f: Value| ask("json", json!({"response_format": f, "max_tokens": 300, "temperature": 1.0, "seed": seed}));
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "emoji": {"enum": ["🦙 é"]}},
            "required": ["n", "emoji"], "additionalProperties": false});
        let answer = server.post(CHAT, &format(json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}))).await.ok();
        let value: Value = serde_json::from_str(said(&answer)).unwrap();
        assert!(value["n"].as_u64().unwrap() < 100 && value["emoji"] == "🦙 é", "{value}");
        let answer = server.post(CHAT, &format(json!({"type": "choice", "choices": ["yes", "no"]}))).await.ok();
        assert!(["yes", "no"].contains(&said(&answer)), "{answer}");
        let answer = server.post(CHAT, &format(json!({"type": "regex", "regex": "[ab]{3}-[0-9]{2}"}))).await.ok();
        assert!(said(&answer).len() == 6 && &said(&answer)[3..4] == "-", "{answer}");
        // Models that cannot chat keep to formats as well.
        let format = json!({"type": "choice", "choices": ["yes", "no"]});
        let body = json!({"model": MODEL, "prompt": "hello", "seed": seed, "response_format": format});
        let answer = server.post(COMPLETE, &body).await.ok()["choices"][0].clone();
        assert!(["yes", "no"].contains(&answer["text"].as_str().unwrap()) && answer["finish_reason"] == "stop", "{answer}");
        let body = json!({"model": MODEL, "input": "hello", "text": {"format": {"type": "regex", "regex": "[0-9]{2}"}}});
        let answer = server.post("/v1/responses", &body).await.ok();
        assert!(answer["output"][0]["content"][0]["text"].as_str().unwrap().parse::<u8>().unwrap() < 100, "{answer}");
    }
    let wrong = ask("x", json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}}));
    assert_eq!(server.post(CHAT, &wrong).await.error(400)["param"], "response_format");
    let none = ask(
        "x",
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}}}}),
    );
    assert_eq!(server.post(CHAT, &none).await.error(400)["param"], "response_format");
    let node = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"], "additionalProperties": false});
    let objekt = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "objekt"}}}});
    for (schema, says) in [(node, "`#` requires itself without end"), (objekt, "at `/properties/a/items`: ")] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let error = server.post(CHAT, &ask("x", json!({"response_format": format}))).await.error(400);
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = server();
    for (extra, param) in [
        (json!({"temperature": -1}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"tempereture": 1}), "tempereture"),
        (json!({"stop": [""]}), "stop[0]"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"100000": 1}}), "logit_bias"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"functions": []}), "functions"),
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"messages": []}), "messages"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
    ] {
        assert_eq!(server.post(CHAT, &ask("x", extra.clone())).await.error(400)["param"], param, "{extra}");
    }
    let error = server.post(CHAT, &ask("x", json!({"messages": [{"role": "wizard", "content": "x"}]}))).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("role"), "{error}");
    let error = server.post(CHAT, &ask(&"x".repeat(1_000_000), json!({}))).await.error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    assert!(error["message"].as_str().unwrap().contains("512 tokens"), "{error}");
    assert_eq!(server.post(CHAT, &ask("x", json!({"model": "no-such"}))).await.error(404)["code"], "model_not_found");
    let suffix = json!({"model": MODEL, "prompt": "x", "suffix": "y"});
    assert_eq!(server.post(COMPLETE, &suffix).await.error(400)["param"], "suffix");
    // More than the queue ever takes is no matter of coming again later.
    let many = json!({"model": MODEL, "prompt": vec!["x"; 100], "n": 12});
    assert_eq!(server.post(COMPLETE, &many).await.error(400)["param"], "n");
    let ids = json!({"model": MODEL, "prompt": [1, 99_999]});
    assert_eq!(server.post(COMPLETE, &ids).await.error(400)["param"], "prompt");
    let classifier = ask("x", json!({"model": "file:bert-tiny"}));
    assert!(server.post(CHAT, &classifier).await.error(400)["message"].as_str().unwrap().contains("classifier"));
}

#[tokio::test]
async fn prompts_and_stops_are_named_by_their_places() {
    let server = server();
    for (extra, param, says) in [
        (json!({"stop": [1]}), "stop[0]", "integer `1`, expected a string"),
        (json!({"stop": 5}), "stop", "integer `5`, expected a text or a list of texts"),
        (json!({"prompt": 5}), "prompt", "integer `5`, expected a text, a list of texts"),
        (json!({"prompt": []}), "prompt", "is empty"),
        (json!({"prompt": ["a", ""]}), "prompt[1]", "has no token"),
        (json!({"prompt": ""}), "prompt", "has no token"),
        (json!({"prompt": [1, -1]}), "prompt[1]", "integer `-1`, expected a text, a token id (a whole number, 0 or more)"),
        (json!({"prompt": [[1], [2, -1]]}), "prompt[1][1]", "a whole number, 0 or more"),
        (json!({"prompt": [[1], [99_999]]}), "prompt[1]", "99999"),
        (json!({"prompt": ["a", 1]}), "prompt[1]", "this is a token id, but the list begins with a text"),
        (json!({"model": ""}), "model", "is empty"),
        (json!({"response_format": "json"}), "response_format", "expected an object with a `type`"),
    ] {
        let mut body = json!({"model": MODEL, "prompt": "x", "max_tokens": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let error = server.post(COMPLETE, &body).await.error(400);
        assert!(error["param"] == param && error["message"].as_str().unwrap().contains(says), "{extra}: {error}");
    }
    let lists = json!({"model": MODEL, "prompt": [[104, 105], [104]], "max_tokens": 1, "stop": null});
    assert_eq!(server.post(COMPLETE, &lists).await.ok()["choices"].as_array().unwrap().len(), 2);
}
