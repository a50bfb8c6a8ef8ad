//! The state machine as a table: every action on a job in every condition.

use tunesmith_store::{JobState, StoreError};

use crate::bench::{Bench, Condition, bench};

const CONDITIONS: [Condition; 10] = {
    use Condition::*;
    [Validating, ValidatingLeased, Queued, QueuedLeased, Running, Pausing, Paused, Succeeded, Failed, Cancelled]
};

/// What an action leads to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum To {
    /// The state, with an event.
    Goes(JobState),
    /// A worker was asked to pause; the state stays.
    Asks(JobState),
    /// The job was there already: nothing changes.
    Stays(JobState),
    /// 409.
    Refused,
    /// The row is gone.
    Gone,
}

async fn check(action: &str, expected: [To; 10]) {
    for (condition, expected) in CONDITIONS.into_iter().zip(expected) {
        let bench = bench().await;
        let got = act(&bench, action, condition).await;
        assert_eq!(got, expected, "{action} a job that is {condition:?}");
    }
}

async fn act(bench: &Bench, action: &str, condition: Condition) -> To {
    let (id, _) = bench.job_in(condition).await;
    let before = bench.store.job(id).await.unwrap();
    let events = bench.event_count(id).await;
    let result = match action {
        "pause" => bench.store.pause(id).await,
        "resume" => bench.store.resume(id).await,
        "cancel" => bench.store.cancel(id).await,
        _ => bench.store.delete_job(id).await,
    };
    let after = match bench.store.job(id).await {
        Ok(after) => after,
        Err(StoreError::NotFound { .. }) => return To::Gone,
        Err(error) => panic!("{error}"),
    };
    match result {
        Err(StoreError::InvalidState { id: named, state, .. }) => {
            assert_eq!((named, state), (id, before.state));
            assert_eq!(after, before, "a refused action changed the job");
            To::Refused
        }
        Err(error) => panic!("{error}"),
        Ok(job) => {
            assert_eq!(job, after, "the answer is the job as it stands");
            if after == before {
                assert_eq!(bench.event_count(id).await, events, "nothing happened, so no event tells of it");
                return To::Stays(job.state);
            }
            assert_eq!(bench.event_count(id).await, events + 1);
            if job.state == before.state {
                assert!(job.pausing);
                return To::Asks(job.state);
            }
            assert_eq!(bench.last_event(id).await.data["state"], job.state.as_str());
            assert_eq!((job.pausing, &job.lease_owner), (false, &None));
            assert_eq!(job.finished_at.is_some(), job.state.is_final());
            To::Goes(job.state)
        }
    }
}

#[tokio::test]
async fn pause_stops_what_waits_and_asks_what_runs() {
    use JobState::*;
    use To::*;
    check(
        "pause",
        [
            Goes(Paused),
            Asks(ValidatingFiles),
            Goes(Paused),
            Asks(Queued),
            Asks(Running),
            Stays(Running),
            Stays(Paused),
            Refused,
            Refused,
            Refused,
        ],
    )
    .await;
}

#[tokio::test]
async fn resume_queues_what_is_paused_or_failed() {
    use JobState::*;
    use To::*;
    check("resume", [Refused, Refused, Stays(Queued), Stays(Queued), Refused, Refused, Goes(Queued), Refused, Goes(Queued), Refused]).await;
}

#[tokio::test]
async fn cancel_ends_whatever_has_not_ended() {
    use JobState::*;
    use To::*;
    let mut expected = [Goes(Cancelled); 10];
    expected[7..].copy_from_slice(&[Refused, Refused, Stays(Cancelled)]);
    check("cancel", expected).await;
}

#[tokio::test]
async fn delete_takes_finished_jobs_only() {
    let mut expected = [To::Refused; 10];
    expected[7..].fill(To::Gone);
    check("delete", expected).await;
}

#[tokio::test]
async fn a_job_tells_its_life_in_events() {
    let bench = bench().await;
    let (id, _) = bench.job_in(Condition::Succeeded).await;
    let events = bench.store.job_events_since(id, 0, 100).await.unwrap();
    let told: Vec<(&str, &str)> = events.iter().map(|e| (e.message.as_str(), e.data["state"].as_str().unwrap_or("-"))).collect();
    let job = bench.store.job(id).await.unwrap();
    let model = job.fine_tuned_model.clone().unwrap();
    assert_eq!(
        told,
        [
            (format!("Created fine-tuning job: {id}").as_str(), "validating_files"),
            (format!("Validating training file: {}", job.training_file).as_str(), "-"),
            ("Files validated, moving job to queued state", "queued"),
            ("Fine-tuning job started", "running"),
            (format!("New fine-tuned model created: {model}").as_str(), "-"),
            ("The job has successfully completed", "succeeded"),
        ]
    );
}

#[tokio::test]
async fn success_writes_model_results_and_state_together() {
    let bench = bench().await;
    let (id, _) = bench.job_in(Condition::Succeeded).await;
    let job = bench.store.job(id).await.unwrap();
    let model = bench.store.model(job.fine_tuned_model.as_ref().unwrap()).await.unwrap();
    assert_eq!((model.job_id, model.labels.as_slice()), (Some(id), ["no".to_owned(), "yes".to_owned()].as_slice()));
    assert_eq!(job.trained_tokens, Some(4_096));
    let csv = bench.store.file(job.result_files[0]).await.unwrap();
    assert_eq!((csv.filename.as_str(), csv.purpose.as_str()), ("metrics.csv", "fine-tune-results"));
    let report = bench.store.report(id).await.unwrap().unwrap();
    assert!(report.predictions_key.unwrap().ends_with("predictions.jsonl"));
}

#[tokio::test]
async fn a_pause_that_was_asked_for_outlives_its_worker() {
    let bench = bench().await;
    for way in ["release", "lost", "restart"] {
        let lease = bench.running().await;
        bench.store.pause(lease.job).await.unwrap();
        match way {
            "release" => drop(bench.store.release(&lease).await.unwrap()),
            "lost" => drop(bench.store.lease_lost(lease.job, lease.epoch, "killed").await.unwrap()),
            _ => drop(bench.store.release_all_of("w").await.unwrap()),
        }
        let job = bench.store.job(lease.job).await.unwrap();
        assert_eq!((job.state, job.pausing), (JobState::Paused, false), "{way}");
    }
}

#[tokio::test]
async fn resuming_needs_the_files_that_a_failed_job_no_longer_protects() {
    let bench = bench().await;
    let (id, _) = bench.job_in(Condition::Failed).await;
    let file = bench.store.job(id).await.unwrap().training_file;
    bench.store.delete_file(file).await.unwrap();
    let error = bench.store.resume(id).await.unwrap_err();
    assert!(error.to_string().contains(&file.to_string()), "{error}");
    assert_eq!(bench.store.job(id).await.unwrap().state, JobState::Failed);
}
