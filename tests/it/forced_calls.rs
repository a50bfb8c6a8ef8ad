//! Calls of tools: whatever the weights say, what a model calls is a function that exists, in the spelling of its family.

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
    spell_a_token(&models, "special", "[TOOL_CALLS]");
    (models, ["hermes", "mistral", "llama", "special"])
}

/// Gives one of a model's special tokens another text.
fn spell_a_token(models: &Models, name: &str, text: &str) {
    models.edit(name, "tokenizer.json", |t| {
        t["added_tokens"][1]["content"] = json!(text);
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("<|im_start|>").unwrap();
        vocab.insert(text.to_owned(), id);
    });
}

/// The id of that token.
const MARK: &str = "257";

#[tokio::test]
async fn an_answer_that_must_be_a_call_is_one_in_every_spelling() {
    let (models, names) = models();
    let server = models.serve(&[]);
    for name in names {
        for seed in 0..6 {
            let named = json!({"type": "function", "function": {"name": "moon"}});
            let choice = if seed % 2 == 0 { json!("required") } else { named };
            let mut body = json!({"model": format!("file:{name}"), "messages": [{"role": "user", "content": "go"}], "max_tokens": 400, "seed": seed,
                "tools": tools(), "tool_choice": choice, "parallel_tool_calls": false});
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
            let called: Vec<&Value> = deltas.iter().filter_map(|d| d["delta"]["tool_calls"].get(0)).collect();
            assert!(called.iter().all(|c| c["index"] == 0), "{text}");
            let begin = |c: &&&Value| c["function"].get("name").is_some();
            assert_eq!(called.iter().filter(begin).count(), 1, "{text}");
            assert_eq!((&called[0]["function"]["name"], &called[0]["type"]), (&function["name"], &json!("function")));
            // Arguments come as they are written, piece by piece, to the same text.
            let arguments: Vec<&str> = called.iter().map(|c| c["function"]["arguments"].as_str().unwrap()).collect();
            assert!(arguments.len() > 3 && arguments.concat() == function["arguments"].as_str().unwrap(), "{text}");
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
        (
            tools(),
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [{"function": {"name": "moon"}}]}}),
            "tool_choice",
        ),
        (
            tools(),
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "sun"}}]}}),
            "tool_choice",
        ),
        (json!([tools()[0], tools()[0]]), json!("auto"), "tools[1].function.name"),
        (of(json!({"type": "string"})), json!("auto"), "tools[0].function.parameters.type"),
        (of(json!({"type": "object", "properties": {"a": {"not": {}}}})), json!("required"), "tools"),
        (of(json!({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": false})), json!("required"), "tools"),
    ] {
        let error = server.post(CHAT, &body(tools, choice)).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    // Where no call is asked for, a tool's schema is for the model to read, unless it is to be kept strictly.
    server.post(CHAT, &body(of(json!({"not": {}})), json!("auto"))).await.ok();
    let mut strict = of(json!({"type": "object", "properties": {"a": {"type": "objekt"}}}));
    strict[0]["function"]["strict"] = json!(true);
    let error = server.post(CHAT, &body(strict, json!("auto"))).await.error(400);
    assert!(error["param"] == "tools" && error["message"].as_str().unwrap().contains("/properties/a"), "{error}");
    server.post(CHAT, &body(tools(), json!("none"))).await.ok();
}

/// A model that likes nothing better than to call: the mark of a call is a token, and it has the greatest bias.
fn caller(name: &str) -> Models {
    let models = Models::new();
    let mark = if name == "mistral" { "[TOOL_CALLS]" } else { "<tool_call>" };
    models.chat(name).template(name, &format!("{{% if tools %}}{mark}{{% endif %}}{TALK}"));
    spell_a_token(&models, name, mark);
    models
}

#[tokio::test]
async fn a_call_that_nobody_asked_for_is_whole_too_and_of_a_function_that_exists() {
    for name in ["hermes", "mistral"] {
        let models = caller(name);
        let server = models.serve(&[]);
        let mut tools = tools();
        tools[0]["function"]["strict"] = json!(true);
        let only = |mode: &str, name: &str| json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [{"type": "function", "function": {"name": name}}]}});
        for (seed, choice) in (0..).zip([json!("auto"), only("auto", "weather"), only("required", "weather"), only("auto", "moon")]) {
            let body = json!({"model": format!("file:{name}"), "messages": [{"role": "user", "content": "go"}], "max_tokens": 300, "seed": seed,
                "tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "logit_bias": {MARK: 100}});
            let answer = server.post(CHAT, &body).await.ok()["choices"][0].clone();
            let calls = answer["message"]["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
            // A call of the function without a strict schema may be too long to end.
            if answer["finish_reason"] == "length" {
                assert!(calls.len() <= 1 && choice != only("auto", "weather") && choice != only("required", "weather"), "{answer}");
                continue;
            }
            assert_eq!((calls.len(), &answer["finish_reason"]), (1, &json!("tool_calls")), "{answer}");
            let function = &calls[0]["function"];
            let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
            assert!(arguments.is_object());
            assert!(function["name"] != "weather" || ["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{answer}");
            if let Some(only) = choice["allowed_tools"]["tools"][0]["function"]["name"].as_str() {
                assert_eq!(function["name"], only);
            }
        }
    }
}

#[tokio::test]
async fn an_answer_has_several_calls_unless_parallel_ones_are_off() {
    let models = caller("hermes");
    let server = models.serve(&[]);
    let mut tools = json!([tools()[0]]);
    tools[0]["function"]["strict"] = json!(true);
    let body = |parallel: Value| {
        json!({"model": "file:hermes", "messages": [{"role": "user", "content": "go"}], "max_tokens": 400, "seed": 1,
        "tools": tools, "parallel_tool_calls": parallel, "logit_bias": {MARK: 100}})
    };
    let calls = async |parallel: Value| {
        let answer = server.post(CHAT, &body(parallel)).await.ok()["choices"][0].clone();
        (answer["message"]["tool_calls"].as_array().map_or(0, Vec::len), answer["finish_reason"].clone())
    };
    assert_eq!(calls(json!(false)).await, (1, json!("tool_calls")));
    assert!(calls(json!(null)).await.0 > 1);
}

#[tokio::test]
async fn an_answer_with_tools_and_a_format_keeps_to_one_of_them() {
    let (models, names) = models();
    let server = models.serve(&[]);
    for name in names {
        for seed in 0..4 {
            let body = json!({"model": format!("file:{name}"), "messages": [{"role": "user", "content": "go"}], "max_tokens": 400, "seed": seed,
                "tools": tools(), "response_format": {"type": "choice", "choices": ["yes", "no"]}});
            let answer = server.post(CHAT, &body).await.ok()["choices"][0].clone();
            let (content, called) = (answer["message"]["content"].as_str(), !answer["message"]["tool_calls"].is_null());
            assert!(called || answer["finish_reason"] == "length" || ["yes", "no"].contains(&content.unwrap()), "{name}: {answer}");
        }
    }
}

#[tokio::test]
async fn text_beside_tools_is_what_it_would_be_without_a_grammar() {
    let (models, names) = models();
    let server = models.serve(&[]);
    for name in names {
        for seed in 0..4 {
            // The template writes the same prompt for both requests but for what it says of tools.
            let body = |tools: Value, content: &str| {
                json!({"model": format!("file:{name}"), "messages": [{"role": "user", "content": content}],
                "max_tokens": 30, "seed": seed, "tools": tools})
            };
            let answer = server.post(CHAT, &body(tools(), "go")).await.ok();
            let taught = match name {
                "hermes" => "<tool_call>",
                "llama" => "\"parameters\"",
                _ => "[TOOL_CALLS]",
            };
            let plain = server.post(CHAT, &body(Value::Null, &format!("{taught}go"))).await.ok();
            assert_eq!(answer["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"], "{name}");
            let (with, without) = (&answer["choices"][0]["message"]["content"], &plain["choices"][0]["message"]["content"]);
            if std::str::from_utf8(without.as_str().unwrap().as_bytes()).is_ok() && !without.as_str().unwrap().contains('\u{fffd}') {
                assert_eq!(with, without, "{name} {seed}");
            }
        }
    }
}
