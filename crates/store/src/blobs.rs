//! Files and folders of bytes, in a local folder through `object_store`.
//!
//! Called by uploads, workers (checkpoints, models, results) and serving. The one thing to know: a
//! blob appears under its key complete and synced, or not at all; what a crash leaves under
//! temporary names the sweep removes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::io::AsyncReadExt;

use crate::db::WrapBlobs;
use crate::{Result, StoreError};

/// The size of the pieces in which files are written; S3 demands at least 5 MiB.
const PIECE: usize = 8 << 20;

/// The bytes of a blob.
pub struct BlobStream {
    /// How many there are.
    pub size: u64,
    /// The pieces.
    pub stream: BoxStream<'static, Result<Bytes>>,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream").field("size", &self.size).finish_non_exhaustive()
    }
}

/// What blobs take up, by the first part of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlobUsage {
    /// In all.
    pub bytes: u64,
    /// For each top folder, the number of blobs and their bytes.
    pub folders: BTreeMap<String, (u64, u64)>,
}

/// A private folder on the same disk, to fill and then [`Blobs::move_folder`]; removed when
/// dropped.
#[derive(Debug)]
pub struct Staging(tempfile::TempDir);

impl Staging {
    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The blob store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    root: PathBuf,
    staging: PathBuf,
    /// Folders may be renamed into place past the object store, which a test's wrapper must not
    /// miss.
    direct: bool,
}

impl Blobs {
    pub(crate) fn open(data_dir: &Path, wrap: Option<&WrapBlobs>) -> Result<Self> {
        let root = data_dir.join("blobs");
        let staging = data_dir.join("tmp");
        for folder in [&root, &staging] {
            std::fs::create_dir_all(folder).map_err(|source| StoreError::io(folder, source))?;
        }
        // The object store resolves links in its prefix, and so must the paths that are compared
        // with it.
        let root = root.canonicalize().map_err(|source| StoreError::io(&root, source))?;
        let local = LocalFileSystem::new_with_prefix(&root).map_err(|source| StoreError::blob("", source))?.with_fsync(true);
        let store: Arc<dyn ObjectStore> = Arc::new(local);
        let direct = wrap.is_none();
        let store = match wrap {
            Some(wrap) => wrap(store),
            None => store,
        };
        Ok(Self { store, root, staging, direct })
    }

    /// Writes bytes that are in memory.
    pub async fn put_bytes(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let path = parse(key)?;
        self.store.put(&path, PutPayload::from_bytes(bytes.into())).await.map_err(|source| StoreError::blob(key, source))?;
        Ok(())
    }

    /// Copies a file in pieces and answers its size.
    pub async fn put_file(&self, key: &str, path: &Path) -> Result<u64> {
        let target = parse(key)?;
        let mut file = tokio::fs::File::open(path).await.map_err(|source| StoreError::io(path, source))?;
        let blob = |source| StoreError::blob(key, source);
        let mut upload = self.store.put_multipart(&target).await.map_err(blob)?;
        let mut size = 0;
        let written = loop {
            let piece = match read_piece(&mut file).await {
                Ok(piece) => piece,
                Err(source) => break Err(StoreError::io(path, source)),
            };
            if piece.is_empty() {
                break upload.complete().await.map(|_| ()).map_err(blob);
            }
            size += piece.len() as u64;
            if let Err(source) = upload.put_part(PutPayload::from_bytes(piece)).await {
                break Err(blob(source));
            }
        };
        if let Err(error) = written {
            // The first error is the one to tell; what stays under a temporary name is swept.
            if let Err(second) = upload.abort().await {
                tracing::debug!(key, error = %second, "an aborted upload left a temporary file");
            }
            return Err(error);
        }
        Ok(size)
    }

    /// Copies a folder with its subfolders under a prefix and answers its size.
    pub async fn put_folder(&self, prefix: &str, folder: &Path) -> Result<u64> {
        let mut size = 0;
        for relative in walk(folder.to_path_buf()).await? {
            size += self.put_file(&format!("{prefix}/{relative}"), &folder.join(&relative)).await?;
        }
        Ok(size)
    }

    /// Moves a folder under a prefix, replacing what is there: as one rename where the blobs are a
    /// local folder, so that readers see all of its files or none.
    pub async fn move_folder(&self, prefix: &str, folder: &Path) -> Result<()> {
        let target = parse(prefix)?;
        if self.direct && self.rename_folder(&target, folder).await? {
            return Ok(());
        }
        self.delete_prefix(prefix).await?;
        self.put_folder(prefix, folder).await?;
        tokio::fs::remove_dir_all(folder).await.map_err(|source| StoreError::io(folder, source))
    }

    /// Answers false when the folder lies on another file system and must be copied.
    async fn rename_folder(&self, target: &Key, folder: &Path) -> Result<bool> {
        let files = walk(folder.to_path_buf()).await?;
        let target = self.root.join(target.as_ref());
        let folder = folder.to_path_buf();
        blocking(&self.root, move || rename(&folder, &files, &target)).await
    }

    /// A folder to fill. The label says whose it is: the sweep spares those of jobs that a worker
    /// has.
    pub fn staging(&self, label: &str) -> Result<Staging> {
        let made = tempfile::Builder::new().prefix(&format!("{label}-")).tempdir_in(&self.staging);
        made.map(Staging).map_err(|source| StoreError::io(&self.staging, source))
    }

    /// Reads a blob in pieces.
    pub async fn get_stream(&self, key: &str) -> Result<BlobStream> {
        let path = parse(key)?;
        let found = self.store.get(&path).await.map_err(|source| StoreError::blob(key, source))?;
        let size = found.meta.size;
        let key = key.to_owned();
        let stream = found.into_stream().map_err(move |source| StoreError::blob(key.clone(), source)).boxed();
        Ok(BlobStream { size, stream })
    }

    /// Reads a blob that is known to be small.
    pub async fn get_bytes(&self, key: &str) -> Result<Bytes> {
        let path = parse(key)?;
        let found = self.store.get(&path).await.map_err(|source| StoreError::blob(key, source))?;
        found.bytes().await.map_err(|source| StoreError::blob(key, source))
    }

    /// The path of a blob or folder on this machine, for readers that map files into memory. `None`
    /// once blobs are not local.
    pub fn local_path(&self, key: &str) -> Option<PathBuf> {
        parse(key).ok().map(|key| self.root.join(key.as_ref()))
    }

    /// The keys below a prefix, in order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.list_sizes(prefix).await?.into_keys().collect())
    }

    /// The keys below a prefix with the sizes of their blobs.
    pub(crate) async fn list_sizes(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let path = parse(prefix)?;
        let below = (!prefix.is_empty()).then_some(&path);
        self.store
            .list(below)
            .map_ok(|meta| (String::from(meta.location), meta.size))
            .try_collect()
            .await
            .map_err(|source| StoreError::blob(prefix, source))
    }

    /// Removes a blob; none there is as good.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.store.delete(&parse(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::blob(key, source)),
        }
    }

    /// Removes all blobs below a prefix and answers how many there were.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        let path = parse(prefix)?;
        if prefix.is_empty() {
            return Err(StoreError::BadKey { key: String::new(), reason: "it would remove everything".to_owned() });
        }
        let mut count = 0;
        for key in self.list(prefix).await? {
            self.delete(&key).await?;
            count += 1;
        }
        // Object stores have no folders; a local one keeps them, and temporary files in them.
        let folder = self.root.join(path.as_ref());
        match tokio::fs::remove_dir_all(&folder).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io(folder, source)),
            _ => Ok(count),
        }
    }

    /// What the blobs take up.
    pub async fn usage(&self) -> Result<BlobUsage> {
        let mut usage = BlobUsage::default();
        for (key, size) in self.list_sizes("").await? {
            let top = key.split('/').next().unwrap_or_default().to_owned();
            let folder = usage.folders.entry(top).or_default();
            folder.0 += 1;
            folder.1 += size;
            usage.bytes += size;
        }
        Ok(usage)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn staging_root(&self) -> &Path {
        &self.staging
    }
}

fn parse(key: &str) -> Result<Key> {
    Key::parse(key).map_err(|error| StoreError::BadKey { key: key.chars().take(200).collect(), reason: error.to_string() })
}

async fn read_piece(file: &mut tokio::fs::File) -> std::io::Result<Bytes> {
    let mut piece = Vec::new();
    file.take(PIECE as u64).read_to_end(&mut piece).await?;
    Ok(piece.into())
}

/// Runs file system work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(about: &Path, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::io(about, std::io::Error::other(error))),
    }
}

/// The files below a folder as relative paths with `/`, in order. A link or a special file is an
/// error: a model folder has neither, and following one could read what was not meant.
async fn walk(folder: PathBuf) -> Result<Vec<String>> {
    blocking(&folder.clone(), move || {
        let mut files = Vec::new();
        let mut open = vec![String::new()];
        while let Some(below) = open.pop() {
            let path = folder.join(&below);
            for entry in std::fs::read_dir(&path).map_err(|source| StoreError::io(&path, source))? {
                let entry = entry.map_err(|source| StoreError::io(&path, source))?;
                let refused = |reason: &str| StoreError::io(entry.path(), std::io::Error::new(std::io::ErrorKind::InvalidInput, reason));
                let name = entry.file_name().into_string().map_err(|_| refused("the name is not UTF-8"))?;
                let relative = if below.is_empty() { name } else { format!("{below}/{name}") };
                let kind = entry.file_type().map_err(|source| StoreError::io(entry.path(), source))?;
                if kind.is_dir() {
                    open.push(relative);
                } else if kind.is_file() {
                    files.push(relative);
                } else {
                    return Err(refused("neither a file nor a folder; copy what it points to instead"));
                }
            }
        }
        files.sort();
        Ok(files)
    })
    .await
}

/// Syncs the files, then renames the folder, then syncs the folder that holds it.
fn rename(folder: &Path, files: &[String], target: &Path) -> Result<bool> {
    let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|source| StoreError::io(path, source));
    for relative in files {
        sync(&folder.join(relative))?;
    }
    sync(folder)?;
    let parent = target.parent().unwrap_or(target);
    std::fs::create_dir_all(parent).map_err(|source| StoreError::io(parent, source))?;
    match std::fs::remove_dir_all(target) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::io(target, source));
        }
        _ => {}
    }
    match std::fs::rename(folder, target) {
        Err(source) if source.kind() == std::io::ErrorKind::CrossesDevices => return Ok(false),
        Err(source) => return Err(StoreError::io(target, source)),
        Ok(()) => {}
    }
    sync(parent)?;
    Ok(true)
}
