//! A worker that lost its lease changes nothing, however it lost it.

use tunesmith_store::{Control, JobState, LeaseToken, NewMetric};

use crate::bench::{Bench, assert_fenced, bench, checkpoint, claim, error, finished, worker_calls};

/// All ways in which a worker stops holding a job.
async fn take_away(bench: &Bench, lease: &LeaseToken, way: &str) {
    let store = &bench.store;
    match way {
        "cancelled" => drop(store.cancel(lease.job).await.unwrap()),
        "lost" => drop(store.lease_lost(lease.job, lease.epoch, "stalled").await.unwrap()),
        "died" => drop(store.owner_died("w", "killed by signal 9").await.unwrap()),
        "restarted" => drop(store.release_all_of("w").await.unwrap()),
        "paused" => drop(store.paused(lease).await.unwrap()),
        "released" => drop(store.release(lease).await.unwrap()),
        "failed" => drop(store.fail(lease, &error("no")).await.unwrap()),
        "succeeded" => drop(store.succeed(lease, &finished(bench, lease.job).await).await.unwrap()),
        // The same worker takes the job again: its old token is still an old one.
        "taken again" => {
            store.release(lease).await.unwrap();
            store.claim(&claim("w")).await.unwrap().unwrap();
        }
        _ => {
            store.release(lease).await.unwrap();
            store.claim(&claim("other")).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_worker_without_its_lease_writes_nothing() {
    for way in ["cancelled", "lost", "died", "restarted", "paused", "released", "failed", "succeeded", "taken again", "taken by another"] {
        let bench = bench().await;
        let lease = bench.running().await;
        let first = NewMetric { step: 1, entry: serde_json::json!({"loss": 2.0}) };
        bench.store.append_metrics(&lease, &[first]).await.unwrap();
        checkpoint(&bench.store, &lease, 1, true).await.unwrap();
        take_away(&bench, &lease, way).await;

        let job = bench.store.job(lease.job).await.unwrap();
        let events = bench.event_count(lease.job).await;
        let models = bench.store.list_models().await.unwrap();
        let checkpoints = bench.store.checkpoints(lease.job).await.unwrap();
        let report = bench.store.report(lease.job).await.unwrap();
        for (what, result) in worker_calls(&bench, &lease).await {
            assert_fenced(&format!("{what} after the lease was {way}"), result);
        }
        assert_eq!(bench.store.job(lease.job).await.unwrap(), job, "{way}");
        assert_eq!(bench.event_count(lease.job).await, events, "{way}");
        assert_eq!(bench.store.list_models().await.unwrap(), models, "{way}");
        assert_eq!(bench.store.checkpoints(lease.job).await.unwrap(), checkpoints, "{way}");
        assert_eq!(bench.store.report(lease.job).await.unwrap(), report, "{way}");
        assert_eq!(bench.store.metrics(lease.job).await.unwrap().len(), 1, "{way}");
    }
}

#[tokio::test]
async fn a_worker_with_its_lease_may_do_everything() {
    // The counterpart of the test above: the calls there fail for the lease and for nothing else.
    let bench = bench().await;
    let lease = bench.running().await;
    let ends = ["paused", "release", "fail", "succeed"];
    for (what, result) in worker_calls(&bench, &lease).await {
        if ends[1..].contains(&what) {
            // `paused` came first and ended the lease.
            assert_fenced(what, result);
        } else {
            assert!(result.is_ok(), "{what}: {result:?}");
        }
    }
    let job = bench.store.job(lease.job).await.unwrap();
    assert_eq!((job.state, job.step, job.lease_owner), (JobState::Paused, 99, None));
    assert_eq!(job.spec, serde_json::json!({"changed": true}));
}

#[tokio::test]
async fn control_and_heartbeat_carry_the_pause() {
    let bench = bench().await;
    let lease = bench.running().await;
    assert_eq!(bench.store.heartbeat(&lease).await.unwrap(), Control::None);
    assert_eq!(bench.store.control(&lease).await.unwrap(), Control::None);
    bench.store.pause(lease.job).await.unwrap();
    assert_eq!(bench.store.heartbeat(&lease).await.unwrap(), Control::Pause);
    assert_eq!(bench.store.control(&lease).await.unwrap(), Control::Pause);
    assert_eq!(bench.store.job(lease.job).await.unwrap().lease_beat, 2);
}

#[tokio::test]
async fn a_failure_in_the_middle_of_success_leaves_the_job_running() {
    let bench = bench().await;
    let lease = bench.running().await;
    let mut done = finished(&bench, lease.job).await;
    // The second file has the first one's id, so the transaction fails after the model's row was
    // written.
    done.result_files.push(done.result_files[0].clone());
    bench.store.succeed(&lease, &done).await.unwrap_err();
    let job = bench.store.job(lease.job).await.unwrap();
    assert_eq!((job.state, job.fine_tuned_model), (JobState::Running, None));
    assert!(bench.store.list_models().await.unwrap().is_empty());
    done.result_files.pop();
    assert_eq!(bench.store.succeed(&lease, &done).await.unwrap().state, JobState::Succeeded);
}
