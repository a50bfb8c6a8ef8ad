//! Files and folders of bytes: complete or absent, streamed, listed, moved.

use futures::TryStreamExt;
use tunesmith_store::StoreError;

use crate::bench::bench;

#[tokio::test]
async fn a_file_larger_than_a_piece_comes_back_as_it_was() {
    let bench = bench().await;
    let blobs = bench.store.blobs();
    // More than two pieces of 8 MiB, and no multiple of anything.
    let bytes: Vec<u8> = (0..(16 << 20) + 12_345_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = bench.folder.path().join("upload");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(blobs.put_file("files/big", &path).await.unwrap(), bytes.len() as u64);
    let found = blobs.get_stream("files/big").await.unwrap();
    assert_eq!(found.size, bytes.len() as u64);
    let pieces: Vec<_> = found.stream.try_collect().await.unwrap();
    assert!(pieces.len() > 1, "streamed, not whole");
    assert_eq!(pieces.concat(), bytes);
    assert_eq!(std::fs::read(blobs.local_path("files/big").unwrap()).unwrap(), bytes);
    assert_eq!(bench.blob_files(), ["files/big"], "no temporary file stays");
}

#[tokio::test]
async fn an_empty_file_is_a_blob_too() {
    let bench = bench().await;
    let path = bench.folder.path().join("empty");
    std::fs::write(&path, "").unwrap();
    assert_eq!(bench.store.blobs().put_file("files/empty", &path).await.unwrap(), 0);
    assert_eq!(bench.store.blobs().get_bytes("files/empty").await.unwrap().len(), 0);
}

#[tokio::test]
async fn folders_are_copied_moved_and_removed_whole() {
    let bench = bench().await;
    let blobs = bench.store.blobs();
    let staging = blobs.staging("test").unwrap();
    std::fs::create_dir(staging.path().join("sub")).unwrap();
    std::fs::write(staging.path().join("config.json"), "{}").unwrap();
    std::fs::write(staging.path().join("sub/weights.bin"), "1234").unwrap();
    assert_eq!(blobs.put_folder("models/copied", staging.path()).await.unwrap(), 6);
    blobs.put_bytes("models/moved/old.json", "old").await.unwrap();
    blobs.move_folder("models/moved", staging.path()).await.unwrap();
    assert!(!staging.path().exists());
    let moved = blobs.list("models/moved").await.unwrap();
    assert_eq!(moved, ["models/moved/config.json", "models/moved/sub/weights.bin"], "what was there is replaced");
    assert_eq!(blobs.usage().await.unwrap().folders["models"], (4, 12));
    // A prefix is a folder, not the beginning of a name.
    blobs.put_bytes("models/copied-too", "x").await.unwrap();
    assert_eq!(blobs.delete_prefix("models/copied").await.unwrap(), 2);
    assert_eq!(blobs.list("models").await.unwrap().len(), 3);
    assert_eq!(blobs.delete_prefix("models/copied").await.unwrap(), 0, "none there is as good");
}

#[tokio::test]
async fn a_link_in_a_folder_is_refused() {
    let bench = bench().await;
    let staging = bench.store.blobs().staging("test").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", staging.path().join("config.json")).unwrap();
    let error = bench.store.blobs().put_folder("models/m", staging.path()).await.unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    assert!(bench.blob_files().is_empty());
}

#[tokio::test]
async fn keys_stay_inside_the_folder() {
    let bench = bench().await;
    let blobs = bench.store.blobs();
    for key in ["../serve.lock", "files/../../x", "files//x", "./x", "files/x#1/.."] {
        let error = blobs.put_bytes(key, "x").await.unwrap_err();
        assert!(matches!(error, StoreError::BadKey { .. }), "{key}: {error}");
        assert!(blobs.local_path(key).is_none(), "{key}");
    }
    assert!(matches!(blobs.delete_prefix("").await, Err(StoreError::BadKey { .. })));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let bench = bench().await;
    let error = bench.store.blobs().get_stream("files/none").await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    bench.store.blobs().delete("files/none").await.unwrap();
}

#[tokio::test]
async fn a_staging_folder_goes_when_it_is_dropped() {
    let bench = bench().await;
    let staging = bench.store.blobs().staging("test").unwrap();
    let path = staging.path().to_path_buf();
    std::fs::write(path.join("half"), "x").unwrap();
    drop(staging);
    assert!(!path.exists());
}

/// By hand, where `/dev/shm` is another file system than the temporary folder.
#[tokio::test]
#[ignore = "needs /dev/shm on another file system"]
async fn a_folder_on_another_file_system_is_copied() {
    let bench = bench().await;
    let far = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(far.path().join("config.json"), "{}").unwrap();
    let blobs = bench.store.blobs();
    blobs.move_folder("models/m", far.path()).await.unwrap();
    assert_eq!(bench.blob_files(), ["models/m/config.json"]);
    assert!(!far.path().exists());
}
