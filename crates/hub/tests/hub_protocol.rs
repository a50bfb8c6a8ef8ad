//! Pulls from a server that speaks the hub's protocol, well and badly.

#![allow(clippy::unwrap_used)]

mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hub_server::{COMMIT, FakeHub, Fault, etag_of};
use tunesmith_hub::{Hub, HubConfig, HubError, Kind, Progress, Pulled, Secret};

const REPO: &str = "org/tiny";
const CARD: &[u8] = b"---\nlanguage: en\nlicense: apache-2.0\n---\n# tiny\n";
const WEIGHTS: &str = "model.safetensors";

fn weights() -> Vec<u8> {
    (0..3u64 << 20).map(|i| ((i * 7919) >> 8) as u8).collect()
}

fn publish_model(hub: &FakeHub) -> Vec<u8> {
    let weights = weights();
    hub.publish(
        REPO,
        &[
            (".gitattributes", b"*.bin filter=lfs"),
            ("README.md", CARD),
            ("config.json", b"{\"model_type\": \"bert\"}"),
            ("tokenizer.json", b"{}"),
            ("1_Pooling/config.json", b"{\"pooling\": \"mean\"}"),
            (WEIGHTS, &weights),
            ("pytorch_model.bin", &weights),
            ("onnx/model.onnx", &weights),
        ],
    );
    weights
}

async fn start() -> (FakeHub, tempfile::TempDir, Vec<u8>) {
    let server = FakeHub::start().await;
    let weights = publish_model(&server);
    (server, tempfile::tempdir().unwrap(), weights)
}

async fn pull(config: HubConfig, name: &str) -> Result<Pulled, HubError> {
    Hub::new(config)?.pull(name, |_| {}).await
}

fn repo_folder(folder: &Path) -> PathBuf {
    folder.join("huggingface/models--org--tiny")
}

/// Why the only source failed.
fn reason(result: Result<Pulled, HubError>) -> String {
    match result {
        Err(HubError::NotFound { tried, .. }) => tried[0].1.clone(),
        other => panic!("expected NotFound, got {other:?}"),
    }
}

#[tokio::test]
async fn a_model_is_pulled_into_the_standard_cache_with_only_the_files_that_we_read() {
    let (server, folder, weights) = start().await;
    let pulled = pull(server.config(folder.path()), REPO).await.unwrap();

    let names: Vec<&str> = pulled.files.iter().map(|f| f.to_str().unwrap()).collect();
    let expected = ["1_Pooling/config.json", "README.md", "config.json", WEIGHTS, "tokenizer.json"];
    assert_eq!(names, expected);
    assert_eq!(pulled.revision, COMMIT);
    assert_eq!(pulled.source, "hf:org/tiny");
    assert_eq!(pulled.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(pulled.kind, Kind::Model);
    assert_eq!(fs::read(pulled.folder.join(WEIGHTS)).unwrap(), weights);

    let repo = repo_folder(folder.path());
    assert_eq!(pulled.folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(pulled.folder.join(WEIGHTS)).unwrap();
    let blob = format!("blobs/{}", etag_of(&weights));
    assert_eq!(link, Path::new("../..").join(&blob));
    let nested = fs::read_link(pulled.folder.join("1_Pooling/config.json")).unwrap();
    assert!(nested.starts_with("../../../blobs"), "{nested:?}");
    assert!(server.served("pytorch_model.bin").is_empty());
}

#[tokio::test]
async fn a_second_pull_makes_no_request_and_works_offline() {
    let (server, folder, _) = start().await;
    let config = server.config(folder.path());
    let first = pull(config.clone(), REPO).await.unwrap();
    server.forget_seen();

    let again = pull(config.clone(), "hf:org/tiny").await.unwrap();
    let offline = HubConfig { offline: true, ..config };
    let without_network = pull(offline.clone(), REPO).await.unwrap();
    assert!(server.seen().is_empty());
    assert_eq!(again.folder, first.folder);
    assert_eq!(without_network.files, first.files);

    let why = reason(pull(offline, "org/other").await);
    assert!(why.contains("HF_HUB_OFFLINE"), "{why}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_stopped() {
    let (server, folder, weights) = start().await;
    server.fault(WEIGHTS, &[Fault::CutAfter(2 << 20)]);
    let hub = Hub::new(server.config(folder.path())).unwrap();
    let pulled = hub.pull(REPO, server.cut_at_a_mebibyte()).await.unwrap();

    assert_eq!(fs::read(pulled.folder.join(WEIGHTS)).unwrap(), weights);
    let served = server.served(WEIGHTS);
    assert_eq!(served.len(), 2);
    let range = served[1].range.as_deref().unwrap();
    let offset: usize = range[6..range.len() - 1].parse().unwrap();
    assert!((1 << 20..=2 << 20).contains(&offset), "{offset}");
    assert_eq!(served[1].bytes, weights.len() - offset);
}

#[tokio::test]
async fn a_cancelled_pull_leaves_its_part_and_the_next_one_uses_it() {
    let (server, folder, weights) = start().await;
    server.fault(WEIGHTS, &[Fault::CutAfter(2 << 20)]);
    let config = server.config(folder.path());
    let (sender, mut reached) = tokio::sync::mpsc::unbounded_channel();
    let hub = Hub::new(config.clone()).unwrap();
    let report = move |progress: Progress| {
        if progress.done >= 1 << 20 {
            sender.send(()).ok();
        }
    };
    tokio::select! {
        _ = hub.pull(REPO, report) => panic!("it waits at the cut"),
        _ = reached.recv() => {}
    }
    assert!(hub.cached(REPO).is_none());
    server.forget_seen();

    let pulled = pull(config, REPO).await.unwrap();
    assert_eq!(fs::read(pulled.folder.join(WEIGHTS)).unwrap(), weights);
    let served = server.served(WEIGHTS);
    assert_eq!(served.len(), 1);
    assert!(served[0].bytes < weights.len(), "{served:?}");
    assert!(served[0].range.is_some());
}

#[tokio::test]
async fn a_part_that_is_complete_is_checked_and_not_downloaded_again() {
    let (server, folder, weights) = start().await;
    let blobs = repo_folder(folder.path()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", etag_of(&weights))), &weights).unwrap();
    pull(server.config(folder.path()), REPO).await.unwrap();
    assert!(server.served(WEIGHTS).is_empty());
}

#[tokio::test]
async fn a_damaged_part_costs_a_second_download_and_not_the_pull() {
    let (server, folder, weights) = start().await;
    let blobs = repo_folder(folder.path()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.incomplete", etag_of(&weights)));
    fs::write(part, vec![0; 1 << 20]).unwrap();
    let pulled = pull(server.config(folder.path()), REPO).await.unwrap();
    assert_eq!(fs::read(pulled.folder.join(WEIGHTS)).unwrap(), weights);
    let served = server.served(WEIGHTS);
    assert_eq!(served.iter().map(|s| s.bytes).collect::<Vec<_>>(), [2 << 20, 3 << 20]);
}

#[tokio::test]
async fn a_server_without_ranges_sends_the_whole_again() {
    let (server, folder, weights) = start().await;
    server.fault(WEIGHTS, &[Fault::CutAfter(2 << 20), Fault::NoRanges]);
    let hub = Hub::new(server.config(folder.path())).unwrap();
    let pulled = hub.pull(REPO, server.cut_at_a_mebibyte()).await.unwrap();
    assert_eq!(fs::read(pulled.folder.join(WEIGHTS)).unwrap(), weights);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let (server, folder, _) = start().await;
    server.fault(WEIGHTS, &[Fault::Status(503), Fault::Status(429)]);
    server.fault("config.json", &[Fault::Status(500)]);
    pull(server.config(folder.path()), REPO).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stays_broken_is_given_up_with_the_reason() {
    let (server, folder, _) = start().await;
    server.fault("config.json", &[Fault::Status(502); 100]);
    let why = reason(pull(server.config(folder.path()), REPO).await);
    assert!(why.contains("config.json") && why.contains("502"), "{why}");
    let asked = server.seen();
    let asked = asked.iter().filter(|s| s.path.ends_with("config.json"));
    assert!(asked.count() < 20);
}

#[tokio::test]
async fn wrong_bytes_never_get_a_name() {
    // Both checks: SHA-256 of a large file, git's blob id of a small one.
    for file in [WEIGHTS, "config.json"] {
        let (server, folder, _) = start().await;
        server.fault(file, &[Fault::WrongByte]);
        let hub = Hub::new(server.config(folder.path())).unwrap();
        let why = reason(hub.pull(REPO, |_| {}).await);
        assert!(why.contains("checksum") && why.contains(file), "{why}");
        assert!(hub.cached(REPO).is_none());
        assert!(!repo_folder(folder.path()).join("snapshots").exists());
        // The wrong bytes are gone, so the next pull is not stuck with them.
        hub.pull(REPO, |_| {}).await.unwrap();
    }
}

#[tokio::test]
async fn an_etag_that_lies_about_a_large_file_is_found_out_by_the_file_list() {
    let (server, folder, _) = start().await;
    server.claim_etag(&"0".repeat(64));
    let why = reason(pull(server.config(folder.path()), REPO).await);
    assert!(why.contains("checksum"), "{why}");
}

#[tokio::test]
async fn a_private_repository_needs_the_token_and_says_so() {
    let (server, folder, _) = start().await;
    server.require_token("hf_secret");
    let config = server.config(folder.path());
    let why = reason(pull(config.clone(), REPO).await);
    assert!(why.contains("401") && why.contains("HF_TOKEN"), "{why}");

    let with = |token: &str| HubConfig { hf_token: Secret::new(token), ..config.clone() };
    let why = reason(pull(with("hf_wrong"), REPO).await);
    assert!(why.contains("does not accept") && !why.contains("hf_wrong"), "{why}");
    pull(with("hf_secret"), REPO).await.unwrap();
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let (server, folder, _) = start().await;
    let config = HubConfig { hf_token: Secret::new("hf_secret"), ..server.config(folder.path()) };
    pull(config, REPO).await.unwrap();
    let seen = server.seen();
    let (hub, cdn): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.host == "hub");
    assert!(!hub.is_empty() && !cdn.is_empty());
    assert!(hub.iter().all(|s| s.authorization.as_deref() == Some("Bearer hf_secret")));
    assert!(cdn.iter().all(|s| s.authorization.is_none()));
}

#[tokio::test]
async fn what_does_not_exist_is_listed_with_everything_that_was_tried() {
    let (server, folder, _) = start().await;
    let error = pull(server.config(folder.path()), "org/absent@v2").await.unwrap_err();
    let text = error.to_string();
    for part in ["no source has `org/absent@v2`", "hf:org/absent@v2", "401", "HF_ENDPOINT"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let missing = reason(pull(server.config(folder.path()), "file:/no/such/folder").await);
    assert!(missing.contains("/no/such/folder"), "{missing}");
}

#[tokio::test]
async fn a_repository_without_safetensors_says_what_it_lacks() {
    let (server, folder, _) = start().await;
    server.publish("org/old", &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    let why = reason(pull(server.config(folder.path()), "org/old").await);
    assert!(why.contains(".safetensors"), "{why}");
}

#[tokio::test]
async fn a_data_set_is_found_without_being_called_one() {
    let server = FakeHub::start().await;
    let rows = vec![7; 5000];
    server.publish(
        "datasets/fancyzhx/ag_news",
        &[
            ("README.md", b"---\nlicense: unknown\n---\n"),
            ("data/train-00000-of-00001.parquet", &rows),
            ("data/test-00000-of-00001.parquet", &rows),
            ("ag_news.py", b"code is never taken"),
        ],
    );
    for name in ["ag_news", "hf:fancyzhx/ag_news", "datasets/fancyzhx/ag_news"] {
        let folder = tempfile::tempdir().unwrap();
        let pulled = pull(server.config(folder.path()), name).await.unwrap();
        assert_eq!(pulled.kind, Kind::Dataset, "{name}");
        assert_eq!(pulled.files.len(), 3, "{name}: {:?}", pulled.files);
        assert_eq!(pulled.source, "hf:datasets/fancyzhx/ag_news");
        let cache = folder.path().join("huggingface/datasets--fancyzhx--ag_news");
        assert!(cache.is_dir());
    }
}

#[tokio::test]
async fn a_revision_with_slashes_is_asked_for_as_one_segment() {
    let (server, folder, _) = start().await;
    let name = "org/tiny@refs/pr/3";
    let pulled = pull(server.config(folder.path()), name).await.unwrap();
    assert_eq!(pulled.source, "hf:org/tiny@refs/pr/3");
    let asked = &server.seen()[0].path;
    assert!(asked.ends_with("/revision/refs%2Fpr%2F3"), "{asked}");
    let hub = Hub::new(server.config(folder.path())).unwrap();
    assert!(hub.cached(name).is_some());
    assert!(hub.cached(REPO).is_none(), "main was never asked for");
}

#[tokio::test]
async fn another_revision_with_the_same_files_downloads_nothing() {
    let (server, folder, _) = start().await;
    pull(server.config(folder.path()), REPO).await.unwrap();
    server.forget_seen();
    pull(server.config(folder.path()), "org/tiny@v1").await.unwrap();
    assert!(server.seen().iter().all(|seen| seen.bytes == 0));
}

#[tokio::test]
async fn two_pulls_at_once_download_once() {
    let (server, folder, weights) = start().await;
    let config = server.config(folder.path());
    // Two hubs share nothing but the cache folder, as two processes do.
    let (one, two) = tokio::join!(pull(config.clone(), REPO), pull(config, REPO));
    assert_eq!(one.unwrap().folder, two.unwrap().folder);
    let served = server.served(WEIGHTS);
    assert_eq!(served.len(), 1);
    assert_eq!(served[0].bytes, weights.len());
}

#[tokio::test]
async fn progress_reaches_the_total_of_every_file() {
    let (server, folder, weights) = start().await;
    let log = Arc::new(Mutex::new(Vec::new()));
    let keep = log.clone();
    let hub = Hub::new(server.config(folder.path())).unwrap();
    let pulled = hub.pull(REPO, move |p: Progress| keep.lock().unwrap().push(p)).await.unwrap();
    let log = log.lock().unwrap();
    for file in &pulled.files {
        let of_file: Vec<_> = log.iter().filter(|p| Path::new(&p.file) == file).collect();
        let last = of_file.last().unwrap();
        assert_eq!(Some(last.done), last.total, "{last:?}");
        assert!(of_file.windows(2).all(|w| w[0].done <= w[1].done));
    }
    let of_weights = log.iter().filter(|p| p.file == WEIGHTS).count();
    assert!((3..=5).contains(&of_weights), "{of_weights} reports of 3 MiB");
    assert!(log.iter().any(|p| p.total == Some(weights.len() as u64)));
}

#[tokio::test]
async fn a_repository_beyond_the_limits_is_refused_before_its_bytes_come() {
    let (server, folder, _) = start().await;
    let small = HubConfig { max_bytes: 2 << 20, ..server.config(folder.path()) };
    assert!(reason(pull(small, REPO).await).contains("the limit is 2097152 bytes"));
    let few = HubConfig { max_files: 4, ..server.config(folder.path()) };
    assert!(reason(pull(few, REPO).await).contains("5 files, the limit is 4"));
    assert!(server.seen().iter().all(|seen| seen.bytes == 0));
}

#[tokio::test]
async fn names_from_a_hostile_server_stay_inside_the_cache() {
    let server = FakeHub::start().await;
    server.publish("datasets/org/evil", &[("../../../x.csv", b"text,label\n")]);
    let folder = tempfile::tempdir().unwrap();
    let why = reason(pull(server.config(folder.path()), "datasets/org/evil").await);
    assert!(why.contains("`.` or `..` segments"), "{why}");

    let server = FakeHub::start().await;
    publish_model(&server);
    server.publish(REPO, &[("config.json", b"{}"), ("vocab.txt", b"a"), (WEIGHTS, b"w")]);
    server.claim_etag("../../../escaped");
    let pulled = pull(server.config(folder.path()), REPO).await.unwrap();
    let config = fs::canonicalize(pulled.folder.join("config.json")).unwrap();
    let blobs = fs::canonicalize(repo_folder(folder.path()).join("blobs")).unwrap();
    assert!(config.starts_with(blobs), "{config:?}");
    assert_eq!(fs::read(config).unwrap(), b"{}");
}

#[tokio::test]
async fn a_half_snapshot_of_another_program_is_completed() {
    let (server, folder, _) = start().await;
    // What `AutoConfig.from_pretrained` leaves: the ref and one file.
    let repo = repo_folder(folder.path());
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    let snapshot = repo.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("config.json"), "{\"model_type\": \"bert\"}").unwrap();

    let hub = Hub::new(server.config(folder.path())).unwrap();
    assert!(hub.cached(REPO).is_none());
    let pulled = hub.pull(REPO, |_| {}).await.unwrap();
    assert!(pulled.folder.join(WEIGHTS).exists());
}
