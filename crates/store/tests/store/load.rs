//! Heartbeats go on while hundreds read and others write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tunesmith_store::{JobFilter, NewEvent, PageQuery};

use crate::bench::bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn heartbeats_go_on_under_512_readers_and_a_busy_writer() {
    let bench = bench().await;
    let lease = bench.running().await;
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..512 {
        let (store, stop, reads, job) = (bench.store.clone(), stop.clone(), reads.clone(), lease.job);
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match i % 3 {
                    0 => drop(store.job(job).await.unwrap()),
                    1 => drop(store.list_jobs(&PageQuery::default(), &JobFilter::default()).await.unwrap()),
                    _ => drop(store.list_events(job, &PageQuery::default()).await.unwrap()),
                }
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    {
        let (store, stop, lease) = (bench.store.clone(), stop.clone(), lease.clone());
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                store.append_events(&lease, &[NewEvent::info("busy")]).await.unwrap();
            }
        });
    }
    // The worker is another process: its own store on the same folder.
    let worker = bench.second().await;
    let mut longest = Duration::ZERO;
    let mut beats = 0;
    while beats < 50 || reads.load(Ordering::Relaxed) < 5_000 {
        let begun = Instant::now();
        worker.heartbeat(&lease).await.unwrap();
        longest = longest.max(begun.elapsed());
        beats += 1;
    }
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    assert_eq!(bench.store.job(lease.job).await.unwrap().lease_beat, beats);
    // A lease lasts 15 s; the busy time-out of SQLite is 5 s.
    assert!(longest < Duration::from_secs(5), "a heartbeat took {longest:?}");
}

#[tokio::test]
async fn what_handlers_await_can_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let bench = bench().await;
    let (store, id) = (&bench.store, bench.job().await.id);
    let lease = bench.claim().await.0;
    is_send(&store.create_job(bench.new_job().await));
    is_send(&store.pause(id));
    is_send(&store.delete_job(id));
    is_send(&store.fail(&lease, &crate::bench::error("x")));
    is_send(&store.list_jobs(&PageQuery::default(), &JobFilter::default()));
    is_send(&store.sweep(&bench.lock()));
    is_send(&store.blobs().put_file("files/x", std::path::Path::new("x")));
    is_send(&tunesmith_store::LeaseWatcher::new(store.clone()).tick());
    is_send(&tunesmith_store::Store::open(bench.folder.path(), bench.clock.clone()));
}
