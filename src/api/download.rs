//! A folder of the blob store as a zip, written while it is sent.
//!
//! Entries are stored, not packed (weights do not shrink), so memory stays at one piece whatever the folder's size. Sizes
//! and checksums follow each entry in a data descriptor, and entries beyond 4 GiB use the 64-bit form.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::StreamExt;
use tokio::sync::mpsc;
use tunesmith_store::{Blobs, StoreError};

use super::error::ApiError;
use super::files::attachment;
use super::state::AppState;
use super::zip_stream::ZipStream;

/// Answers the folder under `prefix` as `NAME.zip`.
pub async fn folder(state: &AppState, prefix: &str, name: &str) -> Result<Response, ApiError> {
    let blobs = state.store.blobs().clone();
    let mut keys = blobs.list(prefix).await?;
    keys.sort();
    if keys.is_empty() {
        return Err(ApiError::model_not_found(name));
    }
    let (sender, receiver) = mpsc::channel(4);
    let prefix = format!("{}/", prefix.trim_end_matches('/'));
    tokio::spawn(async move {
        if let Err(error) = send(&blobs, &keys, &prefix, &sender).await {
            tracing::warn!(%error, "a download ends early");
            // An error in the body breaks the connection off, so that the client sees that the zip is not whole.
            sender.send(Err(std::io::Error::other("the folder could not be read to its end"))).await.ok();
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|piece| (piece, receiver)) });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    // Colons and slashes are no part of file names everywhere.
    let file_name = format!("{}.zip", name.replace([':', '/', '\\'], "-"));
    response.headers_mut().insert(header::CONTENT_DISPOSITION, attachment(&file_name));
    Ok(response)
}

type Pieces = mpsc::Sender<std::io::Result<Bytes>>;

async fn send(blobs: &Blobs, keys: &[String], prefix: &str, sender: &Pieces) -> Result<(), StoreError> {
    let mut zip = ZipStream::new();
    for key in keys {
        let mut blob = blobs.get_stream(key).await?;
        let entry = key.strip_prefix(prefix).unwrap_or(key);
        if !pass(sender, zip.begin(entry, blob.size)).await {
            return Ok(());
        }
        while let Some(piece) = blob.stream.next().await {
            let piece = piece?;
            zip.count(&piece);
            if !pass(sender, piece).await {
                return Ok(());
            }
        }
        if !pass(sender, zip.end()).await {
            return Ok(());
        }
    }
    pass(sender, zip.finish()).await;
    Ok(())
}

/// Hands a piece over; false when the client has left.
async fn pass(sender: &Pieces, piece: impl Into<Bytes>) -> bool {
    sender.send(Ok(piece.into())).await.is_ok()
}
