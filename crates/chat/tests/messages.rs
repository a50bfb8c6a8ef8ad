//! Messages as requests and files spell them: what is read, what is refused and with which words, and the way back.
#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value, json};
use tunesmith_chat::{Content, Message, Role, RowFormat, parse_row, read_message, read_messages};

fn refusal(messages: Value) -> String {
    read_messages(&messages, "messages").unwrap_err().to_string()
}

#[test]
fn openai_s_forms_of_content_are_read() {
    let text = read_message(&json!({"role": "user", "content": "hi"}), "").unwrap();
    assert_eq!(text, Message::new(Role::User, "hi"));
    let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
    let parts = read_message(&parts, "").unwrap();
    assert_eq!(parts.content, Some(Content::Parts(vec!["a".to_owned(), "b".to_owned()])));
    assert_eq!(parts.text(), "a\nb");
    let developer = read_message(&json!({"role": "developer", "content": "be brief"}), "").unwrap();
    assert_eq!(developer.role, Role::System);
    for key in ["reasoning_content", "reasoning", "thinking"] {
        let message = read_message(&json!({"role": "assistant", "content": "4", key: "2 and 2"}), "").unwrap();
        assert_eq!(message.reasoning.as_deref(), Some("2 and 2"), "{key}");
    }
}

#[test]
fn an_answer_of_ours_can_be_sent_back_as_it_came() {
    let answer = json!({"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null, "function_call": null,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2}"}}]});
    let message = read_message(&answer, "").unwrap();
    assert_eq!(message.content, None);
    let written = serde_json::to_value(&message).unwrap();
    assert_eq!(written["tool_calls"], answer["tool_calls"]);
    assert_eq!(serde_json::from_value::<Message>(written).unwrap(), message);
}

#[test]
fn calls_as_data_sets_write_them_become_openai_s() {
    for call in [
        json!({"name": "f", "arguments": {"b": 1, "a": 2}}),
        json!({"function": {"name": "f", "arguments": {"b": 1, "a": 2}}}),
        json!({"type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":2}"}}),
    ] {
        let message = read_message(&json!({"role": "assistant", "tool_calls": [call]}), "").unwrap();
        assert_eq!((message.tool_calls[0].name.as_str(), message.tool_calls[0].arguments.as_str()), ("f", r#"{"b":1,"a":2}"#));
    }
}

#[test]
fn refusals_name_the_path_what_was_found_and_what_belongs_there() {
    let user = json!({"role": "user", "content": "a"});
    let cases = [
        (json!({}), "messages: found an empty object, expected a list of messages"),
        (json!([]), "messages: found an empty list, expected at least one message"),
        (json!([user, 3]), "messages[1]: found the number 3, expected a message such as"),
        (json!([user, user, {"role": "bot", "content": "a"}]), "messages[2].role: found \"bot\", expected one of system, developer, user"),
        (json!([{"content": "a"}]), "messages[0].role: found nothing, expected one of"),
        (json!([{"role": "function", "content": "a"}]), "messages[0].role: found \"function\", expected role \"tool\""),
        (json!([{"role": "user", "content": null}]), "messages[0].content: found null, expected a string"),
        (json!([{"role": "user"}]), "messages[0].content: found nothing, expected a string"),
        (
            json!([{"role": "assistant", "content": null, "tool_calls": []}]),
            "messages[0].content: found null, expected a string; content may",
        ),
        (json!([{"role": "user", "content": {"a": 1}}]), "messages[0].content: found an object with a, expected a string, or a list"),
        (json!([{"role": "user", "content": []}]), "messages[0].content: found an empty list, expected a string, or a list"),
        (json!([{"role": "user", "content": ["a"]}]), "messages[0].content[0]: found \"a\", expected a part such as"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0].type: found \"image_url\", expected \"text\"",
        ),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text: found nothing, expected a string"),
        (
            json!([{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]),
            "messages[0].content[0].x: found the number 1, expected no such field",
        ),
        (json!([{"role": "user", "content": "a", "foo": true}]), "messages[0].foo: found true, expected no such field; a message has"),
        (json!([{"role": "assistant", "content": "a", "weight": 0.5}]), "messages[0].weight: found the number 0.5, expected 0 or 1"),
        (json!([{"role": "user", "content": "a", "weight": 1}]), "messages[0].weight: found it in a message of role user, expected it"),
        (json!([{"role": "user", "content": "a", "name": 1}]), "messages[0].name: found the number 1, expected a string"),
        (json!([{"role": "assistant", "tool_calls": [{"type": "custom"}]}]), "messages[0].tool_calls[0].type: found \"custom\""),
        (json!([{"role": "assistant", "tool_calls": [{"id": "x"}]}]), "messages[0].tool_calls[0].function: found nothing"),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}]),
            "messages[0].tool_calls[0].function.arguments: found the number 3, expected JSON text, or an object",
        ),
        (
            json!([{"role": "assistant", "content": "", "function_call": {"name": "f"}}]),
            "messages[0].function_call: found an object with name",
        ),
    ];
    for (messages, expected) in cases {
        let found = refusal(messages.clone());
        assert!(found.starts_with(expected), "{messages}\nfound:    {found}\nexpected: {expected}");
    }
}

#[test]
fn long_texts_are_shortened_in_refusals() {
    let found = refusal(json!([{"role": "é".repeat(100_000), "content": "a"}]));
    assert!(found.len() < 300, "{found}");
}

/// The lines of the case `data-chat-format-errors` that are one row's matter; whole files are the data crate's.
#[test]
fn the_faults_of_chat_files_are_told_by_field() {
    let row = |value: Value| -> Map<String, Value> { value.as_object().unwrap().clone() };
    let ok = json!({"role": "assistant", "content": "b"});
    let cases = [
        (json!({"message": []}), "messages"),
        (json!({"messages": [{"role": "bot", "content": "a"}, ok]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": null}, ok]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": {"a": 1}}, ok]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": "a"}]}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "user", "content": "a", "foo": 1}, ok]}), "messages[0].foo"),
        (json!({"prompt": "a", "completion": "b"}), "messages"),
    ];
    for (value, path) in cases {
        let error = parse_row(RowFormat::Messages, &row(value.clone())).unwrap_err();
        assert_eq!(error.path, path, "{value}: {error}");
    }
    // An empty answer is learned as the end of a turn.
    let empty = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]});
    assert!(parse_row(RowFormat::Messages, &row(empty)).is_ok());
}
