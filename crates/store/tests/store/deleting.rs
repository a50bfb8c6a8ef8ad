//! Who may be deleted, and what goes with it.

use serde_json::json;
use tunesmith_store::{CheckpointLookup, JobState, Keys, NewAdapter, NewJob, StoreError};

use crate::bench::{Condition, bench, checkpoint, finished, new_checkpoint, new_job};

fn adapter(name: &str, base: &str) -> NewAdapter {
    NewAdapter {
        name: name.to_owned(),
        base_model: base.to_owned(),
        folder_key: None,
        source: Some("hf:someone/adapter".to_owned()),
        info: json!({"r": 8}),
    }
}

fn users(error: StoreError) -> Vec<String> {
    match error {
        StoreError::InUse { by, .. } => by,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_file_is_kept_while_an_unfinished_job_needs_it() {
    use Condition::*;
    for condition in [Validating, Queued, Running, Paused, Succeeded, Failed, Cancelled] {
        let bench = bench().await;
        let (id, _) = bench.job_in(condition).await;
        let job = bench.store.job(id).await.unwrap();
        let result = bench.store.delete_file(job.training_file).await;
        let key = Keys::file(job.training_file);
        if job.state.is_final() {
            result.unwrap();
            assert!(bench.store.file(job.training_file).await.is_err());
        } else {
            assert_eq!(users(result.unwrap_err()), [id.to_string()], "{condition:?}");
        }
        assert_eq!(bench.blob_files().contains(&key), !job.state.is_final(), "{condition:?}");
    }
}

#[tokio::test]
async fn a_validation_file_counts_too() {
    let bench = bench().await;
    let (training, validation) = (bench.file().await.id, bench.file().await.id);
    let new = NewJob { validation_file: Some(validation), ..new_job(training) };
    bench.store.create_job(new).await.unwrap();
    users(bench.store.delete_file(validation).await.unwrap_err());
}

#[tokio::test]
async fn a_job_needs_files_that_exist() {
    let bench = bench().await;
    let file = bench.file().await.id;
    bench.store.delete_file(file).await.unwrap();
    let error = bench.store.create_job(new_job(file)).await.unwrap_err();
    assert!(error.to_string().contains(&file.to_string()), "{error}");
    assert!(bench.store.list_jobs(&Default::default(), &Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn deleting_a_job_takes_its_history_and_leaves_its_model() {
    let bench = bench().await;
    let lease = bench.running().await;
    checkpoint(&bench.store, &lease, 10, false).await.unwrap();
    let done = finished(&bench, lease.job).await;
    let job = bench.store.succeed(&lease, &done).await.unwrap();
    bench.store.delete_job(lease.job).await.unwrap();
    assert!(matches!(bench.store.job(lease.job).await, Err(StoreError::NotFound { .. })));
    assert_eq!(bench.event_count(lease.job).await, 0);
    assert!(bench.store.checkpoints(lease.job).await.unwrap().is_empty());
    assert_eq!(bench.store.report(lease.job).await.unwrap(), None);
    assert!(bench.store.model(&done.model.name).await.is_ok());
    assert!(bench.store.file(job.result_files[0]).await.is_ok());
    let files = bench.blob_files();
    assert!(files.iter().any(|file| file.starts_with("models/")), "{files:?}");
    assert!(!files.iter().any(|file| file.starts_with("checkpoints/") || file.contains("predictions")), "{files:?}");
}

#[tokio::test]
async fn deleting_a_model_takes_its_checkpoints_with_it() {
    let bench = bench().await;
    let lease = bench.running().await;
    checkpoint(&bench.store, &lease, 10, false).await.unwrap();
    let done = finished(&bench, lease.job).await;
    bench.store.succeed(&lease, &done).await.unwrap();
    bench.store.delete_model(&done.model.name).await.unwrap();
    let name = new_checkpoint(lease.job, 10, false).model_name;
    assert_eq!(bench.store.checkpoint_by_name(&name).await.unwrap(), CheckpointLookup::NotFound);
    let files = bench.blob_files();
    assert!(!files.iter().any(|file| file.starts_with("models/") || file.starts_with("checkpoints/")), "{files:?}");
    assert_eq!(bench.store.job(lease.job).await.unwrap().state, JobState::Succeeded, "the job stays");
    assert!(matches!(bench.store.delete_model(&done.model.name).await, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn a_model_that_others_stand_on_stays() {
    let bench = bench().await;
    let lease = bench.running().await;
    let done = finished(&bench, lease.job).await;
    bench.store.succeed(&lease, &done).await.unwrap();
    let name = done.model.name.as_str();
    bench.store.insert_adapter(&adapter("mine", name)).await.unwrap();
    let on_checkpoint = format!("{name}:ckpt-step-10");
    bench.store.insert_adapter(&adapter("theirs", &on_checkpoint)).await.unwrap();
    bench.store.insert_adapter(&adapter("unrelated", &format!("{name}x"))).await.unwrap();
    let further = NewJob { model: name.to_owned(), ..bench.new_job().await };
    let job = bench.store.create_job(further).await.unwrap().into_job();
    let by = users(bench.store.delete_model(name).await.unwrap_err());
    assert_eq!(by, ["mine".to_owned(), "theirs".to_owned(), job.id.to_string()]);
    for adapter in ["mine", "theirs"] {
        bench.store.delete_adapter(adapter).await.unwrap();
    }
    bench.store.cancel(job.id).await.unwrap();
    bench.store.delete_model(name).await.unwrap();
}

#[tokio::test]
async fn adapters_and_models_share_one_space_of_names() {
    let bench = bench().await;
    let lease = bench.running().await;
    let done = finished(&bench, lease.job).await;
    bench.store.succeed(&lease, &done).await.unwrap();
    bench.store.insert_adapter(&adapter("mine", "bert")).await.unwrap();
    for name in ["mine", &done.model.name] {
        let error = bench.store.insert_adapter(&adapter(name, "bert")).await.unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    }
    assert_eq!(bench.store.adapter("mine").await.unwrap().info, json!({"r": 8}));
    assert_eq!(bench.store.list_adapters().await.unwrap().len(), 1);
}
