//! Who gets which job, and what those that wait are told.

use std::collections::BTreeMap;

use tunesmith_store::{Claim, JobState, QueuePlace};

use crate::bench::{bench, claim, new_job};

#[tokio::test]
async fn higher_priority_goes_first_and_then_the_older() {
    let bench = bench().await;
    let file = bench.file().await.id;
    let mut filed = Vec::new();
    for priority in [0, 5, -1, 5, 0] {
        let job = bench.store.create_job(tunesmith_store::NewJob { priority, ..new_job(file) }).await.unwrap().into_job();
        filed.push(job.id);
    }
    let right = [1, 3, 0, 4, 2].map(|i: usize| filed[i]);
    for (i, id) in right.iter().enumerate() {
        let place = bench.store.queue_position(*id).await.unwrap();
        assert_eq!(place, Some(QueuePlace { position: i as i64 + 1, waiting: 5 }));
    }
    for (i, id) in right.iter().enumerate() {
        assert_eq!(bench.claim().await.1.id, *id, "claim {i}");
        assert_eq!(bench.store.queue_position(*id).await.unwrap(), None, "a claimed job does not wait");
    }
    assert!(bench.store.claim(&claim("w")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_claimers_get_each_job_once() {
    let bench = bench().await;
    let file = bench.file().await.id;
    for _ in 0..200 {
        bench.store.create_job(new_job(file)).await.unwrap();
    }
    // Four claimers in two processes.
    let other = bench.second().await;
    let mut claimers = tokio::task::JoinSet::new();
    for i in 0..4 {
        let store = if i % 2 == 0 { bench.store.clone() } else { other.clone() };
        claimers.spawn(async move {
            let mut taken = Vec::new();
            while let Some((lease, job)) = store.claim(&claim(&format!("w{i}"))).await.unwrap() {
                assert_eq!((lease.epoch, job.lease_owner.as_deref()), (1, Some(lease.owner.as_str())));
                taken.push(job.id);
            }
            taken
        });
    }
    let mut times = BTreeMap::new();
    for id in claimers.join_all().await.into_iter().flatten() {
        *times.entry(id).or_insert(0) += 1;
    }
    assert_eq!(times.len(), 200);
    assert!(times.values().all(|times| *times == 1));
}

#[tokio::test]
async fn a_job_that_does_not_fit_waits_and_says_why() {
    let bench = bench().await;
    let file = bench.file().await.id;
    let mut filed = Vec::new();
    for estimate_bytes in [60, 50, 10] {
        let new = tunesmith_store::NewJob { estimate_bytes, ..new_job(file) };
        filed.push(bench.store.create_job(new).await.unwrap().into_job().id);
    }
    let ask = Claim { owner: "w".to_owned(), memory_budget: Some(100) };
    let (first, job) = bench.store.claim(&ask).await.unwrap().unwrap();
    assert_eq!(job.id, filed[0]);
    let waiting = bench.store.job(filed[1]).await.unwrap();
    assert!(waiting.wait_reason.unwrap().contains("memory"));
    // The small one still fits beside the first.
    assert_eq!(bench.store.claim(&ask).await.unwrap().unwrap().1.id, filed[2]);
    assert!(bench.store.claim(&ask).await.unwrap().is_none());
    bench.store.cancel(first.job).await.unwrap();
    let (_, job) = bench.store.claim(&ask).await.unwrap().unwrap();
    assert_eq!((job.id, job.wait_reason), (filed[1], None));
}

#[tokio::test]
async fn a_reason_to_wait_goes_when_there_is_room_again() {
    let bench = bench().await;
    let file = bench.file().await.id;
    for _ in 0..3 {
        let new = tunesmith_store::NewJob { estimate_bytes: 40, ..new_job(file) };
        bench.store.create_job(new).await.unwrap();
    }
    let last = bench.store.list_jobs(&Default::default(), &Default::default()).await.unwrap().items[0].id;
    let mut ask = Claim { owner: "w".to_owned(), memory_budget: Some(50) };
    bench.store.claim(&ask).await.unwrap().unwrap();
    assert!(bench.store.job(last).await.unwrap().wait_reason.is_some());
    ask.memory_budget = Some(500);
    bench.store.claim(&ask).await.unwrap().unwrap();
    assert_eq!(bench.store.job(last).await.unwrap().wait_reason, None);
}

#[tokio::test]
async fn a_claim_keeps_the_state_until_training_begins() {
    let bench = bench().await;
    let id = bench.job().await.id;
    let (lease, job) = bench.claim().await;
    assert_eq!((job.id, job.state, job.started_at), (id, JobState::ValidatingFiles, None));
    let job = bench.store.mark_running(&lease).await.unwrap();
    assert_eq!((job.state, job.started_at), (JobState::Running, Some(crate::bench::START)));
    let events = bench.event_count(id).await;
    bench.store.mark_running(&lease).await.unwrap();
    assert_eq!(bench.event_count(id).await, events, "told once");
}
