//! One file of a repository: resumed, retried, checked, and then named.
//!
//! Called by the pull, four at a time. Bytes go to `<etag>.incomplete`, which outlives this process; only a file whose
//! checksum holds gets its blob's name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;

use super::cache::RepoCache;
use super::client::{HfClient, RemoteFile, Step, innermost};
use super::partial::{Opened, Partial, continues_at, described, length_of_whole};
use crate::checksum::Promise;
use crate::config::HubConfig;
use crate::error::HubError;
use crate::hub::blocking;
use crate::progress::{Meter, Report};

/// Failures in a row without a new byte after which a download is given up, and failures at all.
const MAX_FRUITLESS: u32 = 5;
const MAX_ATTEMPTS: u32 = 50;
const MAX_HOPS: u32 = 6;
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Everything that one file's download needs.
pub(super) struct Download<'a> {
    pub(super) client: &'a HfClient,
    pub(super) config: &'a HubConfig,
    pub(super) cache: &'a RepoCache,
    /// Bytes that the repository may still take.
    pub(super) budget: &'a AtomicU64,
    pub(super) report: &'a Report,
    pub(super) file: &'a RemoteFile,
    pub(super) url: Url,
}

/// Why an attempt ended.
enum Stop {
    /// Another attempt may do better.
    Cut {
        why: String,
        retry_after: Option<Duration>,
    },
    Fatal(HubError),
}

impl From<HubError> for Stop {
    fn from(error: HubError) -> Self {
        Self::Fatal(error)
    }
}

fn cut(why: impl Into<String>) -> Stop {
    Stop::Cut { why: why.into(), retry_after: None }
}

impl Download<'_> {
    /// Fetches the file and answers its blob's name.
    pub(super) async fn run(&self) -> Result<String, HubError> {
        let mut partial: Option<Partial> = None;
        let (mut attempts, mut fruitless) = (0, 0);
        loop {
            let before = partial.as_ref().map(|p| p.written);
            let (why, retry_after) = match self.attempt(&mut partial).await {
                Ok(etag) => return Ok(etag),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Cut { why, retry_after }) => (why, retry_after),
            };
            let grew = partial.as_ref().map(|p| p.written) > before.or(Some(0));
            attempts += 1;
            fruitless = if grew { 1 } else { fruitless + 1 };
            if fruitless >= MAX_FRUITLESS || attempts >= MAX_ATTEMPTS {
                return Err(HubError::Interrupted { file: self.file.path.clone(), attempts, why });
            }
            let pause = self.config.retry_delay * 2u32.pow(fruitless - 1);
            tracing::debug!(file = %self.file.path, attempts, %why, "download cut, trying again");
            tokio::time::sleep(retry_after.unwrap_or(pause).min(MAX_PAUSE)).await;
        }
    }

    async fn attempt(&self, partial: &mut Option<Partial>) -> Result<String, Stop> {
        let opened = self.open(partial).await?;
        let Some(partial) = partial.as_mut() else {
            return Err(cut("an answer without headers"));
        };
        match opened {
            Opened::Body(response) => self.receive(response, partial).await?,
            Opened::AllBytes => {}
            Opened::Blob => return Ok(partial.etag.clone()),
        }
        self.finish(partial).await?;
        Ok(partial.etag.clone())
    }

    /// Follows the redirects to a body that starts where the partial file ends, or finds that none is needed.
    async fn open(&self, partial: &mut Option<Partial>) -> Result<Opened, Stop> {
        let mut url = self.url.clone();
        for _ in 0..MAX_HOPS {
            let offset = partial.as_ref().map_or(0, |p| p.written);
            match self.client.step(&url, offset).await.map_err(cut)? {
                Step::Redirect(next, headers) => {
                    // A redirect's plain ETag would be that of its own short body.
                    if headers.contains_key("x-linked-etag") {
                        self.learn(partial, &headers, None).await?;
                    }
                    if let Some(done) = partial.as_ref().and_then(Partial::done) {
                        return Ok(done);
                    }
                    url = next;
                }
                Step::Answer(response) => {
                    self.check(&response)?;
                    if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                        match partial {
                            Some(partial) => partial.empty().await?,
                            None => {
                                return Err(self.protocol("a range was refused that nobody asked for").into());
                            }
                        }
                        continue;
                    }
                    let length = length_of_whole(&response);
                    self.learn(partial, response.headers(), length).await?;
                    if let Some(done) = partial.as_ref().and_then(Partial::done) {
                        return Ok(done);
                    }
                    let known = partial.as_ref().map_or(0, |p| p.written);
                    // Only this answer's ETag told that a part is here: ask once more, for the rest.
                    if known > 0 && offset == 0 {
                        continue;
                    }
                    return Ok(Opened::Body(response));
                }
            }
        }
        Err(self.protocol("too many redirects").into())
    }

    /// Takes name and size of the file from the first headers that tell them, and looks what is here of it.
    async fn learn(&self, partial: &mut Option<Partial>, headers: &HeaderMap, length: Option<u64>) -> Result<(), Stop> {
        if let Some(known) = partial {
            known.size = known.size.or(length);
            return Ok(());
        }
        let (etag, told) = described(headers, self.url.as_str());
        let size = told.or(length).or(self.file.size);
        if let Some(size) = size {
            self.spend(size)?;
        }
        *partial = Some(Partial::find(self.cache, etag, size).await?);
        Ok(())
    }

    fn spend(&self, bytes: u64) -> Result<(), HubError> {
        self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).map(|_| ()).map_err(|_| {
            HubError::TooLarge {
                what: format!("{} and the files before it", self.file.path),
                found: "more bytes than allowed".to_owned(),
                limit: format!("{} bytes", self.config.max_bytes),
            }
        })
    }

    fn check(&self, response: &Response) -> Result<(), Stop> {
        let status = response.status();
        let may_pass = status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error();
        if may_pass {
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(Stop::Cut { why: format!("the server answered {status}"), retry_after: seconds.map(Duration::from_secs) });
        }
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(());
        }
        let checked = self.client.check_status(status, response.headers(), &self.file.path);
        Ok(checked?)
    }

    /// Appends the body to the partial file.
    async fn receive(&self, mut response: Response, partial: &mut Partial) -> Result<(), Stop> {
        if partial.written > 0 && !continues_at(&response, partial.written) {
            // The server does not do ranges, and sends the whole.
            partial.empty().await?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&partial.path).await.map_err(HubError::io(&partial.path))?;
        let mut meter = Meter::new(self.report, &self.file.path);
        meter.at(partial.written, partial.size);
        let end = loop {
            let chunk = match tokio::time::timeout(self.config.stall_timeout, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(why)) => break Err(innermost(&why)),
                Err(_) => break Err("no byte came".to_owned()),
            };
            partial.written += chunk.len() as u64;
            match partial.size {
                Some(size) if partial.written > size => {
                    partial.empty().await?;
                    return Err(self.protocol("more bytes came than were announced").into());
                }
                Some(_) => {}
                None => self.spend(chunk.len() as u64)?,
            }
            file.write_all(&chunk).await.map_err(HubError::io(&partial.path))?;
            meter.at(partial.written, partial.size);
        };
        file.sync_all().await.map_err(HubError::io(&partial.path))?;
        match end {
            Err(why) => Err(cut(why)),
            Ok(()) if partial.size.is_some_and(|size| partial.written < size) => {
                Err(cut(format!("{} of {} bytes came", partial.written, partial.size.unwrap_or_default())))
            }
            Ok(()) => {
                meter.at(partial.written, Some(partial.written));
                Ok(())
            }
        }
    }

    /// Checks the bytes and gives them their name.
    async fn finish(&self, partial: &mut Partial) -> Result<(), Stop> {
        let promise = match &self.file.sha256 {
            Some(sha256) => Some(Promise::Sha256(sha256.to_ascii_lowercase())),
            None => Promise::of_etag(&partial.etag),
        };
        if let Some(promise) = promise {
            let (path, name) = (partial.path.clone(), self.file.path.clone());
            let checked = blocking(move || promise.check(&path, &name)).await;
            match checked {
                Err(HubError::Checksum { .. }) if partial.resumed => {
                    // The old part may be another program's, or damaged: once more, from the start.
                    partial.empty().await?;
                    return Err(cut("the resumed file's checksum is wrong"));
                }
                Err(error) => {
                    tokio::fs::remove_file(&partial.path).await.ok();
                    return Err(error.into());
                }
                Ok(()) => {}
            }
        }
        let blob = self.cache.blob(&partial.etag);
        tokio::fs::rename(&partial.path, &blob).await.map_err(HubError::io(&blob))?;
        Ok(())
    }

    fn protocol(&self, why: &str) -> HubError {
        HubError::Protocol { what: self.file.path.clone(), why: why.to_owned() }
    }
}
