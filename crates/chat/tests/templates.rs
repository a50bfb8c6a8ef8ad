//! Our renderings against transformers' own: fixtures/make.py rendered fifteen templates of public models over the
//! conversations, and what its assistant masks cover. Byte for byte, without Python.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value};
use tunesmith_chat::{ChatTemplate, RenderOptions, SpecialTokens, TemplateError, read_messages};

fn fixture(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn json(name: &str) -> Map<String, Value> {
    serde_json::from_str(&fixture(name)).unwrap()
}

fn template(source: &str, tokens: &Value, now: &Value) -> Result<ChatTemplate, TemplateError> {
    let now = now.as_str().unwrap().parse().unwrap();
    let named = vec![("default".to_owned(), source.to_owned())];
    ChatTemplate::with_clock(named, SpecialTokens::from_config(tokens.as_object().unwrap()), move || now)
}

fn render(template: &ChatTemplate, talk: &Value, tools: &Value) -> Result<String, TemplateError> {
    let messages = read_messages(&talk["messages"], "messages").unwrap();
    let tools = tools.as_array().unwrap();
    let flag = |name: &str| talk[name].as_bool().unwrap_or(false);
    let options = RenderOptions {
        tools: flag("tools").then_some(tools.as_slice()),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        extra: talk["extra"].as_object().cloned().unwrap_or_default(),
    };
    template.render(&messages, &options)
}

/// Compares with what Python gave: the text, the template's own refusal, or any failure.
fn disagreement(ours: &Result<String, TemplateError>, theirs: &Value) -> Option<String> {
    let agrees = match ours {
        Ok(text) => theirs["text"] == text.as_str(),
        Err(TemplateError::Raised(message)) => theirs["raised"] == message.as_str(),
        Err(_) => theirs["failed"].is_string(),
    };
    // A call without content says nothing in words here, where transformers hands on what Jinja says.
    let agrees = agrees || theirs["failed"].as_str().is_some_and(|why| why.ends_with("no attribute 'content'"));
    (!agrees).then(|| format!("ours:   {ours:?}\ntheirs: {theirs}"))
}

#[test]
fn templates_of_public_models_render_as_in_transformers() {
    let expected = json("expected.json");
    let talks = json("conversations.json");
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (name, cases) in expected["rendered"].as_object().unwrap() {
        let source = fixture(&format!("templates/{name}.jinja"));
        let template = template(&source, &expected["tokens"][name], &expected["now"]).unwrap();
        for (key, theirs) in cases.as_object().unwrap() {
            let ours = render(&template, &talks[key], &expected["tools"]);
            if let Some(text) = disagreement(&ours, theirs) {
                wrong.push(format!("{name}, {key}\n{text}"));
            }
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared} renderings");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_learned_is_what_the_assistant_mask_of_transformers_covers() {
    let expected = json("expected.json");
    let talks = json("conversations.json");
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (name, cases) in expected["rendered"].as_object().unwrap() {
        let source = fixture(&format!("templates/{name}.jinja"));
        let template = template(&source, &expected["tokens"][name], &expected["now"]).unwrap();
        for (key, theirs) in cases.as_object().unwrap() {
            let Some(spans) = theirs["spans"].as_array() else {
                continue;
            };
            let talk = &talks[key];
            let messages = read_messages(&talk["messages"], "messages").unwrap();
            let tools = expected["tools"].as_array().unwrap();
            let tools = talk["tools"].as_bool().map(|_| tools.as_slice());
            let extra = talk["extra"].as_object().cloned().unwrap_or_default();
            let ours = template.render_for_training(&messages, tools, &extra);
            let spans: Vec<Range<usize>> =
                spans.iter().map(|span| span[0].as_u64().unwrap() as usize..span[1].as_u64().unwrap() as usize).collect();
            compared += 1;
            match ours {
                Ok(ours) if ours.assistant == spans && theirs["text"] == ours.text.as_str() => {}
                Ok(ours) => {
                    let show =
                        |spans: &[Range<usize>]| -> Vec<String> { spans.iter().map(|span| ours.text[span.clone()].to_owned()).collect() };
                    let (ours, theirs) = (show(&ours.assistant), show(&spans));
                    wrong.push(format!("{name}, {key}\nours:   {ours:?}\ntheirs: {theirs:?}"));
                }
                Err(error) => wrong.push(format!("{name}, {key}: {error}")),
            }
        }
    }
    assert!(compared > 100, "{compared} masks");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn small_templates_of_every_feature_render_as_in_jinja() {
    let expected = json("expected.json");
    let talks = json("conversations.json");
    let mut talk = talks["tool_call"].clone();
    talk["extra"] = serde_json::json!({"list": [3, 1, 2], "word": "Äpfel und Birnen", "none_key": null});
    let mut wrong = Vec::new();
    for (source, theirs) in expected["snippets"].as_object().unwrap() {
        let ours = template(source, &expected["tokens"]["llama2"], &expected["now"])
            .and_then(|template| render(&template, &talk, &expected["tools"]));
        if let Some(text) = disagreement(&ours, theirs) {
            wrong.push(format!("{source}\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
