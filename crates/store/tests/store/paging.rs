//! Pages neither overlap nor leave out while rows come and go.

use std::collections::BTreeMap;

use serde_json::json;
use tunesmith_store::{FileId, JobFilter, JobState, NewEvent, NewJob, Order, PageQuery};

use crate::bench::{bench, new_file, new_job};

#[tokio::test]
async fn file_pages_do_not_overlap_while_files_come_and_go() {
    let bench = bench().await;
    let mut at_start = Vec::new();
    for _ in 0..10 {
        at_start.push(bench.file().await.id);
    }
    let mut seen = Vec::new();
    let mut page = PageQuery { limit: 3, ..PageQuery::default() };
    loop {
        let found = bench.store.list_files(&page, None).await.unwrap();
        assert!(found.items.len() <= 3);
        seen.extend(found.items.iter().map(|file| file.id));
        if !found.has_more {
            break;
        }
        page.after = seen.last().copied();
        bench.file().await;
        // Even the file at which the page ended may go.
        bench.store.delete_file(*seen.last().unwrap()).await.unwrap();
    }
    at_start.reverse();
    assert_eq!(seen, at_start);
}

#[tokio::test]
async fn files_list_in_both_orders_and_by_purpose() {
    let bench = bench().await;
    let mut ids = Vec::new();
    for i in 0..6 {
        let mut new = new_file(FileId::generate(&*bench.clock), "a.zip");
        if i % 2 == 0 {
            new.purpose = "adapter".to_owned();
        }
        ids.push(new.id);
        bench.store.insert_file(new).await.unwrap();
    }
    let page = PageQuery { after: Some(ids[0]), limit: 2, order: Order::Asc };
    let found = bench.store.list_files(&page, Some("adapter")).await.unwrap();
    assert_eq!(found.items.iter().map(|f| f.id).collect::<Vec<_>>(), [ids[2], ids[4]]);
    assert!(!found.has_more, "exactly a full page, and nothing after it");
    let newest = bench.store.list_files(&PageQuery { limit: 1, ..Default::default() }, None).await.unwrap();
    assert_eq!((newest.items[0].id, newest.has_more), (ids[5], true));
}

#[tokio::test]
async fn event_pages_do_not_overlap_while_events_are_appended() {
    let bench = bench().await;
    let lease = bench.running().await;
    let all = bench.store.job_events_since(lease.job, 0, 100).await.unwrap();
    let mut seen = Vec::new();
    let mut page = PageQuery { limit: 1, ..PageQuery::default() };
    loop {
        let found = bench.store.list_events(lease.job, &page).await.unwrap();
        seen.extend(found.items);
        if !found.has_more {
            break;
        }
        page.after = seen.last().map(|event| event.id);
        bench.store.append_events(&lease, &[NewEvent::info("meanwhile")]).await.unwrap();
    }
    seen.reverse();
    assert_eq!(seen, all);
}

#[tokio::test]
async fn jobs_are_filtered_by_state_and_metadata() {
    let bench = bench().await;
    let file = bench.file().await.id;
    let mut ids = Vec::new();
    for metadata in [json!({"team": "desk", "kind": "a"}), json!({"team": "desk"}), json!({"team": "Desk"}), json!({})] {
        let new = NewJob { metadata, ..new_job(file) };
        ids.push(bench.store.create_job(new).await.unwrap().into_job().id);
    }
    bench.store.cancel(ids[1]).await.unwrap();
    let list = async |states: &[JobState], metadata: &[(&str, &str)]| {
        let metadata: BTreeMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let filter = JobFilter { states: states.to_vec(), metadata };
        let page = bench.store.list_jobs(&PageQuery::default(), &filter).await.unwrap();
        page.items.iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(list(&[], &[]).await, [ids[3], ids[2], ids[1], ids[0]]);
    assert_eq!(list(&[], &[("team", "desk")]).await, [ids[1], ids[0]], "case counts");
    assert_eq!(list(&[], &[("team", "desk"), ("kind", "a")]).await, [ids[0]]);
    assert_eq!(list(&[JobState::Cancelled, JobState::Failed], &[("team", "desk")]).await, [ids[1]]);
    assert_eq!(list(&[], &[("team", "desk' OR 1 = 1 --")]).await, []);
    let counts = bench.store.count_jobs().await.unwrap();
    assert_eq!((counts["validating_files"], counts["cancelled"], counts["running"]), (3, 1, 0));
}
