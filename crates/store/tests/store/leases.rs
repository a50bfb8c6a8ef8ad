//! Who lives and who is lost: the watcher on its own clock, attempts, restarts.

use std::time::Duration;

use tunesmith_store::{JobState, LeaseToken, LeaseWatcher, LostLease};

use crate::bench::{Bench, assert_fenced, bench, claim};

const SECOND: Duration = Duration::from_secs(1);
const DAY_MS: i64 = 86_400_000;

/// Lets seconds pass, with a tick in each, and with a beat in each where a lease is given.
async fn pass(bench: &Bench, watcher: &mut LeaseWatcher, seconds: u32, beat: Option<&LeaseToken>) -> Vec<LostLease> {
    let mut lost = Vec::new();
    for _ in 0..seconds {
        bench.clock.advance(SECOND);
        if let Some(lease) = beat {
            bench.store.heartbeat(lease).await.unwrap();
        }
        lost.extend(watcher.tick().await.unwrap());
    }
    lost
}

#[tokio::test]
async fn a_silent_worker_is_lost_after_fifteen_seconds_and_not_before() {
    let bench = bench().await;
    let lease = bench.running().await;
    let mut watcher = LeaseWatcher::new(bench.store.clone());
    assert_eq!(pass(&bench, &mut watcher, 60, Some(&lease)).await, []);
    assert_eq!(pass(&bench, &mut watcher, 14, None).await, []);
    let lost = pass(&bench, &mut watcher, 1, None).await;
    assert_eq!(lost.len(), 1);
    assert_eq!((lost[0].job.id, lost[0].job.state, lost[0].owner.as_str()), (lease.job, JobState::Queued, "w"));
    assert!(lost[0].job.attempt_reasons[0].contains("15 s"), "{:?}", lost[0].job.attempt_reasons);
    // The stalled worker wakes up.
    assert_fenced("heartbeat", bench.store.heartbeat(&lease).await.map(drop));
    assert_eq!(pass(&bench, &mut watcher, 60, None).await, [], "nobody holds it now");
}

#[tokio::test]
async fn jumps_of_the_wall_clock_kill_no_worker_and_save_none() {
    let bench = bench().await;
    let lease = bench.running().await;
    let mut watcher = LeaseWatcher::new(bench.store.clone());
    for jump in [DAY_MS, -2 * DAY_MS, 365 * DAY_MS] {
        bench.clock.jump_wall(jump);
        assert_eq!(pass(&bench, &mut watcher, 5, Some(&lease)).await, [], "jump of {jump} ms");
    }
    assert_eq!(pass(&bench, &mut watcher, 10, None).await, []);
    bench.clock.jump_wall(-30 * DAY_MS);
    assert_eq!(pass(&bench, &mut watcher, 5, None).await.len(), 1);
}

#[tokio::test]
async fn a_watcher_that_slept_condemns_nobody_for_the_time_it_did_not_look() {
    let bench = bench().await;
    let lease = bench.running().await;
    let mut watcher = LeaseWatcher::new(bench.store.clone());
    assert_eq!(pass(&bench, &mut watcher, 2, Some(&lease)).await, []);
    // The whole machine was suspended for an hour, the worker with it.
    bench.clock.advance(Duration::from_secs(3600));
    assert_eq!(watcher.tick().await.unwrap(), []);
    assert_eq!(pass(&bench, &mut watcher, 60, Some(&lease)).await, []);
    assert_eq!(pass(&bench, &mut watcher, 15, None).await.len(), 1);
}

#[tokio::test]
async fn a_new_lease_starts_with_its_full_time() {
    let bench = bench().await;
    let lease = bench.running().await;
    let mut watcher = LeaseWatcher::new(bench.store.clone());
    assert_eq!(pass(&bench, &mut watcher, 14, None).await, []);
    bench.store.release(&lease).await.unwrap();
    // The same job, owner and beat, in another epoch.
    let (second, _) = bench.claim().await;
    assert_eq!(second.job, lease.job);
    assert_eq!(pass(&bench, &mut watcher, 14, None).await, []);
}

#[tokio::test]
async fn the_third_lost_worker_fails_the_job_with_all_reasons() {
    let bench = bench().await;
    let id = bench.job().await.id;
    for (i, reason) in ["killed by signal 9, out of memory", "gave no sign of life", "ended with code 101"].iter().enumerate() {
        let (lease, job) = bench.claim().await;
        assert_eq!((job.id, job.attempts), (id, i as i64));
        bench.store.mark_running(&lease).await.unwrap();
        let lost = bench.store.owner_died("w", reason).await.unwrap();
        assert_eq!(lost[0].state, if i < 2 { JobState::Queued } else { JobState::Failed });
    }
    let job = bench.store.job(id).await.unwrap();
    let error = job.error.unwrap();
    assert_eq!(error.code, "worker_lost");
    assert_eq!(
        error.message,
        "the worker was lost 3 times: 1. killed by signal 9, out of memory; 2. gave no sign of life; 3. ended with code 101"
    );
    assert!(job.finished_at.is_some());
    assert_eq!(bench.last_event(id).await.data["state"], "failed");
    // Resumed, it has three attempts again.
    let job = bench.store.resume(id).await.unwrap();
    assert_eq!((job.attempts, job.attempt_reasons.len(), job.error, job.finished_at), (0, 0, None, None));
}

#[tokio::test]
async fn a_lease_is_lost_once_only() {
    let bench = bench().await;
    let lease = bench.running().await;
    assert!(bench.store.lease_lost(lease.job, lease.epoch, "first").await.unwrap().is_some());
    assert!(bench.store.lease_lost(lease.job, lease.epoch, "second").await.unwrap().is_none());
    assert!(bench.store.owner_died("w", "third").await.unwrap().is_empty());
    assert_eq!(bench.store.job(lease.job).await.unwrap().attempt_reasons, ["first"]);
}

#[tokio::test]
async fn a_stopped_worker_and_a_restarted_server_cost_no_attempt() {
    let bench = bench().await;
    let lease = bench.running().await;
    let job = bench.store.release(&lease).await.unwrap();
    assert_eq!((job.state, job.attempts), (JobState::Queued, 0));
    bench.claim().await;
    let released = bench.store.release_all_of("w").await.unwrap();
    assert_eq!((released[0].id, released[0].state, released[0].attempts), (lease.job, JobState::Queued, 0));
}

#[tokio::test]
async fn a_restart_takes_only_its_own_workers_leases() {
    let bench = bench().await;
    for owner in ["serve-1", "serve-2", "hand_made", "handXmade", "SERVE-3"] {
        bench.job().await;
        bench.store.claim(&claim(owner)).await.unwrap().unwrap();
    }
    assert_eq!(bench.store.release_all_of("serve-").await.unwrap().len(), 2);
    // A wildcard of LIKE is an ordinary character.
    assert_eq!(bench.store.release_all_of("hand_").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_worker_lost_while_it_validates_leaves_the_job_to_be_validated() {
    let bench = bench().await;
    bench.job().await;
    let (lease, _) = bench.claim().await;
    let job = bench.store.lease_lost(lease.job, lease.epoch, "killed").await.unwrap().unwrap();
    assert_eq!(job.state, JobState::ValidatingFiles);
    assert_eq!(bench.claim().await.1.id, lease.job);
}
