//! `tool_choice` that asks for a call: whatever the weights say, the answer is one, in the spelling of the model's family.

use serde_json::{Value, json};

use crate::variants::Models;

const CHAT: &str = "/v1/chat/completions";
const TALK: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

fn tools() -> Value {
    let city =
        json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": false});
    let day = json!({"type": "object", "properties": {"day": {"type": "integer", "minimum": 1, "maximum": 31}}, "required": ["day"], "additionalProperties": false});
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": city}},
        {"type": "function", "function": {"name": "moon", "parameters": day}},
    ])
}

/// Families by what their templates teach. In the last one the mark is a special token of the tokenizer.
fn models() -> (Models, [&'static str; 4]) {
    let models = Models::new();
    for (name, teaches) in
        [("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("llama", "{{ '\"parameters\"' }}"), ("special", "[TOOL_CALLS]")]
    {
        models.chat(name).template(name, &format!("{{% if tools %}}{teaches}{{% endif %}}{TALK}"));
    }
    models.edit("special", "tokenizer.json", |t| {
        t["added_tokens"][1]["content"] = json!("[TOOL_CALLS]");
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("<|im_start|>").unwrap();
        vocab.insert("[TOOL_CALLS]".to_owned(), id);
    });
    (models, ["hermes", "mistral", "llama", "special"])
}

#[tokio::test]
async fn an_answer_that_must_be_a_call_is_one_in_every_spelling() {
    let (models, names) = models();
    let server = models.serve(&[]);
    for name in names {
        for seed in 0..6 {
            let named = json!({"type": "function", "function": {"name": "moon"}});
            let choice = if seed % 2 == 0 { json!("required") } else { named };
            let mut body = json!({"model": format!("file:{name}"), "messages": [{"role": "user", "content": "go"}], "max_tokens": 400, "seed": seed,
                "tools": tools(), "tool_choice": choice});
            let answer = server.post(CHAT, &body).await.ok()["choices"][0].clone();
            assert_eq!((&answer["finish_reason"], &answer["message"]["content"]), (&json!("tool_calls"), &Value::Null), "{name}: {answer}");
            let calls = answer["message"]["tool_calls"].as_array().unwrap();
            assert_eq!(calls.len(), 1);
            let function = &calls[0]["function"];
            let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            match function["name"].as_str().unwrap() {
                "moon" => assert!((1..=31).contains(&arguments["day"].as_i64().unwrap()), "{arguments}"),
                "weather" => assert!(seed % 2 == 0 && ["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}"),
                other => panic!("{other}"),
            }
            body["stream"] = json!(true);
            let text = server.post(CHAT, &body).await.text();
            let pieces = text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|d| *d != "[DONE]");
            let deltas: Vec<Value> = pieces.map(|d| serde_json::from_str::<Value>(d).unwrap()["choices"][0].clone()).collect();
            let called: Vec<&Value> = deltas.iter().filter_map(|d| d["delta"].get("tool_calls")).collect();
            assert_eq!(called.len(), 1, "{text}");
            assert_eq!((&called[0][0]["function"], &called[0][0]["index"]), (function, &json!(0)));
            assert!(deltas.iter().all(|d| d["delta"]["content"].as_str().unwrap_or_default().is_empty()), "{text}");
            assert_eq!(deltas.last().unwrap()["finish_reason"], "tool_calls");
        }
    }
}

#[tokio::test]
async fn a_call_that_cannot_be_made_is_refused() {
    let (models, _) = models();
    let server = models.serve(&[]);
    let body = |tools: Value, choice: Value| json!({"model": "file:hermes", "messages": [{"role": "user", "content": "go"}], "max_tokens": 9, "tools": tools, "tool_choice": choice});
    let of = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    for (tools, choice, param) in [
        (Value::Null, json!("required"), "tool_choice"),
        (tools(), json!({"type": "function", "function": {"name": "sun"}}), "tool_choice"),
        (tools(), json!("always"), "tool_choice"),
        (tools(), json!({"type": "allowed_tools"}), "tool_choice"),
        (of(json!({"type": "object", "properties": {"a": {"not": {}}}})), json!("required"), "tools"),
        (of(json!({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": false})), json!("required"), "tools"),
    ] {
        let error = server.post(CHAT, &body(tools, choice)).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    // Where no call is asked for, a tool's schema is for the model to read.
    server.post(CHAT, &body(of(json!({"not": {}})), json!("auto"))).await.ok();
    server.post(CHAT, &body(tools(), json!("none"))).await.ok();
}
