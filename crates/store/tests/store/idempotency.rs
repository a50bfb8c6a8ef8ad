//! The same key files one job, for 24 hours.

use std::collections::BTreeSet;
use std::time::Duration;

use tunesmith_store::{Created, Idempotency, NewJob, StoreError};

use crate::bench::{Bench, bench, new_job};

async fn file_with(bench: &Bench, key: &str, body: &str) -> Result<Created, StoreError> {
    let idempotency = Some(Idempotency { key: key.to_owned(), body_sha256: body.to_owned() });
    let file = bench.file().await.id;
    bench.store.create_job(NewJob { idempotency, ..new_job(file) }).await
}

async fn job_count(bench: &Bench) -> usize {
    bench.store.list_jobs(&Default::default(), &Default::default()).await.unwrap().items.len()
}

#[tokio::test]
async fn the_same_key_and_body_answer_the_same_job() {
    let bench = bench().await;
    let first = file_with(&bench, "k", "body").await.unwrap();
    let Created::New(first) = first else { panic!("the first is new") };
    let Created::Replayed(second) = file_with(&bench, "k", "body").await.unwrap() else { panic!("filed twice") };
    assert_eq!(second.id, first.id);
    assert!(matches!(file_with(&bench, "other", "body").await.unwrap(), Created::New(_)));
    assert_eq!(job_count(&bench).await, 2);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_a_conflict_that_names_the_job() {
    let bench = bench().await;
    let first = file_with(&bench, "k", "body").await.unwrap().into_job();
    let error = file_with(&bench, "k", "another").await.unwrap_err();
    assert!(matches!(&error, StoreError::IdempotencyConflict { job, .. } if *job == first.id), "{error}");
    assert_eq!(job_count(&bench).await, 1);
}

#[tokio::test]
async fn a_key_lives_for_a_day() {
    let bench = bench().await;
    let first = file_with(&bench, "k", "body").await.unwrap().into_job();
    bench.clock.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(file_with(&bench, "k", "body").await.unwrap().into_job().id, first.id);
    bench.clock.advance(Duration::from_secs(1));
    assert!(matches!(file_with(&bench, "k", "another").await.unwrap(), Created::New(_)));
    bench.clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(bench.store.sweep(&bench.lock()).await.unwrap().expired_keys, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_requests_at_once_file_one_job() {
    let bench = bench().await;
    let file = bench.file().await.id;
    let other = bench.second().await;
    let mut requests = tokio::task::JoinSet::new();
    for i in 0..20 {
        let store = if i % 2 == 0 { bench.store.clone() } else { other.clone() };
        let idempotency = Some(Idempotency { key: "k".to_owned(), body_sha256: "body".to_owned() });
        let new = NewJob { idempotency, ..new_job(file) };
        requests.spawn(async move { store.create_job(new).await.unwrap().into_job().id });
    }
    let ids: BTreeSet<_> = requests.join_all().await.into_iter().collect();
    assert_eq!((ids.len(), job_count(&bench).await), (1, 1));
}

#[tokio::test]
async fn a_deleted_job_frees_its_key() {
    let bench = bench().await;
    let first = file_with(&bench, "k", "body").await.unwrap().into_job();
    bench.store.cancel(first.id).await.unwrap();
    bench.store.delete_job(first.id).await.unwrap();
    assert!(matches!(file_with(&bench, "k", "body").await.unwrap(), Created::New(_)));
}
