//! Crowds, slow readers, formats that lead nowhere and a server that ends: what others see of it, and what stays behind.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::Server;
use crate::text::{MODEL, ask, server};
use crate::trainer::{configured, kill, server_in, until};

const CHAT: &str = "/v1/chat/completions";

/// Many tokens, none of them an end.
fn long(extra: Value) -> Value {
    let mut all = json!({"stream": true, "max_tokens": 440, "temperature": 1.0, "logit_bias": {"256": -100, "258": -100}});
    all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    ask("a long story", all)
}

/// Does the work, and asks meanwhile whether the server is alive; answers the longest time that it took to say so.
async fn watched<T>(server: &Server, work: impl Future<Output = T>) -> (T, Duration) {
    let mut work = std::pin::pin!(work);
    let mut worst = Duration::ZERO;
    loop {
        let begin = Instant::now();
        let look = async {
            assert_eq!(server.get("/healthz").await.status, 200);
            worst = worst.max(begin.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        tokio::select! {
            done = &mut work => return (done, worst),
            () = look => {}
        }
    }
}

/// Bytes of memory that a process has.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_streams_of_which_half_hang_up_leave_nothing_behind() {
    let server = server_in(configured("[budgets]\ngeneration_requests = 500\n"), &["--workers", "0"]);
    server.post(CHAT, &ask("warm", json!({}))).await.ok();
    let before = resident(server.pid());
    let client = |i: usize| {
        let server = &server;
        async move {
            let leaves = i.is_multiple_of(2);
            let body = if leaves { long(json!({})) } else { long(json!({"max_tokens": 24})) };
            let response = server.request(Method::POST, CHAT).json(&body).send().await.unwrap();
            assert_eq!(response.status(), 200);
            if leaves {
                let mut stream = response.bytes_stream();
                stream.next().await.unwrap().unwrap();
                return;
            }
            assert!(response.text().await.unwrap().trim_end().ends_with("data: [DONE]"));
        }
    };
    let (_, worst) = watched(&server, join_all((0..500).map(client))).await;
    assert!(worst < Duration::from_secs(2), "/healthz took {worst:?}");
    // Every place is free again: as many requests as there are places are let in at once.
    let all = |n: usize| ask("x", json!({"max_tokens": 1, "n": n}));
    until("free places", async || {
        let fill = join_all([125, 125, 125, 125].map(|n| {
            let (server, body) = (&server, all(n));
            async move { server.post(CHAT, &body).await.status }
        }));
        fill.await.iter().all(|status| *status == 200).then_some(())
    })
    .await;
    let begin = Instant::now();
    server.post(CHAT, &ask("quick", json!({}))).await.ok();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 192 << 20, "{} MiB more than before", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_hold_nobody_up_and_cost_little() {
    let server = server();
    server.post(CHAT, &ask("warm", json!({}))).await.ok();
    let before = resident(server.pid());
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    let body = long(json!({"n": 8})).to_string();
    let head =
        format!("POST {CHAT} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let deaf: Vec<TcpStream> = (0..24)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            stream
        })
        .collect();
    // Beside them and behind them.
    let asks = (0..4).map(|i| {
        let (server, body) = (&server, ask(&format!("quick {i}"), json!({"max_tokens": 8})));
        async move { server.post(CHAT, &body).await.ok() }
    });
    let (_, worst) = watched(&server, join_all(asks)).await;
    assert!(worst < Duration::from_secs(2), "/healthz took {worst:?}");
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 192 << 20, "{} MiB more than before", grown >> 20);
    drop(deaf);
}

#[tokio::test]
async fn formats_that_cannot_be_kept_are_refused_and_large_ones_end() {
    let server = server();
    let schema = |s: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": s}});
    let regex = |r: &str| json!({"type": "regex", "regex": r});
    let mut deep = json!({"type": "string"});
    for _ in 0..50 {
        deep = json!({"type": "object", "properties": {"a": deep}, "required": ["a"]});
    }
    let properties: serde_json::Map<String, Value> = (0..5000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
    let node = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"], "additionalProperties": false});
    let refused = [
        schema(json!({"allOf": [{"type": "string"}, {"type": "integer"}]})),
        schema(json!({"enum": []})),
        schema(json!({"type": "integer", "minimum": 5, "maximum": 3})),
        schema(json!({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": false})),
        schema(json!({"$ref": "#"})),
        schema(json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        schema(json!({"$ref": "#/$defs/none"})),
        schema(json!({"$defs": {"n": node}, "$ref": "#/$defs/n"})),
        schema(json!({"not": {}})),
        schema(json!({"oneOf": [{"type": "string"}, {"minLength": 3}]})),
        schema(json!({"type": "array", "uniqueItems": true})),
        schema(json!({"type": "object", "properties": properties})),
        schema(json!({"enum": ["x".repeat(300_000)]})),
        regex("("),
        regex(&("(".repeat(5000) + "a" + &")".repeat(5000))),
        regex("(?=a)b"),
        regex("[^\\s\\S]"),
        json!({"type": "choice", "choices": []}),
    ];
    for format in refused {
        let error = server.post(CHAT, &ask("x", json!({"response_format": format}))).await.error(400);
        let message = error["message"].as_str().unwrap();
        assert!(error["param"] == "response_format" && message.len() < 500 && !message.contains('\n'), "{message}");
        assert!(!["coerce_one_of", "Unimplemented", "non-verbose"].iter().any(|word| message.contains(word)), "{message}");
    }
    let many: Vec<String> = (0..10_000).map(|i| format!("choice {i} (or not)\n")).collect();
    let kept = [
        schema(deep),
        schema(json!({"type": "string", "minLength": 1_000_000_000})),
        schema(json!({"type": "string", "pattern": "^(a{1,500}){1,500}$"})),
        schema(json!({"enum": many[..8000]})),
        regex("(a{1,1000}){1,1000}"),
        regex("((a{0,100}){0,100}){0,100}"),
        regex("(x+x+)+y"),
        regex("(.*a){25}"),
        regex(&(0..20_000).map(|i| format!("w{i}x*")).collect::<Vec<_>>().join("|")),
        json!({"type": "choice", "choices": many}),
    ];
    for format in kept {
        let body = ask("x", json!({"response_format": format, "max_tokens": 40}));
        let (answer, worst) = watched(&server, server.post(CHAT, &body)).await;
        let choice = answer.ok()["choices"][0].clone();
        assert!(worst < Duration::from_secs(2), "/healthz took {worst:?}");
        if format["type"] == "choice" {
            assert!(many.iter().any(|c| choice["message"]["content"] == c.as_str()), "{choice}");
        }
    }
}

#[tokio::test]
async fn a_million_characters_are_refused_with_both_numbers_and_nobody_waits() {
    let server = server();
    let million = "x".repeat(1_000_000);
    let begin = Instant::now();
    for (path, body) in [
        (CHAT, ask(&million, json!({}))),
        ("/v1/completions", json!({"model": MODEL, "prompt": million})),
        ("/v1/responses", json!({"model": MODEL, "input": million})),
    ] {
        let (answer, worst) = watched(&server, server.post(path, &body)).await;
        let error = answer.error(400);
        assert_eq!(error["code"], "context_length_exceeded");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("10000") && message.contains("512"), "{message}");
        assert!(worst < Duration::from_secs(2), "/healthz took {worst:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_stream_is_told_of_the_end_and_a_killed_server_breaks_the_connection() {
    let mut ends = server();
    let many = json!({"model": MODEL, "prompt": "a long story", "stream": true, "max_tokens": 440, "n": 128, "temperature": 1, "logit_bias": {"256": -100, "258": -100}});
    let open = async |server: &Server, path: &str, body: &Value| {
        let response = server.request(Method::POST, path).json(body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut stream = response.bytes_stream();
        stream.next().await.unwrap().unwrap();
        stream
    };
    let response = json!({"model": MODEL, "input": "a long story", "stream": true, "temperature": 1});
    // A completion's stream begins with its text, the others before it; so it comes first, and the crowd makes sure that what stands
    // last in line is not done within the time that the server leaves.
    let mut streams = vec![(open(&ends, "/v1/completions", &many).await, ["shutting_down", "[DONE]"])];
    for _ in 0..5 {
        streams.push((open(&ends, CHAT, &long(json!({"n": 128}))).await, ["shutting_down", "[DONE]"]));
    }
    streams.push((open(&ends, CHAT, &long(json!({}))).await, ["shutting_down"; 2]));
    streams.push((open(&ends, "/v1/responses", &response).await, ["response.failed"; 2]));
    let stopped = tokio::task::spawn_blocking(move || ends.stop());
    // All at once: a client that does not read when the server ends cannot be told.
    join_all(streams.into_iter().map(async |(mut stream, ends)| {
        let mut text = String::new();
        while let Some(piece) = stream.next().await {
            text.push_str(&String::from_utf8_lossy(&piece.unwrap()));
        }
        let last = text.trim_end().lines().last().unwrap();
        assert!(ends.iter().any(|end| last.contains(end)), "{last}");
    }))
    .await;
    assert!(stopped.await.unwrap().success());

    let killed = server();
    let mut stream = open(&killed, CHAT, &long(json!({"n": 60}))).await;
    kill(killed.pid()).await;
    let broken = async {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return,
                None => panic!("a stream that was cut off looks whole"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), broken).await.unwrap();
}
