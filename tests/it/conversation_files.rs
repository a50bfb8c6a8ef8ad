//! Files of conversations and of plain text: what is wrong is told at upload, or when a job would read them as conversations.

use serde_json::{Value, json};

use crate::trainer::{JOBS, file_job, server, succeeded, upload};

const MODEL: &str = "file:decoders/chat-tiny";

fn talk(content: Value) -> Value {
    json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]})
}

/// The case `data-chat-format-errors`.
#[tokio::test]
async fn faults_of_conversations_are_named_by_line_and_field() {
    let server = server();
    let answer = json!({"role": "assistant", "content": "b"});
    let with = |first: Value| json!({"messages": [first, answer]}).to_string();
    let lines = [
        talk(json!("a")).to_string(),
        json!([{"role": "user", "content": "a"}]).to_string(),
        json!({"message": [{"role": "user", "content": "a"}, answer]}).to_string(),
        with(json!({"role": "bot", "content": "a"})),
        with(json!({"role": "user", "content": null})),
        with(json!({"role": "user", "content": {"a": 1}})),
        json!({"messages": [{"role": "user", "content": "a"}]}).to_string(),
        json!({"messages": []}).to_string(),
        with(json!({"role": "user", "content": "a", "foo": 1})),
        json!({"prompt": "a", "completion": "b"}).to_string(),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}).to_string(),
        format!("{} {}", talk(json!("a")), talk(json!("b"))),
    ];
    let error = server.upload("chat.jsonl", lines.join("\n")).await.error(400);
    assert_eq!(error["param"], "file");
    let told: Vec<&str> = error["message"].as_str().unwrap().lines().collect();
    for (line, part) in [
        (2, "array"),
        (3, "\"messages\" is missing"),
        (4, "messages[0].role"),
        (5, "messages[0].content"),
        (6, "messages[0].content"),
        (7, "assistant"),
        (8, "messages"),
        (9, "messages[0].foo"),
        (10, "messages"),
        (12, "one JSON object"),
    ] {
        assert!(told.iter().any(|t| t.starts_with(&format!("line {line}: ")) && t.contains(part)), "line {line}: {told:#?}");
    }
    // An empty answer is learned as the end of a turn.
    assert!(!told.iter().any(|t| t.starts_with("line 1: ") || t.starts_with("line 11: ")), "{told:#?}");
    assert_eq!(server.get("/v1/files").await.ok()["data"], json!([]));

    let many: String = (0..30).map(|_| with(json!({"role": "bot", "content": "a"})) + "\n").collect();
    let error = server.upload("chat.jsonl", talk(json!("a")).to_string() + "\n" + &many).await.error(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("30 problems") && message.ends_with("and 10 more") && message.lines().count() == 22, "{message}");

    let array = serde_json::to_string_pretty(&json!([talk(json!("a"))])).unwrap();
    let error = server.upload("x.jsonl", array).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("line 1: found a JSON array; expected one JSON object a line"), "{error}");

    // Parts of text are the text.
    let mut tokens = Vec::new();
    for content in [json!("hi"), json!([{"type": "text", "text": "hi"}])] {
        let file = upload(&server, talk(content).to_string()).await;
        let request = json!({"model": MODEL, "training_file": file, "dry_run": true});
        tokens.push(server.post(JOBS, &request).await.ok()["train_tokens"].clone());
    }
    assert_eq!(tokens[0], tokens[1]);
}

#[tokio::test]
async fn columns_that_only_might_be_conversations_are_judged_by_the_job_that_reads_them() {
    let server = server();
    for (row, field) in [
        (json!({"prompt": "good film", "completion": 1}), "completion"),
        (json!({"instruction": "sum up", "input": "", "output": ""}), "output"),
        (json!({"messages": "a text", "label": "x"}), "messages"),
    ] {
        let file = upload(&server, format!("{row}\n").repeat(3)).await;
        let request = json!({"model": MODEL, "training_file": file, "task": "instruction"});
        let error = server.post(JOBS, &request).await.error(400);
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["param"], "training_file");
        assert!(message.contains("3 problems") && message.contains("line 2: ") && message.contains(&format!("\"{field}\"")), "{message}");
    }
    let turns = json!({"conversations": [{"from": "human", "value": "hi"}, {"from": "alien", "value": "hello"}]});
    let error = server.upload("share.jsonl", turns.to_string()).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("line 1: field \"conversations[1].from\""), "{error}");
    // For classification, such columns are what they always were.
    let rows: String = (0..8).map(|i| format!("{}\n", json!({"prompt": format!("text {i}"), "completion": i % 2}))).collect();
    let file = upload(&server, rows).await;
    let classify = json!({"model": "file:bert-tiny", "training_file": file, "task": "classification", "dry_run": true, "data": {"text_column": "prompt", "label_column": "completion"}});
    server.post(JOBS, &classify).await.ok();
}

#[tokio::test]
async fn lines_of_a_text_file_are_rows() {
    let server = server();
    let text = "\u{feff}First line.\r\n\r\n   \nSecond \"line\", with {braces}.\nthird";
    let file = server.upload("notes.txt", text).await.ok();
    assert_eq!((&file["summary"]["format"], &file["summary"]["rows"]), (&json!("text"), &json!(3)));
    let request =
        json!({"model": MODEL, "training_file": file["id"], "seed": 1, "training": {"max_steps": 2}, "data": {"validation_split": 0}});
    let job = succeeded(&server, &file_job(&server, &request).await).await;
    assert_eq!(job["task"], "causal_lm");
    let mut dry = request;
    dry["dry_run"] = json!(true);
    // A token a byte, and an end behind each row.
    assert_eq!(
        server.post(JOBS, &dry).await.ok()["train_tokens"],
        "First line.".len() + "Second \"line\", with {braces}.".len() + "third".len() + 3
    );
    let error = server.upload("notes.txt", b"good\nb\xffd\n".as_slice()).await.error(400);
    assert!(error["message"].as_str().unwrap().contains("line 2: found invalid UTF-8"), "{error}");
    let error = server.upload("empty.txt", "\n \n").await.error(400);
    assert!(error["message"].as_str().unwrap().contains("no rows"), "{error}");
}

/// What training would refuse is refused before it: columns of the wrong type, and calls whose arguments nobody can parse.
#[tokio::test]
async fn rows_that_no_job_could_read_are_refused_at_upload() {
    let server = server();
    let with = |name: &str, value: Value| {
        let mut row = talk(json!("a"));
        row[name] = value;
        row
    };
    let call = |arguments: &str| {
        json!({"messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}]}]})
    };
    for (row, field) in [
        (with("messages", json!("x")), "messages"),
        (with("messages", json!(null)), "messages"),
        (with("tools", json!("x")), "tools"),
        (with("tools", json!([{"type": "function", "function": {"name": 3}}])), "tools[0].function.name"),
        (with("system", json!(3)), "system"),
        (call("{bad"), "messages[1].tool_calls[0].function.arguments"),
        (call("5"), "messages[1].tool_calls[0].function.arguments"),
    ] {
        let error = server.upload("rows.jsonl", row.to_string()).await.error(400);
        assert!(error["message"].as_str().unwrap().starts_with(&format!("line 1: field \"{field}\"")), "{error}");
    }
    server.upload("rows.jsonl", call("").to_string()).await.ok();
}

/// A column `system` is learned from in every form as if it were the first message.
#[tokio::test]
async fn a_system_column_is_the_first_message_of_every_form() {
    let server = server();
    let system = "Be brief.";
    let turns = |list: &[(&str, &str)]| json!({"messages": list.iter().map(|(role, text)| json!({"role": role, "content": text})).collect::<Vec<_>>()});
    let (user, answer) = (("user", "hi"), ("assistant", "hello"));
    let mut tokens = Vec::new();
    for row in [
        turns(&[user, answer]),
        turns(&[("system", system), user, answer]),
        json!({"system": system, "messages": turns(&[user, answer])["messages"]}),
        json!({"system": system, "prompt": "hi", "completion": "hello"}),
        json!({"system": system, "instruction": "hi", "output": "hello"}),
        json!({"system": system, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
        json!({"system": system, "conversations": turns(&[user, answer])["messages"]}),
        json!({"system": "Another one.", "conversations": turns(&[("system", system), user, answer])["messages"]}),
    ] {
        let file = upload(&server, row.to_string()).await;
        let request = json!({"model": MODEL, "training_file": file, "dry_run": true});
        tokens.push(server.post(JOBS, &request).await.ok()["train_tokens"].as_u64().unwrap());
    }
    assert!(tokens[0] < tokens[1] && tokens[1..].iter().all(|n| *n == tokens[1]), "{tokens:?}");
}
