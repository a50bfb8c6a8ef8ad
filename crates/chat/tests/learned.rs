//! What of a conversation is learned, where no reference of transformers says it: templates that write former turns
//! otherwise, weights, templates without end tokens; and the choice among a model's templates.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tunesmith_chat::{CHATML, ChatTemplate, Message, RenderOptions, Rendered, Role, SpecialTokens, TemplateError, read_messages};

fn fixture(name: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn model(name: &str) -> ChatTemplate {
    let expected: Value = serde_json::from_str(&fixture("expected.json")).unwrap();
    let tokens = SpecialTokens::from_config(expected["tokens"][name].as_object().unwrap());
    ChatTemplate::new(&fixture(&format!("templates/{name}.jinja")), tokens).unwrap()
}

fn plain(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, SpecialTokens { eos: Some("</s>".to_owned()), ..SpecialTokens::default() }).unwrap()
}

fn trained(template: &ChatTemplate, messages: Value, extra: Value) -> Rendered {
    let messages = read_messages(&messages, "messages").unwrap();
    template.render_for_training(&messages, None, extra.as_object().unwrap()).unwrap()
}

/// One of the conversations of the fixtures.
fn talk(name: &str) -> (Value, Value) {
    let talks: Value = serde_json::from_str(&fixture("conversations.json")).unwrap();
    let extra = talks[name].get("extra").cloned().unwrap_or_else(|| json!({}));
    (talks[name]["messages"].clone(), extra)
}

fn learned(rendered: &Rendered) -> Vec<&str> {
    rendered.pieces().into_iter().filter(|(_, learned)| *learned).map(|(text, _)| text).collect()
}

#[test]
fn a_template_that_drops_former_thoughts_is_learned_as_it_is_written() {
    let qwen = model("qwen3");
    for name in ["thinking", "reasoning"] {
        let (messages, extra) = talk(name);
        let rendered = trained(&qwen, messages, extra);
        assert_eq!(learned(&rendered), ["2<|im_end|>", "<think>\nTwo and two.\n</think>\n\n4<|im_end|>"], "{name}");
    }
    let (messages, extra) = talk("thinking_agent");
    let rendered = trained(&qwen, messages, extra);
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Lima\"}}\n</tool_call><|im_end|>";
    let last = "<think>\nNo tool.\n</think>\n\nI do not know.<|im_end|>";
    assert_eq!(learned(&rendered), [call, "21 °C.<|im_end|>", last]);
    let deepseek = model("deepseek-r1");
    let (messages, extra) = talk("thinking");
    let rendered = trained(&deepseek, messages, extra);
    assert_eq!(learned(&rendered), ["\n\n2<｜end▁of▁sentence｜>", "\n\n4<｜end▁of▁sentence｜>"]);
    assert!(rendered.learns_end, "the end stands there already and must not be written twice");
}

#[test]
fn a_thought_that_the_prompt_closes_is_not_learned() {
    let (messages, extra) = talk("no_thinking");
    let rendered = trained(&model("qwen3"), messages, extra);
    assert_eq!(learned(&rendered), ["2<|im_end|>", "4<|im_end|>"]);
    assert!(rendered.text.contains("<think>\n\n</think>\n\n4"));
}

#[test]
fn the_text_before_the_last_answer_is_the_prompt_of_serving() {
    for name in ["smollm2", "llama2", "llama3", "mistral-v3", "qwen2.5", "qwen3", "gemma2", "gemma3", "phi3", "zephyr", "chatml-generation"]
    {
        let template = model(name);
        let (messages, _) = talk("short");
        let rendered = trained(&template, messages.clone(), json!({}));
        let asked = read_messages(&messages, "messages").unwrap();
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let prompt = template.render(&asked[..1], &options).unwrap();
        assert_eq!(rendered.text[..rendered.assistant[0].start], prompt, "{name}");
        assert!(rendered.learns_end, "{name}");
    }
}

#[test]
fn turns_of_weight_0_are_read_and_not_learned() {
    let messages = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1},
        {"role": "user", "content": "e"}, {"role": "assistant", "content": "f", "weight": 0}
    ]);
    for name in ["smollm2", "chatml-generation"] {
        let rendered = trained(&model(name), messages.clone(), json!({}));
        assert_eq!(learned(&rendered), ["d<|im_end|>"], "{name}");
        assert!(rendered.text.contains("b<|im_end|>") && rendered.text.contains("f<|im_end|>"));
    }
    // Two blocks a turn: they are counted message by message.
    let split = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}[{% endgeneration %}{% generation %}{{ m.content }}]\
                 {% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert_eq!(learned(&trained(&plain(split), messages, json!({}))).concat(), "[d]");
}

#[test]
fn a_template_without_end_tokens_is_told_apart() {
    let template =
        plain("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}");
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]);
    let rendered = trained(&template, messages, json!({}));
    assert_eq!(learned(&rendered), ["b\n", "d\n"]);
    assert!(!rendered.learns_end);
    let template = plain("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}");
    let rendered = trained(&template, json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b</s>"}]), json!({}));
    assert!(rendered.learns_end);
    assert_eq!(learned(&rendered), ["assistant: b</s></s>"]);
}

#[test]
fn an_assistant_that_speaks_first_is_found_too() {
    let messages =
        json!([{"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let rendered = trained(
        &plain("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"),
        messages,
        json!({}),
    );
    assert_eq!(learned(&rendered), ["Welcome.</s>", "b</s>"]);
}

#[test]
fn a_template_that_hides_what_the_assistant_says_is_refused_with_the_message_s_index() {
    let template = plain(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% if loop.last %}{{ messages|length }}{% endif %}{% endfor %}",
    );
    let messages = read_messages(
        &json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]),
        "messages",
    )
    .unwrap();
    let error = template.render_for_training(&messages, None, &Map::new()).unwrap_err();
    assert!(matches!(error, TemplateError::Lost { .. }), "{error:?}");
}

#[test]
fn marks_that_a_user_writes_are_text_or_refused() {
    let template = plain(CHATML);
    let mark = "\u{fdd0}\u{10fffe}\u{fdd1}";
    let messages = [Message::new(Role::User, mark), Message::new(Role::Assistant, "b")];
    assert!(template.render(&messages, &RenderOptions::default()).unwrap().contains(mark));
    assert!(template.render_for_training(&messages, None, &Map::new()).is_err());
}

#[test]
fn the_built_in_template_is_chatml() {
    let rendered = trained(&plain(CHATML), json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), json!({}));
    assert_eq!(rendered.text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n");
    assert_eq!(learned(&rendered), ["b<|im_end|>"]);
}

#[test]
fn tool_use_is_taken_for_requests_with_tools_and_default_for_others() {
    let config =
        json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]);
    let template = ChatTemplate::from_config(&config, SpecialTokens::default()).unwrap();
    let messages = [Message::new(Role::User, "a")];
    let render = |tools: Option<&[Value]>| template.render(&messages, &RenderOptions { tools, ..RenderOptions::default() }).unwrap();
    let tools = [json!({"type": "function", "function": {"name": "f"}})];
    assert_eq!(render(None), "plain");
    assert_eq!(render(Some(&[])), "plain");
    assert_eq!(render(Some(&tools)), "tools");
    let none = json!([{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]);
    let error = ChatTemplate::from_config(&none, SpecialTokens::default()).err().unwrap().to_string();
    assert_eq!(error, "the model has chat templates named rag, tool_use, and none of them is \"default\"");
    let error = ChatTemplate::from_config(&json!([{"name": "default"}]), SpecialTokens::default()).err().unwrap().to_string();
    assert!(error.contains("chat_template[0]"), "{error}");
}

#[test]
fn what_cannot_be_compiled_is_told_with_its_line_when_the_model_loads() {
    let config = json!([{"name": "default", "template": "ok"}, {"name": "tool_use", "template": "a\nb {% if %}\n"}]);
    let error = ChatTemplate::from_config(&config, SpecialTokens::default()).err().unwrap();
    assert!(error.to_string().starts_with("the chat template \"tool_use\" cannot be compiled, line 2: "), "{error}");
}

#[test]
fn parts_reach_every_template_in_the_form_that_it_wants() {
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]);
    let single = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
    let render = |template: &ChatTemplate, messages: &Value| {
        template.render(&read_messages(messages, "messages").unwrap(), &RenderOptions::default()).unwrap()
    };
    let text_only = plain("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}");
    assert_eq!(render(&text_only, &parts), "[one\ntwo]");
    let parts_only = plain("{% for m in messages %}[{% for p in m.content %}{{ p.text }};{% endfor %}]{% endfor %}");
    assert_eq!(render(&parts_only, &parts), "[one;two;]");
    assert_eq!(render(&parts_only, &json!([{"role": "user", "content": "plain"}])), "[plain;]");
    for name in ["smollm2", "llama3.1", "qwen3", "gemma3", "phi3"] {
        let template = model(name);
        assert_eq!(render(&template, &single), render(&template, &json!([{"role": "user", "content": "hi"}])), "{name}");
    }
    let systems = json!([{"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}, parts[0]]);
    assert!(render(&model("gemma3"), &systems).contains("one\ntwo"), "a second part of the system's message is not lost");
}

#[test]
fn a_conversation_is_gone_on_with_only_where_that_is_possible() {
    let template = plain(CHATML);
    let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    let messages = [Message::new(Role::User, "a"), Message::new(Role::Assistant, "one, ")];
    assert!(template.render(&messages, &options).unwrap().ends_with("assistant\none, "));
    let both = RenderOptions { add_generation_prompt: true, ..options.clone() };
    assert!(matches!(template.render(&messages, &both), Err(TemplateError::Continue(_))));
    let hiding = plain("{% for m in messages %}{{ m.content | length }}{% endfor %}");
    assert!(matches!(hiding.render(&messages, &options), Err(TemplateError::Continue(_))));
    assert_eq!(template.render(&[], &options), Err(TemplateError::NoMessages));
}

/// SmolLM2's template adds `message['content']` to text, and leaves out what is called.
#[test]
fn a_call_without_content_says_nothing_in_words() {
    let template = model("smollm2");
    let call = |content: Value| {
        json!([{"role": "user", "content": "Lima?"},
            {"role": "assistant", "content": content, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "21"}, {"role": "assistant", "content": "21."}])
    };
    assert_eq!(trained(&template, call(Value::Null), json!({})), trained(&template, call(json!("")), json!({})));
    let messages = read_messages(&call(Value::Null), "messages").unwrap();
    let text = template.render(&messages, &RenderOptions::default()).unwrap();
    assert_eq!(tunesmith_chat::left_out_call(&messages, &text), Some(1));
    assert_eq!(tunesmith_chat::left_out_call(&messages, "<tool_call>weather"), None);
}
