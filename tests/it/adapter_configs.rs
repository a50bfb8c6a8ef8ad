//! What adapter_config.json may say: shown, honoured, warned about, or refused by name.

use serde_json::{Value, json};

use crate::harness::{FIXTURES, Server};
use crate::variants::{Models, chat_modules, load_adapter};

const BASE: &str = "file:base";

async fn logprobs(server: &Server, model: &str) -> Value {
    let body = json!({"model": model, "prompt": "abc", "max_tokens": 2, "temperature": 0, "logprobs": 5});
    server.post("/v1/completions", &body).await.ok()["choices"][0]["logprobs"].clone()
}

#[tokio::test]
async fn a_list_shows_what_every_adapter_is() {
    let models = Models::new();
    models.chat("base");
    models.adapter("a", json!({"r": 4, "lora_alpha": 8}), &chat_modules(&["q_proj", "up_proj"]), 1, 0.1);
    let server = models.serve(&[]);
    let loaded = load_adapter(&server, "mine", "a", BASE).await.ok();
    // Two layers, each with q_proj (32 to 32) and up_proj (32 to 48) of rank 4.
    let parameters = 2 * 4 * ((32 + 32) + (32 + 48));
    for adapter in [&loaded, &server.get("/v1/adapters").await.ok()["data"][0]] {
        assert_eq!((&adapter["r"], &adapter["lora_alpha"], &adapter["use_rslora"]), (&json!(4), &json!(8.0), &json!(false)), "{adapter}");
        assert_eq!((&adapter["base_model"], &adapter["task_type"]), (&json!(BASE), &json!("CAUSAL_LM")));
        assert_eq!((&adapter["target_modules"], &adapter["parameters"]), (&json!(["q_proj", "up_proj"]), &json!(parameters)));
        assert_eq!(adapter["warnings"], json!([]));
    }
    let encoders = Server::with(&["--model-dir", FIXTURES]);
    let load = json!({"lora_name": "five", "lora_path": "lora/bert-five", "base_model": "file:bert-tiny"});
    encoders.post("/v1/load_lora_adapter", &load).await.ok();
    let five = encoders.get("/v1/adapters").await.ok()["data"][0].clone();
    assert_eq!((&five["task_type"], &five["target_modules"]), (&json!("SEQ_CLS"), &json!(["query", "value"])));
    assert!(five["parameters"].as_u64() > Some(100) && five["r"].is_u64() && five["lora_alpha"].is_f64(), "{five}");
}

#[tokio::test]
async fn what_would_be_answered_otherwise_by_peft_is_refused_by_name() {
    let models = Models::new();
    models.chat("base");
    let modules = chat_modules(&["q_proj"]);
    let cases = [
        (json!({"task_type": "SEQ_CLS"}), "task_type"),
        (json!({"task_type": "QUESTION_ANS"}), "task_type"),
        (json!({"peft_type": "IA3"}), "peft_type"),
        (json!({"use_dora": true}), "use_dora"),
        (json!({"bias": "all"}), "bias"),
        (json!({"lora_bias": true}), "lora_bias"),
        (json!({"trainable_token_indices": [3]}), "trainable_token_indices"),
        (json!({"modules_to_save": ["lm_head"]}), "lm_head"),
        (json!({"modules_to_save": ["embed_tokens"]}), "embed_tokens"),
        (json!({"layers_to_transform": [0]}), "layers.1.self_attn.q_proj"),
        (json!({"exclude_modules": ["q_proj"]}), "q_proj"),
        (json!({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}), "layers.1.self_attn.q_proj"),
    ];
    for (i, (extra, _)) in cases.iter().enumerate() {
        let mut config = json!({"r": 4, "lora_alpha": 8});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        models.adapter(&i.to_string(), config, &modules, 1, 0.1);
    }
    // A module that was trained whole, and is there.
    models.adapter("whole", json!({"r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]}), &modules, 1, 0.1);
    let path = models.path("whole/adapter_model.safetensors");
    let mut tensors = crate::tensor_file::TensorFile::read(&std::fs::read(&path).unwrap());
    tensors.0.insert("base_model.model.lm_head.weight".to_owned(), (vec![259, 32], vec![0; 259 * 32 * 4]));
    std::fs::write(&path, tensors.write()).unwrap();
    let server = models.serve(&[]);
    for (i, (extra, name)) in cases.iter().enumerate() {
        let error = load_adapter(&server, "x", &i.to_string(), BASE).await.error(400);
        assert_eq!(error["code"], "adapter_mismatch", "{extra}: {error}");
        assert!(error["message"].as_str().unwrap().contains(name), "{extra}: {error}");
    }
    let error = load_adapter(&server, "x", "whole", BASE).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("lm_head.weight is of a module that was trained whole"), "{error}");
    assert_eq!(server.get("/v1/adapters").await.ok()["data"], json!([]));
}

#[tokio::test]
async fn what_peft_ignores_is_a_warning_and_what_it_honours_counts() {
    let models = Models::new();
    models.chat("base");
    let both = chat_modules(&["q_proj", "v_proj"]);
    let first: Vec<_> = both.iter().filter(|(name, ..)| name.contains("layers.0")).cloned().collect();
    let settings = |extra: Value| {
        let mut config = json!({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    models.adapter("half", settings(json!({"layers_to_transform": [0]})), &first, 5, 0.3);
    models.adapter("untold", settings(json!({})), &first, 5, 0.3);
    models.adapter("flagged", settings(json!({"fan_in_fan_out": true, "modules_to_save": ["score", "value_head"]})), &both, 6, 0.3);
    models.adapter("plain", settings(json!({})), &both, 6, 0.3);
    models.adapter("steep", settings(json!({"alpha_pattern": {"q_proj": 64, ".*": 8}})), &both, 6, 0.3);
    let server = models.serve(&[]);
    let mut warnings = std::collections::BTreeMap::new();
    for name in ["half", "untold", "flagged", "plain", "steep"] {
        warnings.insert(name, load_adapter(&server, name, name, BASE).await.ok()["warnings"].to_string());
    }
    assert_eq!((&warnings["half"][..], &warnings["plain"][..], &warnings["steep"][..]), ("[]", "[]", "[]"));
    assert!(warnings["untold"].contains("model.layers.1.self_attn.q_proj"), "{}", warnings["untold"]);
    assert!(warnings["flagged"].contains("fan_in_fan_out") && warnings["flagged"].contains("value_head"), "{}", warnings["flagged"]);
    assert!(!warnings["flagged"].contains("score"));
    let [half, untold, flagged, plain, steep, base] = {
        let names = ["half", "untold", "flagged", "plain", "steep", BASE];
        futures::future::join_all(names.map(|name| logprobs(&server, name))).await.try_into().unwrap()
    };
    assert_eq!((&half, &flagged), (&untold, &plain));
    assert!(half != base && plain != base && steep != plain);
}
