//! API keys: who gets in, which routes stay open, when the server refuses to start.

use reqwest::Method;

use crate::harness::{Server, answer, command};

#[tokio::test]
async fn with_keys_only_a_right_key_gets_in() {
    let mut server = Server::with(&["--api-key", "one", "--api-key", "two"]);
    let missing = server.get("/v1/models").await;
    assert_eq!(missing.header("www-authenticate"), "Bearer");
    assert_eq!(missing.error(401)["code"], "invalid_api_key");
    for authorization in ["Bearer three", "Bearer ", "Basic one", "one", "Bearer onetwo"] {
        let got = answer(server.request(Method::GET, "/v1/models").header("authorization", authorization)).await;
        got.error(401);
    }
    for key in ["one", "two"] {
        server.use_key(key);
        server.get("/v1/models").await.ok();
    }
}

#[tokio::test]
async fn probes_and_the_description_need_no_key() {
    let server = Server::with(&["--api-key", "one"]);
    for path in ["/healthz", "/readyz", "/docs", "/openapi.yaml"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/v1/models", "/v1/files", "/nothing"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn with_keys_any_host_name_may_be_used() {
    let mut server = Server::with(&["--api-key", "one"]);
    server.use_key("one");
    let got = answer(server.request(Method::GET, "/v1/models").header("host", "gpu.example").header("origin", "https://app.example")).await;
    got.ok();
}

#[test]
fn an_open_address_without_a_key_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).args(["serve", "--host", "0.0.0.0", "--port", "0", "--workers", "0"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--api-key") && text.contains("0.0.0.0"), "{text}");
    assert!(output.stdout.is_empty());
}
