//! The command line against a running server, and on its own.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::harness::{FIXTURES, Server, command, two_classes};

async fn run(server: &Server, args: &[&str]) -> Output {
    let mut command = command(server.folder.path());
    command.env("TUNESMITH_URL", &server.url).args(args);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[track_caller]
fn good(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_job_is_submitted_listed_and_steered() {
    let server = Server::start();
    let rows = server.folder.path().join("rows.jsonl");
    std::fs::write(&rows, two_classes(10)).unwrap();
    let args = [
        "submit",
        "--model",
        "file:tiny",
        "--training-file",
        rows.to_str().unwrap(),
        "--suffix",
        "cli",
        "--set",
        "training.num_train_epochs=1",
        "--tuning",
        "head",
    ];
    let submitted = good(run(&server, &args).await);
    let id = submitted.split_whitespace().next().unwrap().to_owned();
    let job: Value = serde_json::from_str(&good(run(&server, &["jobs", "show", &id]).await)).unwrap();
    assert_eq!((job["training"]["num_train_epochs"].as_f64(), job["tuning"]["type"].as_str()), (Some(1.0), Some("head")));
    assert!(good(run(&server, &["jobs"]).await).contains(&id));
    assert!(good(run(&server, &["jobs", "pause", &id]).await).contains("paused"));
    assert!(good(run(&server, &["jobs", "resume", &id]).await).contains("queued"));
    assert!(good(run(&server, &["jobs", "cancel", &id]).await).contains("cancelled"));
    assert!(good(run(&server, &["logs", &id]).await).contains("Created fine-tuning job"));
    let watched = run(&server, &["jobs", "watch", &id]).await;
    assert!(!watched.status.success(), "a cancelled job is no success");
    assert!(String::from_utf8_lossy(&watched.stdout).contains("cancelled"));
    good(run(&server, &["jobs", "delete", &id]).await);
}

#[tokio::test]
async fn a_language_model_classifies_by_labels_from_the_command_line() {
    let server = Server::with(&["--model-dir", FIXTURES, "--workers", "0"]);
    let classify = ["classify", "--model", "file:decoders/chat-tiny", "--json", "--top-k", "9"];
    let with_labels = [&classify[..], &["--labels", "red,light blue", "a text", "another"]].concat();
    let answers = good(run(&server, &with_labels).await);
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let mut labels: Vec<&str> = answer["scores"].as_array().unwrap().iter().map(|s| s["label"].as_str().unwrap()).collect();
        labels.sort_unstable();
        assert_eq!(labels, ["light blue", "red"]);
    }
    let without = run(&server, &[&classify[..], &["a text"]].concat()).await;
    assert!(String::from_utf8_lossy(&without.stderr).contains("labels"));
}

#[tokio::test]
async fn what_files_no_job_leaves_no_upload() {
    let server = Server::with(&["--model-dir", FIXTURES]);
    let rows = server.folder.path().join("rows.jsonl");
    std::fs::write(&rows, two_classes(10)).unwrap();
    let submit = |setting: &'static str| {
        let rows = rows.to_str().unwrap().to_owned();
        let server = &server;
        async move { run(server, &["submit", "--model", "file:bert-tiny", "--training-file", &rows, "--set", setting, "--watch"]).await }
    };
    let plan: Value = serde_json::from_str(&good(submit("dry_run=true").await)).unwrap();
    assert!(plan["total_steps"].as_u64().unwrap() > 0, "{plan}");
    let refused = submit("training.learning_rate=-1").await;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("learning_rate"));
    assert_eq!(server.get("/v1/files").await.ok()["data"], serde_json::json!([]));
}

#[test]
fn a_reader_that_leaves_early_is_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path()).arg("openapi").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let full = command(folder.path()).arg("openapi").stdout(std::fs::File::create("/dev/full").unwrap()).output().unwrap();
    assert!(!full.status.success());
    assert!(String::from_utf8_lossy(&full.stderr).starts_with("error: cannot write to standard output"));
}

#[test]
fn settings_that_cannot_work_end_the_start_with_their_name() {
    let folder = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["serve", "--device", "cuda:0"][..], "--features cuda"),
        (&["serve", "--cors-origin", "foo"], "`foo` is no origin"),
        (&["serve", "--model-dir", "nowhere"], "nowhere is no folder"),
        (&["worker", "--data-dir", "typo"], "there is no data folder"),
    ] {
        if args.contains(&"cuda:0") && cfg!(feature = "cuda") {
            continue;
        }
        let output = command(folder.path()).args(args).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(part), "{args:?}: {told}");
    }
    assert!(!folder.path().join("typo").exists());
}

#[tokio::test]
async fn files_are_uploaded_listed_and_printed() {
    let server = Server::start();
    let rows = server.folder.path().join("rows.jsonl");
    std::fs::write(&rows, two_classes(3)).unwrap();
    let uploaded = good(run(&server, &["files", "upload", rows.to_str().unwrap()]).await);
    assert!(uploaded.contains("6 rows"), "{uploaded}");
    let id = uploaded.split_whitespace().next().unwrap().to_owned();
    assert!(good(run(&server, &["files"]).await).contains("rows.jsonl"));
    assert_eq!(good(run(&server, &["files", "content", &id]).await), two_classes(3));
    good(run(&server, &["files", "delete", &id]).await);
    let gone = run(&server, &["files", "show", &id]).await;
    assert!(!gone.status.success());
    assert!(String::from_utf8_lossy(&gone.stderr).contains("No such file"));
}

#[tokio::test]
async fn models_are_listed_and_disk_use_is_shown() {
    let server = Server::start();
    server.data_set().await;
    assert!(good(run(&server, &["models"]).await).contains("all-minilm-l6-v2"));
    assert!(good(run(&server, &["pull", "--list"]).await).contains("all-minilm-l6-v2"));
    let usage = good(run(&server, &["gc"]).await);
    assert!(usage.contains("files") && usage.contains("database"), "{usage}");
    let locked = run(&server, &["gc", "--sweep"]).await;
    assert!(!locked.status.success(), "a sweep beside a server would take uploads for garbage");
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_and_its_model_asked_and_saved() {
    let flags = ["--model-dir", FIXTURES, "--workers", "1", "--worker-threads", "1"];
    let server = Server::with(&flags);
    let rows = server.folder.path().join("rows.jsonl");
    std::fs::write(&rows, two_classes(10)).unwrap();
    let submit =
        ["submit", "--model", "file:bert-tiny", "--training-file", rows.to_str().unwrap(), "--set", "training.max_steps=3", "--watch"];
    let watched = run(&server, &submit).await;
    // Nobody sees a bar here, so each event is a line.
    let lines = String::from_utf8_lossy(&watched.stderr).into_owned();
    assert!(lines.contains("Training ") && lines.contains("Step 3: evaluation loss"), "{lines}");
    let told = good(watched);
    let model = told.lines().last().unwrap().rsplit(": ").next().unwrap();
    assert!(told.contains("succeeded") && model.starts_with("ft:"), "{told}");
    let asked = good(run(&server, &["classify", "--model", model, "--top-k", "2", "good 1"]).await);
    assert!(asked.contains("pos") && asked.contains("neg"), "{asked}");
    let json = good(run(&server, &["classify", "--model", model, "--json", "good 1", "bad 1"]).await);
    assert_eq!(json.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["index"].clone()).collect::<Vec<_>>(), [0, 1]);
    let zip = server.folder.path().join("model.zip");
    good(run(&server, &["models", "download", model, "--output", zip.to_str().unwrap()]).await);
    assert!(zip::ZipArchive::new(std::fs::File::open(zip).unwrap()).unwrap().len() > 3);
    assert!(good(run(&server, &["gc"]).await).contains("checkpoints"));
}

#[test]
fn without_a_server_the_error_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).args(["jobs", "--url", "http://127.0.0.1:9"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("tunesmith serve"));
}

#[test]
fn doctor_tells_what_is_there_and_fails_on_what_cannot_work() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).arg("doctor").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    for what in ["processor", "memory", "data folder", "hub cache"] {
        assert!(text.contains(what), "{what}: {text}");
    }
    let open = command(folder.path()).args(["doctor", "--host", "0.0.0.0"]).output().unwrap();
    assert!(!open.status.success());
    assert!(String::from_utf8_lossy(&open.stdout).contains("FAIL  address"));
}
