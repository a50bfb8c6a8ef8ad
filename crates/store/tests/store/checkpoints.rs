//! Checkpoints: names that answer and names that expired, what is kept, what a resume finds.

use tunesmith_store::{CheckpointLookup, PageQuery};

use crate::bench::{bench, checkpoint, new_checkpoint};

/// Steps with model files, steps with state.
async fn kept(bench: &crate::bench::Bench, job: tunesmith_store::JobId) -> (Vec<i64>, Vec<i64>) {
    let rows = bench.store.checkpoints(job).await.unwrap();
    let steps = |keep: fn(&tunesmith_store::CheckpointRow) -> bool| rows.iter().filter(|r| keep(r)).map(|r| r.step).collect();
    (steps(|r| r.has_model), steps(|r| r.has_state))
}

#[tokio::test]
async fn state_is_kept_for_two_and_the_best_and_models_up_to_the_limit() {
    let bench = bench().await;
    let lease = bench.running().await;
    for (step, is_best) in [(10, false), (20, true), (30, false), (40, false), (50, false), (60, false)] {
        checkpoint(&bench.store, &lease, step, is_best).await.unwrap();
        bench.store.retain_checkpoints(&lease, 3).await.unwrap();
    }
    assert_eq!(kept(&bench, lease.job).await, (vec![20, 40, 50, 60], vec![20, 50, 60]));
    let files = bench.blob_files();
    let of = |step: i64| -> Vec<&str> {
        let folder = format!("step-{step}/");
        files.iter().filter_map(|file| file.split_once(&folder).map(|(_, name)| name)).collect()
    };
    assert_eq!(of(30), [""; 0]);
    assert_eq!(of(40), ["adapter_model.safetensors"]);
    assert_eq!(of(50), ["adapter_model.safetensors", "state.json", "state.safetensors"]);
    assert_eq!(of(20).len(), 3, "the best is kept whole");
    // The metrics of expired ones stay as history.
    assert_eq!(bench.store.checkpoints(lease.job).await.unwrap().len(), 6);
}

#[tokio::test]
async fn a_limit_of_one_keeps_the_state_before_it_for_safety() {
    let bench = bench().await;
    let lease = bench.running().await;
    for step in [10, 20, 30] {
        checkpoint(&bench.store, &lease, step, false).await.unwrap();
        bench.store.retain_checkpoints(&lease, 0).await.unwrap();
    }
    assert_eq!(kept(&bench, lease.job).await, (vec![30], vec![20, 30]));
    assert!(bench.blob_files().iter().any(|file| file.ends_with("step-20/state.json")));
}

#[tokio::test]
async fn a_new_best_replaces_the_old_one() {
    let bench = bench().await;
    let lease = bench.running().await;
    for (step, is_best) in [(10, true), (20, true), (30, false), (40, false)] {
        checkpoint(&bench.store, &lease, step, is_best).await.unwrap();
    }
    let rows = bench.store.checkpoints(lease.job).await.unwrap();
    assert_eq!(rows.iter().filter(|r| r.is_best).map(|r| r.step).collect::<Vec<_>>(), [20]);
}

#[tokio::test]
async fn names_are_found_expired_or_unknown() {
    let bench = bench().await;
    let lease = bench.running().await;
    for step in [10, 20, 30] {
        checkpoint(&bench.store, &lease, step, false).await.unwrap();
    }
    bench.store.retain_checkpoints(&lease, 1).await.unwrap();
    let name = |step| new_checkpoint(lease.job, step, false).model_name;
    let found = bench.store.checkpoint_by_name(&name(30)).await.unwrap();
    assert!(matches!(found, CheckpointLookup::Found(row) if row.step == 30));
    let expired = bench.store.checkpoint_by_name(&name(10)).await.unwrap();
    assert!(matches!(expired, CheckpointLookup::Expired(row) if row.step == 10));
    assert_eq!(bench.store.checkpoint_by_name(&name(40)).await.unwrap(), CheckpointLookup::NotFound);
}

#[tokio::test]
async fn a_resume_finds_the_latest_state_and_a_repeated_step_keeps_its_id() {
    let bench = bench().await;
    let lease = bench.running().await;
    assert_eq!(bench.store.resumable_checkpoint(lease.job).await.unwrap(), None);
    for step in [10, 20, 30] {
        checkpoint(&bench.store, &lease, step, false).await.unwrap();
        bench.store.retain_checkpoints(&lease, 5).await.unwrap();
    }
    let last = bench.store.resumable_checkpoint(lease.job).await.unwrap().unwrap();
    assert_eq!(last.step, 30);
    checkpoint(&bench.store, &lease, 30, true).await.unwrap();
    let again = bench.store.resumable_checkpoint(lease.job).await.unwrap().unwrap();
    assert_eq!((again.id, again.is_best), (last.id, true));
    let page = PageQuery { limit: 2, ..Default::default() };
    let page = bench.store.list_checkpoints(lease.job, &page).await.unwrap();
    assert_eq!((page.items.iter().map(|r| r.step).collect::<Vec<_>>(), page.has_more), (vec![30, 20], true));
}
