//! The cache is shared with Python: what its hub client writes we read, and what we write it reads.
//!
//! Runs where a Python with `huggingface_hub` is at hand (`TUNESMITH_PYTHON`, else `python3`), and says so where not.

#![allow(clippy::unwrap_used)]

mod hub_server;

use std::path::Path;

use hub_server::{COMMIT, FakeHub};
use tokio::process::Command;
use tunesmith_hub::{Hub, HubConfig};

const DOWNLOAD: &str = "
import sys
from huggingface_hub import snapshot_download
cache, endpoint = sys.argv[1:]
print(snapshot_download('org/tiny', cache_dir=cache, endpoint=endpoint or None, local_files_only=not endpoint, token=False))
";
const SCAN: &str = "
import sys
from huggingface_hub import scan_cache_dir
found = scan_cache_dir(sys.argv[1])
assert not found.warnings, found.warnings
print([repo.repo_id for repo in found.repos])
";

async fn python(script: &str, arguments: &[&str]) -> Option<String> {
    let python = std::env::var("TUNESMITH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let run = |script: &str| {
        let mut command = Command::new(&python);
        command.args(["-c", script]).args(arguments);
        command.env_remove("HF_HUB_OFFLINE");
        async move { command.output().await }
    };
    if !run("import huggingface_hub").await.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: no Python with huggingface_hub");
        return None;
    }
    let output = run(script).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

async fn server() -> FakeHub {
    let server = FakeHub::start().await;
    let weights = vec![7; 100_000];
    server.publish(
        "org/tiny",
        &[("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("1_Pooling/config.json", b"{  }"), ("model.safetensors", &weights)],
    );
    server
}

fn assert_whole(folder: &Path) {
    let size = |file: &str| std::fs::metadata(folder.join(file)).unwrap().len();
    assert_eq!(size("model.safetensors"), 100_000);
    assert_eq!(size("1_Pooling/config.json"), 4);
}

#[tokio::test]
async fn pythons_client_reads_the_cache_that_we_wrote() {
    let (server, folder) = (server().await, tempfile::tempdir().unwrap());
    let config = server.config(folder.path());
    let cache = config.hf_cache.clone();
    let pulled = Hub::new(config).unwrap().pull("org/tiny", |_| {}).await.unwrap();
    let cache = cache.to_str().unwrap();
    let Some(found) = python(DOWNLOAD, &[cache, ""]).await else {
        return;
    };
    assert_eq!(Path::new(&found), pulled.folder);
    assert_whole(Path::new(&found));
    assert_eq!(python(SCAN, &[cache]).await.unwrap(), "['org/tiny']");
}

#[tokio::test]
async fn we_read_the_cache_that_pythons_client_wrote() {
    let (server, folder) = (server().await, tempfile::tempdir().unwrap());
    let config = server.config(folder.path());
    let cache = config.hf_cache.to_str().unwrap().to_owned();
    if python(DOWNLOAD, &[&cache, &server.endpoint]).await.is_none() {
        return;
    }
    server.forget_seen();
    let offline = HubConfig { offline: true, ..config };
    let pulled = Hub::new(offline).unwrap().pull("org/tiny", |_| {}).await.unwrap();
    assert!(server.seen().is_empty());
    assert_eq!(pulled.revision, COMMIT);
    assert_whole(&pulled.folder);
}
