//! Events and metrics: one order, never reused, in batches, with nothing repeated after a resume.

use serde_json::json;
use tunesmith_store::{Level, NewEvent, NewMetric, PageQuery};

use crate::bench::{Condition, bench};

#[tokio::test]
async fn places_grow_over_all_jobs_and_are_never_reused() {
    let bench = bench().await;
    let (first, _) = bench.job_in(Condition::Cancelled).await;
    let (second, _) = bench.job_in(Condition::Running).await;
    let all = bench.store.events_since(0, 1_000).await.unwrap();
    assert_eq!(all.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=all.len() as i64).collect::<Vec<_>>());
    let last = bench.store.last_event_seq().await.unwrap();
    assert_eq!(last, all.last().unwrap().seq);
    // The newest events vanish with their job; their places do not come back.
    bench.store.cancel(second).await.unwrap();
    let newest = bench.store.last_event_seq().await.unwrap();
    bench.store.delete_job(second).await.unwrap();
    bench.store.append_server_events(first, &[NewEvent::warn("late")]).await.unwrap();
    let event = bench.last_event(first).await;
    assert_eq!((event.seq, event.level), (newest + 1, Level::Warn));
}

#[tokio::test]
async fn a_stream_replays_from_any_event_without_gap_or_repetition() {
    let bench = bench().await;
    let lease = bench.running().await;
    let batch: Vec<_> = (0..1_201).map(|i| NewEvent::metrics(format!("step {i}"), json!({"step": i}))).collect();
    bench.store.append_events(&lease, &batch).await.unwrap();
    let all = bench.store.job_events_since(lease.job, 0, 10_000).await.unwrap();
    assert_eq!(all.len(), 4 + 1_201);
    assert!(all[4..].iter().enumerate().all(|(i, e)| e.data["step"] == i && e.kind == "metrics"));
    let after = bench.store.event_seq(lease.job, all[100].id).await.unwrap();
    let mut rest = Vec::new();
    let mut place = after;
    loop {
        let part = bench.store.job_events_since(lease.job, place, 100).await.unwrap();
        let Some(last) = part.last() else { break };
        place = last.seq;
        rest.extend(part);
    }
    assert_eq!(rest, all[101..]);
}

#[tokio::test]
async fn another_jobs_event_is_no_place_to_continue_from() {
    let bench = bench().await;
    let first = bench.job().await.id;
    let second = bench.job().await.id;
    let foreign = bench.last_event(first).await.id;
    bench.store.event_seq(second, foreign).await.unwrap_err();
    let page = PageQuery { after: Some(foreign), ..Default::default() };
    bench.store.list_events(second, &page).await.unwrap_err();
}

#[tokio::test]
async fn metrics_keep_their_order_and_a_resume_repeats_no_step() {
    let bench = bench().await;
    let lease = bench.running().await;
    let entries: Vec<_> = (1..=1_100).map(|step| NewMetric { step, entry: json!({"step": step, "loss": 0.5}) }).collect();
    bench.store.append_metrics(&lease, &entries).await.unwrap();
    bench.store.append_metrics(&lease, &[NewMetric { step: 1_100, entry: json!({"eval_loss": 0.4}) }]).await.unwrap();
    bench.store.truncate_metrics_after(&lease, 1_098).await.unwrap();
    let again = [1_099, 1_100].map(|step| NewMetric { step, entry: json!({"step": step, "again": true}) });
    bench.store.append_metrics(&lease, &again).await.unwrap();
    let found = bench.store.metrics(lease.job).await.unwrap();
    assert_eq!(found.iter().map(|m| m.step).collect::<Vec<_>>(), (1..=1_100).collect::<Vec<_>>());
    assert!(found.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert_eq!((&found[1_097].entry["loss"], &found[1_099].entry["again"]), (&json!(0.5), &json!(true)));
}

#[tokio::test]
async fn numbers_come_back_as_they_were_written() {
    let bench = bench().await;
    let lease = bench.running().await;
    let entry = json!({"loss": 0.1 + 0.2, "grad_norm": 1.0e-30, "step": 9_007_199_254_740_993_i64, "z": 1, "a": 2});
    bench.store.append_metrics(&lease, &[NewMetric { step: 1, entry: entry.clone() }]).await.unwrap();
    let found = bench.store.metrics(lease.job).await.unwrap();
    assert_eq!(found[0].entry.to_string(), entry.to_string(), "the order of keys too");
}
