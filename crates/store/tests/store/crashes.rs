//! What a crash leaves between blob and row, and what the sweep makes of it.

use tunesmith_store::{FileId, Keys, SweepReport};

use crate::bench::{Condition, bench, checkpoint};

#[tokio::test]
async fn a_blob_without_its_row_goes_and_everything_with_a_row_stays() {
    let bench = bench().await;
    let (id, _) = bench.job_in(Condition::Succeeded).await;
    let blobs = bench.store.blobs();
    let before = bench.blob_files();
    // An upload died after its blob and before its row; another one in the middle of its blob.
    let lost = Keys::file(FileId::generate(&*bench.clock));
    blobs.put_bytes(&lost, "12345").await.unwrap();
    let root = bench.folder.path().join("blobs");
    std::fs::write(root.join("files/file-x#1"), "half").unwrap();
    std::fs::create_dir_all(root.join("models/ftjob-gone/sub")).unwrap();
    std::fs::write(root.join("models/ftjob-gone/sub/model.safetensors#12"), "half").unwrap();
    let forgotten = bench.folder.path().join("tmp/upload-abc");
    std::fs::create_dir_all(&forgotten).unwrap();
    std::fs::write(forgotten.join("part"), "x").unwrap();

    let report = bench.store.sweep(&bench.lock()).await.unwrap();
    let right = SweepReport { orphan_blobs: 1, orphan_bytes: 5, half_written: 2, staging_folders: 1, ..SweepReport::default() };
    assert_eq!(report, right);
    assert_eq!(bench.blob_files(), before);
    assert!(!forgotten.exists() && !root.join("models/ftjob-gone").exists());
    let model = bench.store.job(id).await.unwrap().fine_tuned_model.unwrap();
    assert!(bench.store.model(&model).await.is_ok());
    assert_eq!(bench.store.sweep(&bench.lock()).await.unwrap(), SweepReport::default(), "nothing is left to do");
}

#[tokio::test]
async fn a_worker_that_still_runs_is_spared() {
    let bench = bench().await;
    let lease = bench.running().await;
    let blobs = bench.store.blobs();
    // The checkpoint's folder is written and not yet recorded, the next one is being staged.
    blobs.put_bytes(&format!("{}/state.json", Keys::checkpoint(lease.job, 10)), "{}").await.unwrap();
    let staging = blobs.staging(&format!("{}-2", lease.job)).unwrap();
    std::fs::write(staging.path().join("model.safetensors"), "x").unwrap();
    let before = bench.blob_files();
    assert_eq!(bench.store.sweep(&bench.lock()).await.unwrap(), SweepReport::default());
    assert_eq!(bench.blob_files(), before);
    assert!(staging.path().join("model.safetensors").exists());
    // Without its worker it is garbage.
    bench.store.release(&lease).await.unwrap();
    let report = bench.store.sweep(&bench.lock()).await.unwrap();
    assert_eq!((report.orphan_blobs, report.staging_folders), (1, 1));
}

#[tokio::test]
async fn expired_checkpoints_whose_files_stayed_are_cleared() {
    let bench = bench().await;
    let lease = bench.running().await;
    for step in [10, 20, 30, 40] {
        checkpoint(&bench.store, &lease, step, false).await.unwrap();
    }
    bench.store.retain_checkpoints(&lease, 3).await.unwrap();
    bench.store.release(&lease).await.unwrap();
    // A crash after the rows were marked: the files are back.
    for key in [10, 20].map(|step| format!("{}/state.json", Keys::checkpoint(lease.job, step))) {
        bench.store.blobs().put_bytes(&key, "x").await.unwrap();
    }
    bench.store.sweep(&bench.lock()).await.unwrap();
    let files = bench.blob_files();
    assert!(!files.iter().any(|file| file.contains("step-10") || file.ends_with("step-20/state.json")), "{files:?}");
    assert!(files.iter().any(|file| file.ends_with("step-20/adapter_model.safetensors")), "{files:?}");
}

#[tokio::test]
async fn rows_whose_blobs_are_gone_are_reported() {
    let bench = bench().await;
    let (id, _) = bench.job_in(Condition::Succeeded).await;
    let file = bench.file().await;
    bench.store.blobs().delete(&file.blob_key).await.unwrap();
    bench.store.blobs().delete_prefix(&Keys::model(id)).await.unwrap();
    let report = bench.store.sweep(&bench.lock()).await.unwrap();
    assert_eq!(report.missing, [file.blob_key, Keys::model(id)]);
}

#[tokio::test]
async fn a_store_opens_again_with_all_that_was_answered() {
    let bench = bench().await;
    let lease = bench.running().await;
    let before = bench.store.job(lease.job).await.unwrap();
    // No close: the process is gone, its write-ahead log stays.
    let again = bench.second().await;
    assert_eq!(again.job(lease.job).await.unwrap(), before);
    bench.store.close().await;
    assert_eq!(bench.second().await.job(lease.job).await.unwrap(), before);
}

#[tokio::test]
async fn an_action_that_is_dropped_half_way_changes_nothing_and_blocks_nobody() {
    let bench = bench().await;
    let id = bench.job().await.id;
    let before = bench.store.job(id).await.unwrap();
    // A client that hangs up drops the handler's future at any await point.
    for polls in 0..40 {
        let mut action = Box::pin(bench.store.pause(id));
        let mut done = false;
        for _ in 0..polls {
            if futures::poll!(action.as_mut()).is_ready() {
                done = true;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(action);
        let job = bench.store.job(id).await.unwrap();
        let consistent = job == before || job.state == tunesmith_store::JobState::Paused;
        assert!(consistent, "half a change after {polls} polls: {job:?}");
        if done || job != before {
            break;
        }
    }
    bench.store.cancel(id).await.unwrap();
}
