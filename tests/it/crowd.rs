//! Five hundred clients at once while a job trains: everybody is answered or told to come again, and nobody is forgotten.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunesmith_store::{JobId, JobRow};

use crate::harness::Server;
use crate::trainer::{act, classify, configured, file_job, request, server_in, twenty_rows, until_past, upload};

const CLIENTS: usize = 512;
/// How long the crowd asks.
const RUSH: Duration = Duration::from_secs(8);

const ADAPTERS: [&str; 5] = ["bert", "bert-five", "bert-rslora", "bert-patterns", "bert-all-linear"];
const TEXTS: [&str; 5] =
    ["good", "a bad film", "the market rose and the market fell", "row 03", "scientists found water on a distant moon"];

async fn row(server: &Server, id: &str) -> JobRow {
    server.store().await.job(id.parse::<JobId>().unwrap()).await.unwrap()
}

/// What the crowd saw.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    refused: AtomicUsize,
    over: AtomicBool,
}

/// Asks one thing again and again; a client that is told to come again does, and tires of waiting no more than a real one.
async fn client(server: &Server, seen: &Seen, model: &str, text: &str, alone: &Value) {
    while !seen.over.load(Ordering::Relaxed) {
        let answer = server.post("/v1/classify", &json!({"model": model, "input": text})).await;
        match answer.status {
            200 => {
                assert_eq!(answer.json()["data"], *alone, "{model} on {text:?}: the crowd changed the answer");
                seen.answered.fetch_add(1, Ordering::Relaxed);
            }
            429 => {
                let wait: u64 = answer.header("retry-after").parse().unwrap();
                assert_eq!(answer.error(429)["code"], "queue_full");
                seen.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(wait)).await;
            }
            status => panic!("{status}: {}", answer.text()),
        }
    }
}

async fn probe(server: &Server, seen: &Seen) -> Vec<Duration> {
    let mut times = Vec::new();
    while !seen.over.load(Ordering::Relaxed) {
        let start = Instant::now();
        assert_eq!(server.get("/healthz").await.ok()["status"], "ok");
        times.push(start.elapsed());
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_clients_and_a_job_get_along() {
    let server = server_in(configured("[budgets]\nclassify_queue_rows = 32\n"), &["--workers", "1"]);
    for name in ADAPTERS {
        let load = json!({"lora_name": name, "lora_path": format!("lora/{name}"), "base_model": "file:bert-tiny"});
        server.post("/v1/load_lora_adapter", &load).await.ok();
    }
    let mut asked = Vec::new();
    for model in ADAPTERS.into_iter().chain(["file:bert-tiny"]) {
        for text in TEXTS {
            asked.push((model, text, classify(&server, model, &json!(text)).await));
        }
    }
    let file = upload(&server, twenty_rows()).await;
    let id = file_job(&server, &request(&file, json!({"max_steps": 1_000_000, "save_steps": 500, "logging_steps": 100}))).await;
    until_past(&server, &id, 0).await;
    let before = row(&server, &id).await;
    let seen = Seen::default();
    let crowd = futures::future::join_all((0..CLIENTS).map(|i| {
        let (model, text, alone) = &asked[i % asked.len()];
        client(&server, &seen, model, text, alone)
    }));
    let end = async {
        tokio::time::sleep(RUSH).await;
        seen.over.store(true, Ordering::Relaxed);
    };
    let ((), times, _) = tokio::join!(end, probe(&server, &seen), crowd);
    let after = row(&server, &id).await;
    let (answered, refused) = (seen.answered.into_inner(), seen.refused.into_inner());
    assert!(answered > CLIENTS && refused > 0, "{answered} answers, {refused} refusals");
    assert!(times.len() > 10 && times.iter().all(|t| *t < Duration::from_secs(5)), "{} probes, {:?}", times.len(), times.iter().max());
    assert_eq!((after.lease_epoch, after.attempts, after.lease_owner), (before.lease_epoch, 0, before.lease_owner));
    let beats = after.lease_beat - before.lease_beat;
    assert!(beats >= RUSH.as_secs() as i64 / 2, "the worker beat {beats} times in {RUSH:?}");
    assert!(after.step > before.step, "the job trained on");
    assert!(!server.log().contains("a beat was missed"), "{}", server.log());
    act(&server, &id, "cancel").await;
    classify(&server, "bert", &json!("after the rush")).await;
}
