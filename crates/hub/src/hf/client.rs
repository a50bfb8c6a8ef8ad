//! The hub's HTTP protocol: the list of a repository's files, and single requests with their redirects.
//!
//! Used by the pull and by `download`. Redirects are followed here and not by reqwest, because the first answer's headers
//! describe the file, and because the token may go to the endpoint's own origin alone.

use std::fmt;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, LOCATION, RANGE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::config::{HubConfig, Secret};
use crate::error::HubError;
use crate::source::{Kind, is_hex};

const MAX_LISTING: usize = 32 << 20;

/// A connection to one endpoint.
#[derive(Clone)]
pub(crate) struct HfClient {
    /// An error where the system has no certificates: a server that never asks the hub must start all the same.
    http: Result<reqwest::Client, String>,
    endpoint: Url,
    token: Option<Secret>,
    connect_timeout: Duration,
    stall_timeout: Duration,
}

/// A repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// One file of it. Size and hash are absent from mirrors that leave them out.
#[derive(Debug)]
pub(super) struct RemoteFile {
    pub(super) path: String,
    pub(super) size: Option<u64>,
    pub(super) sha256: Option<String>,
}

/// What one request gave.
pub(super) enum Step {
    /// An answer with a body, or an error status.
    Answer(Response),
    /// The next address.
    Redirect(Url, HeaderMap),
}

impl fmt::Debug for HfClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HfClient({})", self.endpoint)
    }
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
}

impl HfClient {
    pub(crate) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let bad = |why: String| HubError::bad_source(&config.hf_endpoint, why);
        let endpoint =
            Url::parse(config.hf_endpoint.trim_end_matches('/')).map_err(|why| bad(format!("HF_ENDPOINT is not an address: {why}")))?;
        if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.has_host() {
            return Err(bad("HF_ENDPOINT must start with http:// or https://".into()));
        }
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(config.connect_timeout)
            .user_agent(concat!("tunesmith/", env!("CARGO_PKG_VERSION")));
        let is_loopback = matches!(endpoint.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if is_loopback {
            // A proxy's loopback is not ours.
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build().map_err(|why| format!("no HTTPS client ({}); install ca-certificates", innermost(&why))),
            endpoint,
            token: config.hf_token.clone(),
            connect_timeout: config.connect_timeout,
            stall_timeout: config.stall_timeout,
        })
    }

    /// Asks for the files of a revision. The first request of a pull, so it is the one that must answer soon.
    pub(super) async fn listing(&self, kind: Kind, repo: &str, revision: &str) -> Result<Listing, HubError> {
        let api = match kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let mut url = self.url(["api", api].into_iter().chain(repo.split('/')).chain(["revision", revision]))?;
        url.set_query(Some("blobs=true"));
        let what = format!("{repo}@{revision}");
        let deadline = tokio::time::Instant::now() + self.connect_timeout;
        let response = loop {
            let step = tokio::time::timeout_at(deadline, self.step(&url, 0)).await;
            match step {
                Ok(Ok(Step::Answer(response))) => break response,
                // A repository that was renamed: the API answers with its new address.
                Ok(Ok(Step::Redirect(next, _))) => url = next,
                Ok(Err(why)) => return Err(self.unreachable(why)),
                Err(_) => {
                    let seconds = self.connect_timeout.as_secs_f32();
                    return Err(self.unreachable(format!("no answer within {seconds} s")));
                }
            }
        };
        self.check_status(response.status(), response.headers(), &what)?;
        let bytes = self.read_limited(response, &what).await?;
        let broken = |why: String| HubError::Protocol { what: format!("the file list of {what}"), why };
        let info: RepoInfo = serde_json::from_slice(&bytes).map_err(|why| broken(why.to_string()))?;
        if !is_hex(&info.sha, 40) {
            return Err(broken("its `sha` is not a commit".into()));
        }
        Ok(Listing {
            commit: info.sha,
            files: info
                .siblings
                .into_iter()
                .map(|sibling| RemoteFile {
                    path: sibling.rfilename,
                    size: sibling.size,
                    sha256: sibling.lfs.and_then(|lfs| lfs.sha256).filter(|hex| is_hex(hex, 64)),
                })
                .collect(),
        })
    }

    /// Where a file of a commit is.
    pub(super) fn file_url(&self, kind: Kind, repo: &str, commit: &str, file: &str) -> Result<Url, HubError> {
        let prefix = match kind {
            Kind::Model => None,
            Kind::Dataset => Some("datasets"),
        };
        self.url(prefix.into_iter().chain(repo.split('/')).chain(["resolve", commit]).chain(file.split('/')))
    }

    /// One request, from byte `offset` on. The error is what the network said.
    pub(super) async fn step(&self, url: &Url, offset: u64) -> Result<Step, String> {
        // Compressed answers have other lengths and ranges than the file.
        let http = self.http.as_ref().map_err(String::clone)?;
        let mut request = http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = &self.token
            && url.origin() == self.endpoint.origin()
        {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        let response = tokio::time::timeout(self.stall_timeout, request.send())
            .await
            .map_err(|_| "no answer".to_owned())?
            .map_err(|why| innermost(&why))?;
        if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Step::Answer(response));
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).ok_or("a redirect without an address")?;
        let next = url.join(location).map_err(|why| format!("a redirect to no address: {why}"))?;
        let is_downgrade = url.scheme() == "https" && next.scheme() != "https";
        if is_downgrade || !matches!(next.scheme(), "http" | "https") {
            return Err(format!("a redirect from https to {}", next.scheme()));
        }
        Ok(Step::Redirect(next, response.headers().clone()))
    }

    /// Turns the statuses that no second attempt changes into errors.
    pub(super) fn check_status(&self, status: StatusCode, headers: &HeaderMap, what: &str) -> Result<(), HubError> {
        let code = headers.get("x-error-code").and_then(|v| v.to_str().ok());
        match (status.as_u16(), code) {
            (200..=299, _) => Ok(()),
            (403, _) | (401, Some("GatedRepo")) => Err(HubError::Denied {
                status: status.as_u16(),
                remedy: format!("{what} is gated; accept its terms on its page, then set HF_TOKEN to a token of that account"),
            }),
            (401, _) if self.token.is_none() => Err(HubError::Denied {
                status: 401,
                remedy: format!("{what} does not exist or is private; for a private one set HF_TOKEN to a token that may read it"),
            }),
            (401, _) => Err(HubError::Denied { status: 401, remedy: format!("the hub does not accept this HF_TOKEN for {what}") }),
            (404, Some("RevisionNotFound")) => Err(HubError::Missing { what: format!("the revision of {what}") }),
            (404, _) => Err(HubError::Missing { what: what.to_owned() }),
            _ => Err(HubError::Protocol { what: what.to_owned(), why: format!("the hub answered {status}") }),
        }
    }

    async fn read_limited(&self, mut response: Response, what: &str) -> Result<Vec<u8>, HubError> {
        let mut bytes = Vec::new();
        loop {
            let chunk = tokio::time::timeout(self.stall_timeout, response.chunk())
                .await
                .map_err(|_| self.unreachable("the answer stopped".to_owned()))?
                .map_err(|why| self.unreachable(innermost(&why)))?;
            let Some(chunk) = chunk else {
                return Ok(bytes);
            };
            if bytes.len() + chunk.len() > MAX_LISTING {
                return Err(HubError::TooLarge {
                    what: format!("the file list of {what}"),
                    found: "more".to_owned(),
                    limit: format!("{MAX_LISTING} bytes"),
                });
            }
            bytes.extend_from_slice(&chunk);
        }
    }

    fn unreachable(&self, why: String) -> HubError {
        HubError::Unreachable { what: self.endpoint.host_str().unwrap_or("the hub").to_owned(), why }
    }

    fn url<'a>(&self, segments: impl Iterator<Item = &'a str>) -> Result<Url, HubError> {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .map_err(|()| HubError::bad_source(self.endpoint.as_str(), "HF_ENDPOINT cannot have paths"))?
            .pop_if_empty()
            .extend(segments);
        Ok(url)
    }
}

/// The cause at the bottom of an error; reqwest's own text repeats the address.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
