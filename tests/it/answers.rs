//! How answers are cut, drawn and kept to a form: the cases of the field, each with a text that the model is made to say.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::Server;
use crate::text::{ask, server};
use crate::variants::{Models, chat_modules, load_adapter};

const CHAT: &str = "/v1/chat/completions";
const COMPLETE: &str = "/v1/completions";

/// A request whose answer is this text as a JSON object.
fn says(text: &str, extra: Value) -> Value {
    let schema = json!({"type": "object", "properties": {"t": {"type": "string", "enum": [text]}}, "required": ["t"], "additionalProperties": false});
    let mut all = json!({"max_tokens": 200, "response_format": {"type": "json_schema", "json_schema": {"name": "e", "strict": true, "schema": schema}}});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    ask("go", all)
}

/// A chat's text and reason, whole.
async fn whole(server: &Server, body: &Value) -> (String, String) {
    let choice = server.post(CHAT, body).await.ok()["choices"][0].clone();
    (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].as_str().unwrap().to_owned())
}

/// The same as a stream; every piece has whole characters.
async fn streamed(server: &Server, body: &Value) -> (String, String) {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let answer = server.post(CHAT, &body).await;
    assert_eq!(answer.status, 200);
    let text = String::from_utf8(answer.bytes).unwrap();
    let (mut content, mut reason) = (String::new(), String::new());
    for line in text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|d| *d != "[DONE]") {
        let piece: Value = serde_json::from_str(line).unwrap();
        let choice = &piece["choices"][0];
        content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        assert!(!content.contains('\u{fffd}'), "{piece}");
    }
    (content, reason)
}

/// Both, which are the same.
async fn both(server: &Server, body: &Value) -> (String, String) {
    let answer = whole(server, body).await;
    assert_eq!(streamed(server, body).await, answer, "{body}");
    answer
}

/// The case `serve-stream-utf8-split`: each of these characters is several tokens of a model whose tokens are bytes.
#[tokio::test]
async fn characters_over_several_tokens_come_out_whole_wherever_the_answer_is_cut() {
    let server = server();
    let words = "👩🏽\u{200d}🚀 漢字 e\u{301} 🇳🇴";
    let (text, reason) = both(&server, &says(words, json!({}))).await;
    assert_eq!((serde_json::from_str::<Value>(&text).unwrap()["t"].as_str(), reason.as_str()), (Some(words), "stop"));
    for most in 1..text.len() {
        let answer = server.post(CHAT, &says(words, json!({"max_tokens": most}))).await.ok();
        assert_eq!(answer["usage"]["completion_tokens"], most);
        let (cut, reason) = both(&server, &says(words, json!({"max_tokens": most}))).await;
        assert!(text.starts_with(&cut) && most - cut.len() < 4 && reason == "length", "{most}: {cut}");
    }
}

/// The case `serve-stop-string-across-tokens`.
#[tokio::test]
async fn a_stop_string_ends_the_text_before_it_whatever_tokens_it_covers() {
    let server = server();
    let many: Vec<String> = (0..17).map(|i| format!("x{i}")).collect();
    for (stop, ends) in [
        (json!(["ta gam"]), "alpha be"),
        (json!("ta gam"), "alpha be"),
        // The first in the text counts, not the first in the list.
        (json!(["gamma", "beta"]), "alpha "),
        (json!(["delta", "gamma", "mma d", "amma"]), "alpha beta "),
        (json!(["{"]), ""),
    ] {
        let (text, reason) = both(&server, &says("alpha beta gamma delta", json!({"stop": stop}))).await;
        assert!(text.ends_with(ends) && reason == "stop", "{stop}: {text}");
        assert!(!text.contains("gamma") && (!ends.is_empty() || text.is_empty()), "{stop}: {text}");
    }
    let error = server.post(CHAT, &says("x", json!({"stop": many}))).await.error(400);
    assert!(error["param"] == "stop" && error["message"].as_str().unwrap().contains("16"), "{error}");
}

/// The case `serve-stop-partial-match-tail-lost`.
#[tokio::test]
async fn what_only_might_have_been_a_stop_string_is_in_the_answer() {
    let server = server();
    let (text, reason) = both(&server, &says("done ##", json!({"stop": ["##\"#", "\"}#", "###"]}))).await;
    assert_eq!((serde_json::from_str::<Value>(&text).unwrap(), reason.as_str()), (json!({"t": "done ##"}), "stop"));
    let complete = |stop: Value| json!({"model": crate::text::MODEL, "prompt": "count: 1 2 3", "temperature": 0, "max_tokens": 8, "stop": stop, "logit_bias": {"256": -100, "258": -100}});
    let plain = server.post(COMPLETE, &complete(Value::Null)).await.ok()["choices"][0].clone();
    let text = plain["text"].as_str().unwrap();
    let tail: String = text.chars().skip(text.chars().count() - 2).collect();
    let held = server.post(COMPLETE, &complete(json!([format!("{tail}\u{1}")]))).await.ok()["choices"][0].clone();
    assert_eq!((&held["text"], &held["finish_reason"]), (&plain["text"], &json!("length")));
}

/// The case `serve-json-schema-whitespace-loop`: blank and newline are the likeliest tokens by far.
#[tokio::test]
async fn a_schema_s_answer_ends_although_white_space_is_all_the_model_wants() {
    let server = server();
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 20}, "n": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
        "required": ["a", "n", "ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let bodies = (0..=20).flat_map(|seed| {
        let body = move |bias: Value| json!({"response_format": null, "max_tokens": 300, "temperature": f64::from(u8::from(seed > 0)), "seed": seed, "logit_bias": bias});
        [body(json!({})), body(json!({"32": 100, "10": 100}))]
    });
    let answers = join_all(bodies.map(|mut body| {
        body["response_format"] = format.clone();
        let (server, body) = (&server, ask("List three colours.", body));
        async move { whole(server, &body).await }
    }));
    for (text, reason) in answers.await {
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        assert!(value["a"].as_str().unwrap().chars().count() <= 20 && value["n"].as_u64().unwrap() <= 9 && value["ok"].is_boolean());
        assert!(reason == "stop" && text.ends_with('}'), "{text:?}");
        let outside = text.replace(&value["a"].to_string(), "a");
        let longest = outside.split(|c: char| !c.is_ascii_whitespace()).map(str::len).max();
        assert!(longest <= Some(16), "{text:?}");
    }
}

/// The case `serve-batch-padding-positions`, with learned positions and with rotary ones.
#[tokio::test]
async fn prompts_of_every_length_answer_alike_alone_side_by_side_and_in_a_list() {
    let models = Models::new();
    models.chat("llama").gpt2("gpt2");
    let server = models.serve(&[]);
    for (model, lengths) in [("file:llama", [1, 2, 3, 7, 20, 63, 64, 200]), ("file:gpt2", [1, 2, 3, 7, 15, 31, 32, 44])] {
        let prompts: Vec<String> = lengths.iter().map(|n| "the quick brown fox jumps over it ".repeat(7)[..*n].to_owned()).collect();
        let body = |prompt: Value| json!({"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 5});
        let list = server.post(COMPLETE, &body(json!(prompts))).await.ok();
        let crowd = join_all(prompts.iter().map(|p| {
            let (server, body) = (&server, body(json!(p)));
            async move { server.post(COMPLETE, &body).await.ok() }
        }))
        .await;
        for (i, prompt) in prompts.iter().enumerate() {
            let alone = server.post(COMPLETE, &body(json!(prompt))).await.ok();
            assert_eq!(alone["usage"]["prompt_tokens"], lengths[i]);
            assert_eq!(crowd[i]["choices"], alone["choices"], "{model}: prompt {i}");
            let mut listed = list["choices"][i].clone();
            assert_eq!(listed["index"], i);
            listed["index"] = json!(0);
            assert_eq!(listed, alone["choices"][0], "{model}: prompt {i}");
        }
    }
}

/// The case `serve-seed-in-batch`.
#[tokio::test]
async fn a_seed_gives_its_answers_in_any_company_and_no_seed_gives_others() {
    let models = Models::new();
    models.chat("base").adapter("lora", json!({"r": 4, "lora_alpha": 8}), &chat_modules(&["q_proj", "v_proj"]), 5, 0.3);
    let server = models.serve(&[]);
    load_adapter(&server, "lora", "lora", "file:base").await.ok();
    let body = |model: &str, seed: Option<i64>, n: u64| json!({"model": model, "prompt": "Once", "temperature": 1, "max_tokens": 24, "seed": seed, "n": n});
    let post = async |body: Value| server.post(COMPLETE, &body).await.ok();
    for model in ["file:base", "lora"] {
        let alone = post(body(model, Some(11), 1)).await;
        let noise = (1..=15).map(|i| post(body(if i % 2 == 0 { "lora" } else { "file:base" }, (i % 3 > 0).then_some(i), 1 + i as u64 % 2)));
        let (crowd, _) = futures::join!(post(body(model, Some(11), 1)), join_all(noise));
        assert_eq!(crowd["choices"], alone["choices"]);
        let (four, again) = (post(body(model, Some(11), 4)).await, post(body(model, Some(11), 4)).await);
        assert_eq!(four["choices"], again["choices"]);
        assert_eq!(four["choices"][0]["text"], alone["choices"][0]["text"]);
        let choices = four["choices"].as_array().unwrap();
        assert!(choices.iter().enumerate().all(|(i, c)| c["index"] == i) && choices.iter().any(|c| c["text"] != choices[0]["text"]));
        assert_eq!(four["usage"]["prompt_tokens"], 4);
        let spent: u64 = four["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(spent > 24 && spent <= 96, "{spent}");
    }
    let unseeded = join_all((0..10).map(|_| post(body("file:base", None, 1)))).await;
    assert!(unseeded.iter().any(|a| a["choices"][0]["text"] != unseeded[0]["choices"][0]["text"]));
}
