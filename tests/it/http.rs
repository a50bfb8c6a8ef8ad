//! What holds for every route: error objects, methods, content types, limits, ids, compression, CORS.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Server, answer};

/// A body that sends its beginning and then stands still.
fn stalled(beginning: &'static str) -> reqwest::Body {
    let first = futures::stream::iter([Ok::<_, std::io::Error>(beginning)]);
    reqwest::Body::wrap_stream(futures::StreamExt::chain(first, futures::stream::pending()))
}

#[tokio::test]
async fn probes_answer_and_say_the_version() {
    let server = Server::start();
    let health = server.get("/healthz").await.ok();
    assert_eq!(health, json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(server.get("/readyz").await.ok()["status"], "ready");
}

#[tokio::test]
async fn an_unknown_path_is_404_in_openais_object() {
    let server = Server::start();
    let error = server.get("/v1/nothing").await.error(404);
    assert!(error["message"].as_str().unwrap().contains("/v1/nothing"));
    server.get("/v1/files/a/b/c").await.error(404);
}

#[tokio::test]
async fn a_wrong_method_is_405_and_names_the_right_ones() {
    let server = Server::start();
    for (method, path, allowed) in [
        (Method::PUT, "/v1/files", "POST"),
        (Method::PATCH, "/v1/fine_tuning/jobs", "GET"),
        (Method::POST, "/v1/models", "GET"),
        (Method::DELETE, "/healthz", "GET"),
    ] {
        let got = answer(server.request(method.clone(), path)).await;
        assert!(got.header("allow").contains(allowed), "{method} {path}: Allow is {:?}", got.header("allow"));
        assert_eq!(got.error(405)["code"], "method_not_allowed");
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_415_and_broken_json_400() {
    let server = Server::start();
    let post = |content_type: &'static str, body: &'static str| {
        answer(server.request(Method::POST, "/v1/fine_tuning/jobs").header("content-type", content_type).body(body))
    };
    assert_eq!(post("text/plain", "{}").await.error(415)["code"], "unsupported_media_type");
    let error = post("application/json", "{").await.error(400);
    assert!(error["message"].as_str().unwrap().contains("not valid JSON"));
    answer(server.request(Method::POST, "/v1/fine_tuning/jobs").body("{}")).await.error(415);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413() {
    let server = Server::start();
    let big = json!({"model": "x".repeat(9 << 20)});
    assert_eq!(server.post("/v1/fine_tuning/jobs", &big).await.error(413)["code"], "body_too_large");
}

#[tokio::test]
async fn a_path_that_is_no_utf8_is_a_client_error() {
    let server = Server::start();
    assert_eq!(server.get("/v1/files/%FF%FE").await.status, 400);
    server.get("/v1/fine_tuning/jobs/%00").await.error(404);
    server.get("/v1/models/%2e%2e%2fetc").await.error(404);
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_keeps_the_clients() {
    let server = Server::start();
    let first = server.get("/v1/nothing").await;
    let second = server.get("/healthz").await;
    assert!(first.header("x-request-id").starts_with("req-"));
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    let own = answer(server.request(Method::GET, "/healthz").header("x-request-id", "trace.1-A")).await;
    assert_eq!(own.header("x-request-id"), "trace.1-A");
    let odd = answer(server.request(Method::GET, "/healthz").header("x-request-id", "a b")).await;
    assert!(odd.header("x-request-id").starts_with("req-"));
}

#[tokio::test]
async fn large_answers_are_compressed_on_request() {
    let server = Server::start();
    let packed = answer(server.request(Method::GET, "/openapi.yaml").header("accept-encoding", "gzip")).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    let plain = server.get("/openapi.yaml").await;
    assert_eq!(plain.header("content-encoding"), "");
    assert!(packed.bytes.len() * 3 < plain.bytes.len());
}

#[tokio::test]
async fn cors_is_off_unless_an_origin_is_configured() {
    let preflight = |server: &Server, origin: &'static str| {
        let request = server.request(Method::OPTIONS, "/v1/models").header("origin", origin);
        answer(
            request.header("access-control-request-method", "POST").header("access-control-request-headers", "content-type,authorization"),
        )
    };
    let closed = Server::start();
    assert_eq!(preflight(&closed, "https://app.example").await.header("access-control-allow-origin"), "");
    let open = Server::with(&["--cors-origin", "https://app.example"]);
    let allowed = preflight(&open, "https://app.example").await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://app.example");
    assert!(allowed.header("access-control-allow-headers").contains("authorization"));
    assert_eq!(preflight(&open, "https://evil.example").await.header("access-control-allow-origin"), "");
    let got = answer(open.request(Method::GET, "/v1/models").header("origin", "https://app.example")).await;
    assert_eq!(got.header("access-control-allow-origin"), "https://app.example");
    got.ok();
}

#[tokio::test]
async fn a_web_page_elsewhere_cannot_use_a_server_without_keys() {
    let server = Server::start();
    let with =
        |name: &'static str, value: &'static str| answer(server.request(Method::POST, "/v1/fine_tuning/jobs/x/cancel").header(name, value));
    assert_eq!(with("origin", "https://evil.example").await.error(403)["code"], "forbidden_origin");
    assert_eq!(with("host", "evil.example").await.error(403)["code"], "forbidden_origin");
    assert_eq!(with("origin", "null").await.error(403)["code"], "forbidden_origin");
    with("origin", "http://localhost:3000").await.error(404);
}

#[tokio::test]
async fn unknown_query_parameters_are_named() {
    let server = Server::start();
    for path in ["/v1/files?lmit=3", "/v1/fine_tuning/jobs?lmit=3"] {
        assert_eq!(server.get(path).await.error(400)["param"], "lmit", "{path}");
    }
    for path in ["/v1/files?limit=0", "/v1/files?limit=x", "/v1/fine_tuning/jobs?limit=1000"] {
        let error = server.get(path).await.error(400);
        assert_eq!(error["param"], "limit", "{path}");
        assert!(!error["message"].as_str().unwrap().contains("deserialize"), "{error}");
    }
    assert_eq!(server.get("/v1/files?after=nothing").await.error(400)["param"], "after");
    assert_eq!(server.get("/v1/files?order=up").await.error(400)["param"], "order");
}

#[tokio::test]
async fn a_body_that_stands_still_is_408() {
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("tunesmith.toml"), "[limits]\nbody_idle_seconds = 1\n").unwrap();
    let server = Server::in_folder(folder, &[]);
    let json = server.request(Method::POST, "/v1/fine_tuning/jobs").header("content-type", "application/json");
    assert_eq!(answer(json.body(stalled("{\"model\":"))).await.error(408)["code"], "request_timeout");
    let form = server.request(Method::POST, "/v1/files").header("content-type", "multipart/form-data; boundary=b");
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{";
    assert_eq!(answer(form.body(stalled(part))).await.error(408)["code"], "request_timeout");
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_503() {
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("tunesmith.toml"), "[limits]\nrequest_timeout_seconds = 1\n").unwrap();
    let server = Server::in_folder(folder, &[]);
    let json = server.request(Method::POST, "/v1/fine_tuning/jobs").header("content-type", "application/json");
    let late = answer(json.body(stalled("{\"model\":"))).await;
    assert_eq!(late.header("retry-after"), "5");
    assert_eq!(late.error(503)["code"], "timeout");
}

#[test]
fn a_head_that_stands_still_is_hung_up_on() {
    use std::io::{Read, Write};
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("tunesmith.toml"), "[limits]\nbody_idle_seconds = 1\n").unwrap();
    let server = Server::in_folder(folder, &[]);
    let mut connection = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    write!(connection, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow:").unwrap();
    connection.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("the server hangs up by itself");
    assert!(!text.contains("200 OK"), "{text}");
}

/// A client that sends all of its body before it looks for an answer.
#[test]
fn a_client_that_does_not_listen_while_it_sends_still_gets_its_answer() {
    use std::io::{Read, Write};
    let server = Server::with(&["--max-file-bytes", "1000"]);
    let mut connection = std::net::TcpStream::connect(server.url.trim_start_matches("http://")).unwrap();
    let length = 32 << 20;
    write!(connection, "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n").unwrap();
    write!(connection, "Content-Length: {length}\r\nConnection: close\r\n\r\n").unwrap();
    connection.write_all(&vec![b'x'; length]).unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("file_too_large"), "{text}");
}
