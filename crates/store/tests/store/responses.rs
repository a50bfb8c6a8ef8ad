//! Kept answers: chains, cancelled ones, and those that are too old.

use serde_json::json;
use tunesmith_store::{Kind, ResponseRow, StoreError};

use crate::bench::bench;

fn row(id: &str, previous: Option<&str>, unfinished: bool) -> ResponseRow {
    ResponseRow {
        id: id.to_owned(),
        previous_id: previous.map(str::to_owned),
        unfinished,
        input: json!([{"id": format!("msg_{id}")}]),
        body: json!({"id": id, "status": if unfinished { "in_progress" } else { "completed" }}),
        pieces: json!([[[3, 0]]]),
    }
}

#[tokio::test]
async fn a_chain_is_told_from_its_beginning_and_breaks_where_one_is_gone() {
    let bench = bench().await;
    let store = &bench.store;
    for (id, previous) in [("a", None), ("b", Some("a")), ("c", Some("b")), ("other", Some("a"))] {
        store.insert_response(&row(id, previous, false)).await.unwrap();
    }
    let ids = |rows: Vec<ResponseRow>| rows.into_iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(ids(store.response_chain("c").await.unwrap()), ["a", "b", "c"]);
    store.delete_response("b").await.unwrap();
    let error = store.response_chain("c").await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { kind: Kind::Response, ref id } if id == "b"), "{error}");
    assert_eq!(ids(store.response_chain("other").await.unwrap()), ["a", "other"]);
    assert!(store.delete_response("b").await.is_err());
}

#[tokio::test]
async fn a_chain_that_is_too_long_is_told_apart_from_a_broken_one() {
    let bench = bench().await;
    let store = &bench.store;
    for i in 0..1001 {
        let previous = (i > 0).then(|| format!("r{}", i - 1));
        store.insert_response(&row(&format!("r{i}"), previous.as_deref(), false)).await.unwrap();
    }
    assert_eq!(store.response_chain("r999").await.unwrap().len(), 1000);
    assert!(matches!(store.response_chain("r1000").await, Err(StoreError::TooLong { most: 1000, .. })));
}

#[tokio::test]
async fn what_was_cancelled_or_deleted_is_not_finished_afterwards() {
    let bench = bench().await;
    let store = &bench.store;
    store.insert_response(&row("a", None, true)).await.unwrap();
    assert_eq!(store.unfinished_responses().await.unwrap().len(), 1);
    assert!(store.finish_response("a", &json!({"status": "cancelled"}), &json!([[[1, 1]]])).await.unwrap());
    assert!(!store.finish_response("a", &json!({"status": "completed"}), &json!([])).await.unwrap());
    let ended = store.response("a").await.unwrap();
    assert_eq!((&ended.body["status"], ended.pieces), (&json!("cancelled"), json!([[[1, 1]]])));
    assert!(store.unfinished_responses().await.unwrap().is_empty());
    store.delete_response("a").await.unwrap();
    assert!(!store.finish_response("a", &json!({"status": "completed"}), &json!([])).await.unwrap());
}

#[tokio::test]
async fn answers_are_kept_for_thirty_days() {
    let bench = bench().await;
    bench.store.insert_response(&row("old", None, false)).await.unwrap();
    bench.clock.advance(std::time::Duration::from_secs(30 * 24 * 3600 + 1));
    bench.store.insert_response(&row("new", None, false)).await.unwrap();
    assert!(bench.store.response("old").await.is_err());
    assert!(bench.store.response("new").await.is_ok());
}
