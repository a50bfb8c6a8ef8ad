//! The server's life: one a folder, a clean end, configuration from every layer.

use std::time::{Duration, Instant};

use reqwest::Method;

use crate::harness::{Server, command};

#[tokio::test]
async fn a_second_server_on_the_same_folder_names_the_first() {
    let server = Server::start();
    let output = command(server.folder.path()).args(["serve", "--port", "0", "--workers", "0"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&server.pid().to_string()), "{text}");
    server.get("/healthz").await.ok();
}

#[tokio::test]
async fn sigterm_ends_the_server_and_its_streams() {
    let mut server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await;
    let path = format!("/v1/fine_tuning/jobs/{}/events", job["id"].as_str().unwrap());
    let mut stream = server.request(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let start = Instant::now();
    let ended = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    assert!(ended.success());
    assert!(start.elapsed() < Duration::from_secs(10));
    while stream.chunk().await.unwrap().is_some() {}
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let mut server = Server::start();
    let file = server.data_set().await;
    let job = server.job(&file).await;
    let folder = server.folder.clone();
    server.stop();
    drop(server);
    let server = Server::in_folder(folder, &[]);
    server.get(&format!("/v1/files/{file}")).await.ok();
    let again = server.get(&format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap())).await.ok();
    assert_eq!(again["training"], job["training"]);
}

#[tokio::test]
async fn a_server_is_ready_within_a_second() {
    let start = Instant::now();
    let server = Server::start();
    server.get("/readyz").await.ok();
    // A debug build on a busy machine is allowed more; a release build takes a tenth of it.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn an_unknown_key_of_the_configuration_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    std::fs::write(folder.path().join("tunesmith.toml"), "prot = 9000\n").unwrap();
    let output = command.args(["serve", "--port", "0"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("prot") && text.contains("tunesmith.toml"), "{text}");
}

#[tokio::test]
async fn the_configuration_file_of_the_current_folder_counts() {
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("tunesmith.toml"), "[limits]\nmax_file_bytes = 100\n").unwrap();
    let server = Server::in_folder(folder.clone(), &[]);
    assert_eq!(server.upload_for("batch", "a.bin", vec![0; 200]).await.status, 413);
    drop(server);
    // A flag wins over the file.
    let server = Server::in_folder(folder, &["--max-file-bytes", "1000"]);
    server.upload_for("batch", "a.bin", vec![0; 200]).await.ok();
}
