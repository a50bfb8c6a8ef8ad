//! A server on 127.0.0.1 that speaks the hub's protocol, and a second one, of another origin, that serves large files.
//!
//! Tests publish files, set faults, and read afterwards what was asked for and how many bytes were sent.

#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tunesmith_hub::HubConfig;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as the servers saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `hub` or `cdn`.
    pub host: &'static str,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    /// Bytes of the file that the answer holds.
    pub bytes: usize,
}

/// What goes wrong with one answer for a file.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection is cut after that many bytes, once `FakeHub::go_on` was called.
    CutAfter(usize),
    /// One byte is another.
    WrongByte,
    /// This status, with `Retry-After: 0`.
    Status(u16),
    /// Ranges are ignored: 200 and the whole.
    NoRanges,
}

#[derive(Default)]
struct Site {
    /// By repository path (`org/name` or `datasets/org/name`), then file name.
    repos: Mutex<HashMap<String, Vec<(String, Bytes)>>>,
    faults: Mutex<HashMap<String, Vec<Fault>>>,
    seen: Mutex<Vec<Seen>>,
    token: Mutex<Option<String>>,
    etag: Mutex<Option<String>>,
    go_on: Notify,
    cdn: Mutex<String>,
}

pub struct FakeHub {
    site: Arc<Site>,
    pub endpoint: String,
}

/// Files from this length on are "LFS": named by SHA-256, and served by the other origin.
pub const LARGE: usize = 1000;

impl FakeHub {
    pub async fn start() -> Self {
        let site = Arc::new(Site::default());
        let cdn = serve(Router::new().fallback(cdn).with_state(site.clone())).await;
        *site.cdn.lock().unwrap() = cdn;
        let endpoint = serve(Router::new().fallback(hub).with_state(site.clone())).await;
        Self { site, endpoint }
    }

    /// Settings that point here, with caches below `folder` and short pauses.
    pub fn config(&self, folder: &Path) -> HubConfig {
        HubConfig {
            hf_endpoint: self.endpoint.clone(),
            retry_delay: Duration::from_millis(1),
            python: Some(folder.join("no-python")),
            ..HubConfig::in_folder(folder)
        }
    }

    pub fn publish(&self, repo: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), Bytes::copy_from_slice(bytes))).collect();
        self.site.repos.lock().unwrap().insert(repo.to_owned(), files);
    }

    /// The faults of the next answers that hold the file's bytes, in order.
    pub fn fault(&self, file: &str, faults: &[Fault]) {
        let faults = faults.iter().rev().copied().collect();
        self.site.faults.lock().unwrap().insert(file.to_owned(), faults);
    }

    /// From now on the hub's origin wants this token.
    pub fn require_token(&self, token: &str) {
        *self.site.token.lock().unwrap() = Some(token.to_owned());
    }

    /// From now on every ETag is this one.
    pub fn claim_etag(&self, etag: &str) {
        *self.site.etag.lock().unwrap() = Some(etag.to_owned());
    }

    /// Lets an answer that waits at its cut be cut.
    pub fn go_on(&self) {
        self.site.go_on.notify_one();
    }

    /// The handle for a progress callback that does that once the client has a mebibyte.
    pub fn cut_at_a_mebibyte(&self) -> impl Fn(tunesmith_hub::Progress) + Send + Sync + 'static {
        let site = self.site.clone();
        move |progress| {
            if progress.done >= 1 << 20 {
                site.go_on.notify_one();
            }
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.site.seen.lock().unwrap().clone()
    }

    pub fn forget_seen(&self) {
        self.site.seen.lock().unwrap().clear();
    }

    /// The answers that held bytes of that file.
    pub fn served(&self, file: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.bytes > 0 && seen.path.ends_with(file)).collect()
    }
}

/// The name that the hub gives a file's content.
pub fn etag_of(bytes: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
    if bytes.len() >= LARGE {
        return hex(&Sha256::digest(bytes));
    }
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}")
}

async fn hub(State(site): State<Arc<Site>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    site.note("hub", &path, request.headers());
    let wanted = site.token.lock().unwrap().clone();
    let given = request.headers().get(header::AUTHORIZATION);
    if let Some(wanted) = wanted
        && given.and_then(|v| v.to_str().ok()) != Some(&format!("Bearer {wanted}"))
    {
        return (StatusCode::UNAUTHORIZED, "Invalid username or password.").into_response();
    }
    if let Some(rest) = path.strip_prefix("api/") {
        let rest = rest.strip_prefix("models/").unwrap_or(rest);
        if let Some((repo, _)) = rest.split_once("/revision/") {
            return site.listing(repo);
        }
        // Python's client asks for this one; ours does not.
        return match rest.split_once("/tree/") {
            Some((repo, _)) => site.tree(repo),
            None => StatusCode::NOT_FOUND.into_response(),
        };
    }
    let found = path
        .split_once("/resolve/")
        .and_then(|(repo, rest)| Some((repo, rest.split_once('/')?.1)))
        .and_then(|(repo, file)| Some((file.to_owned(), site.file(repo, file)?)));
    let Some((file, bytes)) = found else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let claimed = site.etag.lock().unwrap().clone();
    let etag = format!("\"{}\"", claimed.unwrap_or_else(|| etag_of(&bytes)));
    if bytes.len() >= LARGE {
        let cdn = site.cdn.lock().unwrap().clone();
        let headers = [
            ("x-repo-commit", COMMIT.to_owned()),
            ("x-linked-etag", etag),
            ("x-linked-size", bytes.len().to_string()),
            ("location", format!("{cdn}/blobs/{path}?signature=1")),
        ];
        return (StatusCode::FOUND, headers, "Found. Redirecting.").into_response();
    }
    let mut response = site.send(&file, bytes, request.headers());
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag.parse().unwrap());
    headers.insert("x-repo-commit", COMMIT.parse().unwrap());
    response
}

async fn cdn(State(site): State<Arc<Site>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    site.note("cdn", &path, request.headers());
    let found = path
        .strip_prefix("/blobs/")
        .and_then(|path| path.split_once("/resolve/"))
        .and_then(|(repo, rest)| Some((repo, rest.split_once('/')?.1)))
        .and_then(|(repo, file)| Some((file.to_owned(), site.file(repo, file)?)));
    match found {
        Some((file, bytes)) => site.send(&file, bytes, request.headers()),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

impl Site {
    fn note(&self, host: &'static str, path: &str, headers: &HeaderMap) {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        self.seen.lock().unwrap().push(Seen {
            host,
            path: path.to_owned(),
            authorization: text(header::AUTHORIZATION),
            range: text(header::RANGE),
            bytes: 0,
        });
    }

    fn file(&self, repo: &str, file: &str) -> Option<Bytes> {
        let repos = self.repos.lock().unwrap();
        let (_, bytes) = repos.get(repo)?.iter().find(|(name, _)| name == file)?;
        Some(bytes.clone())
    }

    fn listing(&self, repo: &str) -> Response {
        let repos = self.repos.lock().unwrap();
        let Some(files) = repos.get(repo) else {
            // As the hub does for strangers: absent and private look alike.
            let code = [("x-error-code", "RepoNotFound")];
            return (StatusCode::UNAUTHORIZED, code).into_response();
        };
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                let etag = etag_of(bytes);
                let lfs = (bytes.len() >= LARGE).then(|| serde_json::json!({"sha256": etag, "size": bytes.len(), "pointerSize": 130}));
                serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": etag, "lfs": lfs})
            })
            .collect();
        let body = serde_json::json!({"id": repo, "sha": COMMIT, "siblings": siblings});
        body.to_string().into_response()
    }

    fn tree(&self, repo: &str) -> Response {
        let repos = self.repos.lock().unwrap();
        let Some(files) = repos.get(repo) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let entries: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                let etag = etag_of(bytes);
                let lfs = (bytes.len() >= LARGE).then(|| serde_json::json!({"oid": etag, "size": bytes.len(), "pointerSize": 130}));
                let mut entry = serde_json::json!({
                    "type": "file", "path": name, "size": bytes.len(), "oid": etag,
                });
                if let Some(lfs) = lfs {
                    entry["lfs"] = lfs;
                }
                entry
            })
            .collect();
        serde_json::Value::from(entries).to_string().into_response()
    }

    fn send(self: &Arc<Self>, file: &str, bytes: Bytes, headers: &HeaderMap) -> Response {
        let fault = self.faults.lock().unwrap().get_mut(file).and_then(Vec::pop);
        if let Some(Fault::Status(status)) = fault {
            let status = StatusCode::from_u16(status).unwrap();
            return (status, [("retry-after", "0")]).into_response();
        }
        let total = bytes.len();
        let start = headers
            .get(header::RANGE)
            .filter(|_| !matches!(fault, Some(Fault::NoRanges)))
            .and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-'))
            .map_or(0, |start| start.parse::<usize>().unwrap());
        if start > 0 && start >= total {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        }
        let mut body = bytes.slice(start..).to_vec();
        if matches!(fault, Some(Fault::WrongByte)) {
            body[0] ^= 1;
        }
        let length = body.len();
        let cut = match fault {
            Some(Fault::CutAfter(cut)) => Some(cut),
            _ => None,
        };
        body.truncate(cut.unwrap_or(length));
        if let Some(seen) = self.seen.lock().unwrap().last_mut() {
            seen.bytes = body.len();
        }
        let mut response = Response::builder().header(header::CONTENT_LENGTH, length);
        if start > 0 {
            let range = format!("bytes {start}-{}/{total}", total - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
        }
        let pieces: Vec<_> = body.chunks(64 << 10).map(Bytes::copy_from_slice).collect();
        let site = self.clone();
        let end = futures::stream::once(async move {
            if cut.is_some() {
                site.go_on.notified().await;
                return Some(Err(io::Error::other("cut")));
            }
            None
        })
        .filter_map(std::future::ready);
        let stream = futures::stream::iter(pieces).map(Ok).chain(end);
        response.body(Body::from_stream(stream)).unwrap()
    }
}
