//! Adapters of language models in serving: what their files say, what was cached under another one, and loading under load.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::Server;
use crate::tensor_file::TensorFile;
use crate::text_faults::resident;
use crate::trainer::{download, file_job, succeeded, upload};
use crate::variants::{Models, chat_modules, load_adapter};

const COMPLETE: &str = "/v1/completions";
const BASE: &str = "file:base";

fn body(model: &str, prompt: &str, tokens: u64) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 5})
}

async fn choice(server: &Server, model: &str, prompt: &str, tokens: u64) -> Value {
    server.post(COMPLETE, &body(model, prompt, tokens)).await.ok()["choices"][0].clone()
}

async fn unload(server: &Server, name: &str) -> u16 {
    server.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).await.status
}

/// The case `adapter-rslora-scale`: the same tensors, scaled by 16 / √16 and by 64 / 16.
#[tokio::test]
async fn rank_stabilised_scales_are_read() {
    let models = Models::new();
    let modules = chat_modules(&["q_proj", "v_proj", "up_proj"]);
    models.chat("base");
    models.adapter("stable", json!({"r": 16, "lora_alpha": 16, "use_rslora": true}), &modules, 4, 0.05);
    models.adapter("plain", json!({"r": 16, "lora_alpha": 64, "use_rslora": false}), &modules, 4, 0.05);
    let server = models.serve(&[]);
    for name in ["stable", "plain"] {
        load_adapter(&server, name, name, BASE).await.ok();
    }
    let stable = choice(&server, "stable", "abc", 1).await;
    assert_eq!(stable, choice(&server, "plain", "abc", 1).await);
    assert_ne!(stable["logprobs"], choice(&server, BASE, "abc", 1).await["logprobs"]);
}

/// The case `adapter-gpt2-conv1d`: layers that are stored transposed, one of them square. The logits themselves are compared with
/// PEFT's in the tests of crates/ml.
#[tokio::test]
async fn adapters_of_gpt2_follow_the_layers_and_not_the_flag() {
    let models = Models::new();
    let module = |layer: usize, name: &str, outputs: usize| (format!("transformer.h.{layer}.{name}"), 48, outputs);
    let modules: Vec<_> = (0..3).flat_map(|i| [module(i, "attn.c_attn", 144), module(i, "attn.c_proj", 48)]).collect();
    models.gpt2("base");
    for flag in [true, false] {
        models.adapter(&flag.to_string(), json!({"r": 4, "lora_alpha": 8, "fan_in_fan_out": flag}), &modules, 9, 0.2);
    }
    let server = models.serve(&["--workers", "1"]);
    load_adapter(&server, "told", "true", BASE).await.ok();
    load_adapter(&server, "untold", "false", BASE).await.ok();
    let told = choice(&server, "told", "abc", 8).await;
    assert_eq!(told, choice(&server, "untold", "abc", 8).await);
    assert_ne!(told["logprobs"], choice(&server, BASE, "abc", 8).await["logprobs"]);

    let file = upload(&server, "{\"text\": \"a b c\"}\n".repeat(4)).await;
    let request = json!({"model": BASE, "training_file": file, "seed": 1, "training": {"max_steps": 1, "max_length": 32}, "tuning": {"type": "lora", "r": 4, "target_modules": "all-linear"}});
    let job = succeeded(&server, &file_job(&server, &request).await).await;
    let files = download(&server, job["fine_tuned_model"].as_str().unwrap()).await;
    let config: Value = serde_json::from_slice(&files["adapter_config.json"]).unwrap();
    assert_eq!(config["fan_in_fan_out"], true);
    let tensors = TensorFile::read(&files["adapter_model.safetensors"]);
    for (name, inputs, outputs) in [("attn.c_attn", 48, 144), ("attn.c_proj", 48, 48), ("mlp.c_fc", 48, 192), ("mlp.c_proj", 192, 48)] {
        for layer in 0..3 {
            let shape = |half: &str| tensors.0[&format!("base_model.model.transformer.h.{layer}.{name}.lora_{half}.weight")].0.clone();
            assert_eq!((shape("A"), shape("B")), (vec![4, inputs], vec![outputs, 4]), "{name}");
        }
    }
    assert_eq!(tensors.names().len(), 3 * 4 * 2, "no other layer, lm_head least of all");
}

/// The case `serve-prefix-cache-per-adapter`.
#[tokio::test]
async fn what_was_computed_under_one_adapter_is_never_used_under_another() {
    let models = Models::new();
    let modules = chat_modules(&["k_proj", "v_proj"]);
    models.chat("base");
    models.adapter("a", json!({"r": 8, "lora_alpha": 16}), &modules, 21, 0.3);
    models.adapter("b", json!({"r": 8, "lora_alpha": 16}), &modules, 22, 0.3);
    let prompt = "a long and steady beginning that all of them share, word for word ".repeat(6);
    let names = [("A", "a"), ("B", "b")];
    let mut cold = Vec::new();
    for model in [BASE, "A", "B"] {
        let server = models.serve(&[]);
        for (name, folder) in names {
            load_adapter(&server, name, folder, BASE).await.ok();
        }
        cold.push(choice(&server, model, &prompt, 16).await);
        drop(server);
        std::fs::remove_dir_all(models.path("../data")).unwrap();
    }
    assert!(cold[0] != cold[1] && cold[1] != cold[2]);
    let server = models.serve(&[]);
    for (name, folder) in names {
        load_adapter(&server, name, folder, BASE).await.ok();
    }
    for (round, i) in [0, 1, 2, 1, 0, 0].into_iter().enumerate() {
        let answer = server.post(COMPLETE, &body([BASE, "A", "B"][i], &prompt, 16)).await.ok();
        assert_eq!(answer["choices"][0], cold[i], "round {round}");
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached > 0, round > 2, "round {round}: {cached} tokens");
    }
    // Another adapter under the same name.
    assert_eq!(unload(&server, "A").await, 200);
    load_adapter(&server, "A", "b", BASE).await.ok();
    assert_eq!(choice(&server, "A", &prompt, 16).await, cold[2]);
    // A conversation whose turns go to different models.
    let turn = async |model: &str, messages: &Value| {
        let body = json!({"model": model, "messages": messages, "max_tokens": 8, "temperature": 0});
        server.post("/v1/chat/completions", &body).await.ok()["choices"][0]["message"].clone()
    };
    let mut messages = json!([{"role": "user", "content": prompt[..200]}]);
    let first = turn("B", &messages).await;
    messages.as_array_mut().unwrap().extend([first, json!({"role": "user", "content": "and?"})]);
    let warm = turn(BASE, &messages).await;
    drop(server);
    let server = models.serve(&[]);
    let body = json!({"model": BASE, "messages": messages, "max_tokens": 8, "temperature": 0});
    assert_eq!(server.post("/v1/chat/completions", &body).await.ok()["choices"][0]["message"], warm);
}

/// An adapter's configuration names its base as others know it, without the way to its folder.
#[tokio::test]
async fn a_base_below_the_model_folder_is_found_by_the_name_that_an_adapter_has_for_it() {
    let models = Models::new();
    models.chat("base").chat("deep/down/below").chat("one/twin").chat("two/twin");
    let load = async |server: &Server, folder: &str| {
        let request = json!({"lora_name": folder, "lora_path": format!("file:{folder}")});
        server.post("/v1/load_lora_adapter", &request).await
    };
    for base in ["base", "below", "twin", "nowhere"] {
        let config = json!({"r": 4, "lora_alpha": 8, "base_model_name_or_path": base});
        models.adapter(&format!("on-{base}"), config, &chat_modules(&["q_proj"]), 3, 0.3);
    }
    let server = models.serve(&[]);
    for (base, found) in [("base", BASE), ("below", "file:deep/down/below")] {
        let name = format!("on-{base}");
        assert_eq!(load(&server, &name).await.ok()["base_model"], found);
        assert_eq!(choice(&server, &name, "abc", 4).await["finish_reason"], "length");
    }
    for base in ["twin", "nowhere"] {
        assert_eq!(load(&server, &format!("on-{base}")).await.error(404)["param"], "base_model");
    }
}

/// The case `adapter-load-while-generating`.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_come_and_go_under_load_and_every_answer_is_of_the_one_that_was_asked() {
    const TIME: Duration = Duration::from_secs(4);
    let models = Models::new();
    let modules = chat_modules(&["q_proj", "v_proj", "o_proj", "down_proj"]);
    models.chat("base");
    for (name, seed) in [("red", 31), ("blue", 32)] {
        models.adapter(name, json!({"r": 8, "lora_alpha": 16}), &modules, seed, 0.3);
    }
    let whole = std::fs::read(models.path("red/adapter_model.safetensors")).unwrap();
    models.write("cut", "adapter_config.json", std::fs::read(models.path("red/adapter_config.json")).unwrap());
    models.write("cut", "adapter_model.safetensors", &whole[..whole.len() / 2]);
    let server = models.serve(&[]);
    let mut right = std::collections::BTreeMap::new();
    for name in ["red", "blue"] {
        load_adapter(&server, name, name, BASE).await.ok();
        right.insert(name, choice(&server, name, "colour?", 40).await["text"].as_str().unwrap().to_owned());
    }
    assert_ne!(right["red"], right["blue"]);
    let before = resident(server.pid());
    let (server, right) = (&server, &right);
    let end = Instant::now() + TIME;
    let asks = join_all((0..8).map(|i| async move {
        let mut counts = [0, 0];
        while Instant::now() < end {
            let name = ["red", "blue"][(i + counts[0] + counts[1]) % 2];
            let mut body = body(name, "colour?", 40);
            body["stream"] = json!(true);
            let answer = server.post(COMPLETE, &body).await;
            if answer.status == 404 {
                assert_eq!(answer.json()["error"]["code"], "model_not_found");
                counts[1] += 1;
                continue;
            }
            assert_eq!(answer.status, 200, "{}", answer.text());
            let text: String = answer
                .text()
                .lines()
                .filter_map(|l| l.strip_prefix("data: "))
                .filter(|d| *d != "[DONE]")
                .map(|d| serde_json::from_str::<Value>(d).unwrap()["choices"][0]["text"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(&text, &right[name], "{name}");
            counts[0] += 1;
        }
        counts
    }));
    let churn = async {
        while Instant::now() < end {
            for name in ["red", "blue"] {
                let (one, two) = futures::join!(unload(server, name), unload(server, name));
                let mut both = [one, two];
                both.sort_unstable();
                assert_eq!(both, [200, 404]);
                let (one, two) = futures::join!(load_adapter(server, name, name, BASE), load_adapter(server, name, name, BASE));
                let statuses = [one.status, two.status];
                assert!(statuses.contains(&200) && statuses.iter().all(|s| [200, 409].contains(s)), "{statuses:?}");
            }
        }
    };
    let others = async {
        while Instant::now() < end {
            load_adapter(server, "violet", "blue", BASE).await.ok();
            assert_eq!(choice(server, "violet", "colour?", 40).await["text"], right["blue"].as_str());
            let cut = load_adapter(server, "cut", "cut", BASE).await;
            assert!((400..500).contains(&cut.status), "{}", cut.text());
            assert_eq!(unload(server, "violet").await, 200);
        }
    };
    let (counts, ..) = futures::join!(asks, churn, others);
    assert!(counts.iter().map(|c| c[0]).sum::<usize>() > 20, "{counts:?}");
    let grown = resident(server.pid()).saturating_sub(before);
    // It stands still at about 128 MiB however long this goes on: what threads and pages of the cache keep for their next use.
    assert!(grown < 192 << 20, "{} MiB more than before", grown >> 20);
    let list = server.get("/v1/adapters").await.ok();
    let mut names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|a| a["id"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["blue", "red"]);
}
