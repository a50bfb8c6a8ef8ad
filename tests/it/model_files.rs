//! Models in the spellings that people have them: GGUF files, templates, end tokens; and files that are no models.

use serde_json::{Value, json};

use crate::harness::Server;
use crate::trainer::{download, file_job, succeeded, upload};
use crate::variants::{Models, chat_modules, load_adapter};

const CHAT: &str = "/v1/chat/completions";
const COMPLETE: &str = "/v1/completions";

fn hello(model: &str, extra: Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn scores(server: &Server, model: &str, prompt: &str) -> Vec<f64> {
    let body = json!({"model": model, "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 0});
    let choice = server.post(COMPLETE, &body).await.ok()["choices"][0].clone();
    choice["logprobs"]["token_logprobs"].as_array().unwrap()[1..].iter().map(|p| p.as_f64().unwrap()).collect()
}

fn assert_close(a: &[f64], b: &[f64]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3), "{a:?}\n{b:?}");
}

/// The case `gguf-qk-rope-layout`: a GGUF file has the rows of queries and keys in an order of its own. Adapters that were made on
/// either form of the model fit the other.
#[tokio::test]
async fn a_gguf_file_answers_like_the_folder_that_it_was_made_of_and_takes_its_adapters() {
    let models = Models::new();
    models.chat("folder").write("gguf", "model.gguf", models.gguf().bytes()).write("gguf", "other.gguf", "not this one");
    models.adapter("lora", json!({"r": 4, "lora_alpha": 8}), &chat_modules(&["q_proj", "k_proj"]), 8, 0.3);
    let server = models.serve(&["--workers", "1"]);
    let prompt = "thirty-two tokens of text or so: the quick brown fox";
    // The file is named, since another one lies beside it.
    let (folder, gguf) = ("file:folder", "file:gguf/model.gguf");
    let plain = scores(&server, folder, prompt).await;
    assert_close(&plain, &scores(&server, gguf, prompt).await);
    let chat = server.post(CHAT, &hello(folder, json!({}))).await.ok();
    assert_eq!(server.post(CHAT, &hello(gguf, json!({}))).await.ok()["choices"], chat["choices"]);
    for (name, base) in [("on-folder", folder), ("on-gguf", gguf)] {
        load_adapter(&server, name, "lora", base).await.ok();
    }
    let changed = scores(&server, "on-folder", prompt).await;
    assert_close(&changed, &scores(&server, "on-gguf", prompt).await);
    assert!(plain.iter().zip(&changed).any(|(a, b)| (a - b).abs() > 0.1));

    let file = upload(&server, "{\"text\": \"the quick brown fox\"}\n".repeat(8)).await;
    let tuning = json!({"type": "lora", "r": 4, "target_modules": ["q_proj", "k_proj"]});
    let request =
        json!({"model": gguf, "training_file": file, "seed": 1, "training": {"max_steps": 20, "learning_rate": 0.02}, "tuning": tuning});
    let job = succeeded(&server, &file_job(&server, &request).await).await;
    let trained = job["fine_tuned_model"].as_str().unwrap();
    for (name, bytes) in download(&server, trained).await {
        models.write("trained", &name, bytes);
    }
    load_adapter(&server, "trained-on-gguf", "trained", folder).await.ok();
    assert_close(&scores(&server, trained, prompt).await, &scores(&server, "trained-on-gguf", prompt).await);

    let full = json!({"model": gguf, "training_file": file, "seed": 1, "training": {"max_steps": 2}, "tuning": {"type": "full"}});
    let job = succeeded(&server, &file_job(&server, &full).await).await;
    let whole = job["fine_tuned_model"].as_str().unwrap();
    for (name, bytes) in download(&server, whole).await {
        models.write("whole", &name, bytes);
    }
    assert_close(&scores(&server, whole, prompt).await, &scores(&server, "file:whole", prompt).await);
}

/// The case `tok-chat-template-engine`. Its templates are compared with Jinja in the tests of crates/chat; here their texts reach the
/// model, byte for byte, since each byte is a token of it.
#[tokio::test]
async fn templates_of_every_feature_reach_the_model_as_jinja_renders_them() {
    let models = Models::new();
    let names = ["blocks", "generation", "time", "json", "python", "raise", "named", "file", "broken"];
    names.iter().for_each(|name| {
        models.chat(name);
    });
    models
        .template("blocks", "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}\nend")
        .template("generation", "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
        .template("time", "{{ strftime_now('%d %b %Y') }}")
        .template("json", "{{ tools | tojson(indent=4) }}{{ messages[0].content | tojson(ensure_ascii=False) }}<tool_call>")
        .template(
            "python",
            "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{{ m.content.strip() }}{{ loop.previtem.content if loop.previtem }}{% endfor %}\
             {{ messages[0].content.split('</think>')[-1].lstrip('\n') }}{{ messages[0].content.startswith(' ') }}{{ ns.n }}",
        )
        .template("raise", "{% if messages[0].role == messages[1].role %}{{ raise_exception('roles must alternate') }}{% endif %}x")
        .edit("named", "tokenizer_config.json", |c| {
            c["chat_template"] = json!([{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tool_use", "template": "{{ tools | length }}<tool_call>tools"}]);
        })
        .edit("file", "tokenizer_config.json", |c| {
            c.as_object_mut().unwrap().remove("chat_template");
        })
        .write("file", "chat_template.jinja", "<{{ messages[0].content }}>")
        .template("broken", "one\ntwo {% for x in %}");
    let server = models.serve(&[]);
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let count = async |model: &str, content: &str, extra: Value| {
        let mut body = json!({"model": format!("file:{model}"), "messages": [{"role": "user", "content": content}], "max_tokens": 1});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.post(CHAT, &body).await.ok()["usage"]["prompt_tokens"].as_u64().unwrap() as usize
    };
    let hi = "  hi \n";
    assert_eq!(count("blocks", hi, json!({})).await, "[  hi \n]\nend".len());
    assert_eq!(count("generation", hi, json!({})).await, hi.len());
    assert_eq!(count("time", hi, json!({})).await, "25 Nov 2026".len());
    let indented = "[\n    {\n        \"type\": \"function\",\n        \"function\": {\n            \"name\": \"f\"\n        }\n    }\n]";
    let quoted = "\"caf\u{e9} <b> & '\"<tool_call>";
    assert_eq!(count("json", "caf\u{e9} <b> & '", json!({"tools": [tool]})).await, indented.len() + quoted.len());
    assert_eq!(count("python", hi, json!({})).await, "hi".len() + hi.len() + "True1".len());
    assert_eq!(count("named", hi, json!({})).await, hi.len());
    assert_eq!(count("named", hi, json!({"tools": [tool]})).await, "1<tool_call>tools".len());
    assert_eq!(count("file", hi, json!({})).await, hi.len() + 2);
    let twice = json!({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]});
    let error = server.post(CHAT, &hello("file:raise", twice)).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("roles must alternate"), "{error}");
    // A template that is none keeps a model from chatting, not from going on with a text.
    let error = server.post(CHAT, &hello("file:broken", json!({}))).await.error(400);
    assert!(error["param"] == "model" && error["message"].as_str().unwrap().contains("line 2"), "{error}");
    server.post(COMPLETE, &json!({"model": "file:broken", "prompt": "x", "max_tokens": 1})).await.ok();
}

/// The case `serve-several-end-tokens`: every file that names an end token counts.
#[tokio::test]
async fn every_end_token_that_some_file_names_ends_an_answer_and_stays_out_of_it() {
    let models = Models::new();
    let silent = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let only = |c: &mut Value| c["eos_token_id"] = json!(256);
    for name in ["list", "template", "differs", "tokenizer", "none"] {
        models.chat(name).edit(name, "config.json", only).edit(name, "tokenizer_config.json", |c| c["eos_token"] = json!("<|endoftext|>"));
    }
    models.edit("list", "generation_config.json", |c| c["eos_token_id"] = json!([256, 258])).template("list", silent);
    models.remove("template", "generation_config.json");
    models.edit("differs", "generation_config.json", |c| c["eos_token_id"] = json!(258)).template("differs", silent);
    models.remove("tokenizer", "generation_config.json").template("tokenizer", silent);
    models.edit("tokenizer", "tokenizer_config.json", |c| c["eos_token"] = json!("<|im_end|>"));
    models.remove("none", "generation_config.json").template("none", silent);
    models.write("gguf", "model.gguf", models.gguf().bytes());
    let server = models.serve(&["--workers", "1"]);
    let wants = async |model: &str, token: &str| {
        let body = hello(model, json!({"max_tokens": 50, "logit_bias": {token: 100}, "stop": []}));
        let answer = server.post(CHAT, &body).await.ok();
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap().to_owned();
        (text, choice["finish_reason"].as_str().unwrap().to_owned(), answer["usage"]["completion_tokens"].as_u64().unwrap())
    };
    for model in ["list", "template", "differs", "tokenizer", "gguf"] {
        for end in ["256", "258"] {
            assert_eq!(wants(&format!("file:{model}"), end).await, (String::new(), "stop".to_owned(), 1), "{model}: {end}");
        }
    }
    assert_eq!(wants("file:none", "258").await.1, "length");

    let row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ok"}]});
    let file = upload(&server, format!("{row}\n").repeat(4)).await;
    let full = json!({"model": "file:list", "training_file": file, "seed": 1, "training": {"max_steps": 1}, "tuning": {"type": "full"}});
    let job = succeeded(&server, &file_job(&server, &full).await).await;
    let model = job["fine_tuned_model"].as_str().unwrap();
    assert_eq!(wants(model, "258").await, (String::new(), "stop".to_owned(), 1));
    let files = download(&server, model).await;
    let kept: Value = serde_json::from_slice(&files["generation_config.json"]).unwrap();
    assert_eq!(kept["eos_token_id"], json!([256, 258]));
    let lora = json!({"model": "file:list", "training_file": file, "seed": 1, "training": {"max_steps": 1}});
    let job = succeeded(&server, &file_job(&server, &lora).await).await;
    assert_eq!(wants(job["fine_tuned_model"].as_str().unwrap(), "258").await.1, "stop");
}

#[tokio::test]
async fn files_that_are_no_models_are_refused_by_what_is_wrong_with_them() {
    let models = Models::new();
    let gguf = models.gguf().bytes();
    models.write("cut", "m.gguf", &gguf[..gguf.len() / 2]).write("short", "m.gguf", "GGUF").write("empty", "m.gguf", "");
    models.write("noise", "m.gguf", [b"GGUF".as_slice(), &[0x5a; 4000]].concat());
    models.write("two", "a.gguf", &gguf).write("two", "b.gguf", &gguf);
    let mut many = gguf.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    models.write("many", "m.gguf", many);
    for name in ["loop", "allocate", "json", "config", "id", "weights", "heads", "tokenizer", "unsized"] {
        models.chat(name);
    }
    models.template("loop", "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}");
    models.template("allocate", "{{ 'x' * 1000000000 }}");
    models.write("json", "tokenizer.json", "{").write("config", "config.json", "[]").remove("tokenizer", "tokenizer.json");
    models.edit("id", "tokenizer.json", |t| t["added_tokens"][0]["id"] = json!(u32::MAX));
    models.write("weights", "model.safetensors", [7; 5000]);
    models.edit("heads", "config.json", |c| c["num_attention_heads"] = json!(0));
    models.edit("unsized", "config.json", |c| c["hidden_size"] = json!(-1));
    let server = models.serve(&[]);
    for (name, says) in [
        ("cut", "cut off"),
        ("short", "GGUF"),
        ("empty", "GGUF"),
        ("noise", "version"),
        ("many", "GGUF"),
        ("two", "2 GGUF files"),
        ("loop", "template"),
        ("allocate", "template"),
        ("json", "tokenizer.json"),
        ("tokenizer", "tokenizer.json"),
        ("config", "config.json"),
        ("id", "4294967295"),
        ("weights", "model.safetensors"),
        ("heads", "num_attention_heads"),
        ("unsized", "hidden_size"),
    ] {
        let error = server.post(CHAT, &hello(&format!("file:{name}"), json!({}))).await.error(400);
        assert!(error["param"] == "model" && error["message"].as_str().unwrap().contains(says), "{name}: {error}");
        assert!(!error.to_string().contains(models.path("").to_str().unwrap()), "a path of the server: {error}");
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Names that look like bytes and are none are words to `tokenizers`; llguidance panics at them.
#[tokio::test]
async fn a_tokenizer_with_odd_names_of_bytes_answers() {
    let models = Models::new();
    models.chat("m").edit("m", "tokenizer.json", |t| {
        t["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        for (old, new) in [("a", "<0xZZ>"), ("b", "<0xcafe>"), ("c", "<0x\u{e9}>"), ("d", "<0x41>")] {
            let id = vocab.remove(old).unwrap();
            vocab.insert(new.to_owned(), id);
        }
    });
    let server = models.serve(&[]);
    for (id, text) in [("97", "<0xZZ>"), ("98", "<0xcafe>"), ("99", "<0x\u{e9}>"), ("100", "A")] {
        let body = json!({"model": "file:m", "prompt": "x", "max_tokens": 2, "logit_bias": {id: 100}, "temperature": 0});
        assert_eq!(server.post(COMPLETE, &body).await.ok()["choices"][0]["text"], text.repeat(2));
    }
}
