//! A full disk is one answer, undoes what it interrupted, and ends when there is room again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};
use serde_json::json;
use tunesmith_store::{FileId, JobState, NewFile, Options, StoreError, WrapBlobs};

use crate::bench::{Bench, bench_with, finished, new_file};

/// Stands before the folder of blobs and refuses to write while `full`.
#[derive(Debug)]
struct FullDisk {
    inner: Arc<dyn ObjectStore>,
    full: Arc<AtomicBool>,
}

fn no_space() -> object_store::Error {
    let source = Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
    object_store::Error::Generic { store: "LocalFileSystem", source }
}

impl std::fmt::Display for FullDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FullDisk({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FullDisk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.full.load(Ordering::SeqCst) {
            return Err(no_space());
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(FullUpload { inner, full: self.full.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Takes the first piece and has no room for the second.
#[derive(Debug)]
struct FullUpload {
    inner: Box<dyn MultipartUpload>,
    full: Arc<AtomicBool>,
}

#[async_trait]
impl MultipartUpload for FullUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        if !self.full.load(Ordering::SeqCst) {
            return part;
        }
        async move {
            part.await?;
            Err(no_space())
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

fn is_full<T: std::fmt::Debug>(result: std::result::Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::DiskFull { .. }))
}

#[tokio::test]
async fn a_blob_that_finds_no_room_leaves_nothing_behind() {
    let full = Arc::new(AtomicBool::new(true));
    let wrap: WrapBlobs = {
        let full = full.clone();
        Arc::new(move |inner| Arc::new(FullDisk { inner, full: full.clone() }))
    };
    let bench = bench_with(Options { wrap_blobs: Some(wrap), ..Options::default() }).await;
    let blobs = bench.store.blobs();
    let staging = blobs.staging("test").unwrap();
    let path = staging.path().join("upload");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    assert!(is_full(blobs.put_bytes("files/a", "x").await));
    assert!(is_full(blobs.put_file("files/b", &path).await));
    assert!(is_full(blobs.move_folder("models/c", staging.path()).await));
    assert!(path.exists(), "what could not be moved is still there");
    assert!(bench.blob_files().is_empty(), "{:?}", bench.blob_files());
    full.store(false, Ordering::SeqCst);
    blobs.put_file("files/b", &path).await.unwrap();
    blobs.move_folder("models/c", staging.path()).await.unwrap();
    assert_eq!(bench.blob_files(), ["files/b", "models/c/upload"]);
}

/// Fills the database with files of 100 KiB of summary until there is no room, and answers those
/// that were stored.
async fn fill(bench: &Bench) -> Vec<FileId> {
    let mut stored = Vec::new();
    let size = [100_000, 1_000, 1];
    for size in size {
        loop {
            let id = FileId::generate(&*bench.clock);
            let new = NewFile { summary: json!({"text": "x".repeat(size)}), ..new_file(id, "big") };
            match bench.store.insert_file(new).await {
                Ok(_) => stored.push(id),
                Err(StoreError::DiskFull { .. }) => break,
                Err(error) => panic!("{error}"),
            }
            assert!(stored.len() < 10_000, "the limit is not in force");
        }
    }
    stored
}

#[tokio::test]
async fn a_full_database_refuses_writes_keeps_what_it_has_and_recovers() {
    let bench = bench_with(Options { max_page_count: Some(400), ..Options::default() }).await;
    let lease = bench.running().await;
    let done = finished(&bench, lease.job).await;
    let stored = fill(&bench).await;
    // Neither half of a success nor half of a batch is there, and reading goes on.
    let before = bench.store.job(lease.job).await.unwrap();
    let big = tunesmith_store::Finished {
        report: Some(tunesmith_store::JobReport { report: json!({"x": "y".repeat(1 << 20)}), predictions_key: None }),
        ..done.clone()
    };
    assert!(is_full(bench.store.succeed(&lease, &big).await));
    let text = "z".repeat(1 << 20);
    assert!(is_full(bench.store.append_events(&lease, &[tunesmith_store::NewEvent::info(text)]).await));
    assert_eq!(bench.store.job(lease.job).await.unwrap(), before);
    assert!(bench.store.list_models().await.unwrap().is_empty());
    for id in &stored {
        bench.store.file(*id).await.unwrap();
    }
    // Room again: the same store goes on.
    for id in &stored {
        bench.store.delete_file(*id).await.unwrap();
    }
    assert_eq!(bench.store.succeed(&lease, &done).await.unwrap().state, JobState::Succeeded);
}

#[tokio::test]
async fn a_worker_of_a_full_database_still_beats() {
    let bench = bench_with(Options { max_page_count: Some(400), ..Options::default() }).await;
    let lease = bench.running().await;
    fill(&bench).await;
    for beat in 1..=20 {
        bench.store.heartbeat(&lease).await.unwrap();
        assert_eq!(bench.store.job(lease.job).await.unwrap().lease_beat, beat);
    }
}

/// By hand, since it needs a file system that fills up: `mount -t tmpfs -o size=4m tmpfs DIR;
/// TMPDIR=DIR cargo test -p tunesmith-store -- --ignored a_real_full_disk`.
#[tokio::test]
#[ignore = "needs TMPDIR on a file system of about 4 MiB"]
async fn a_real_full_disk_is_told_and_overcome() {
    let bench = bench_with(Options::default()).await;
    let lease = bench.running().await;
    let done = finished(&bench, lease.job).await;
    let blobs = bench.store.blobs();
    let mut count = 0;
    for size in [256 << 10, 4 << 10] {
        loop {
            match blobs.put_bytes(&format!("files/{count}"), vec![1; size]).await {
                Ok(()) => count += 1,
                Err(StoreError::DiskFull { .. }) => break,
                Err(error) => panic!("{error}"),
            }
            assert!(count < 10_000, "the file system is too large for this test");
        }
    }
    let before = bench.store.job(lease.job).await.unwrap();
    let text = "z".repeat(1 << 20);
    let event = tunesmith_store::NewEvent::info(text);
    assert!(is_full(bench.store.append_events(&lease, &[event]).await));
    assert_eq!(bench.store.job(lease.job).await.unwrap(), before);
    assert!(blobs.list("files").await.unwrap().iter().all(|key| !key.contains('#')));
    for i in 0..count {
        blobs.delete(&format!("files/{i}")).await.unwrap();
    }
    bench.store.heartbeat(&lease).await.unwrap();
    assert_eq!(bench.store.succeed(&lease, &done).await.unwrap().state, JobState::Succeeded);
}
