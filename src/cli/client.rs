//! A client of a running server, for the commands that talk to one.
//!
//! Plain JSON over HTTP: what the commands do, curl can do. Errors are the server's own sentences.

use std::path::Path;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

/// Where the server is and how to be let in.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientFlags {
    /// Address of the server
    #[arg(long, env = "TUNESMITH_URL", default_value = "http://127.0.0.1:8080", global = true)]
    pub url: String,
    /// Key that the server wants
    #[arg(long, env = "TUNESMITH_API_KEY", hide_env_values = true, global = true)]
    pub api_key: Option<String>,
}

/// A connection to a server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

impl Client {
    /// A client by the command's flags.
    pub fn new(flags: &ClientFlags) -> anyhow::Result<Self> {
        // The variable may hold the server's whole list; any of its keys lets us in.
        let key = flags.api_key.as_deref().and_then(|k| k.split(',').next()).map(|k| k.trim().to_owned()).filter(|k| !k.is_empty());
        let http = reqwest::Client::builder().build().context("cannot set up an HTTP client")?;
        Ok(Self { http, url: flags.url.trim_end_matches('/').to_owned(), key })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// GET, as JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::GET, path)).await
    }

    /// GET, as it comes.
    pub async fn get_raw(&self, path: &str) -> anyhow::Result<Response> {
        self.send(self.request(Method::GET, path)).await
    }

    /// GET as an event stream, after the event that was seen last.
    pub async fn stream(&self, path: &str, last_event: Option<&str>) -> anyhow::Result<Response> {
        let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
        if let Some(id) = last_event {
            request = request.header("last-event-id", id);
        }
        self.send(request).await
    }

    /// POST of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// POST of a JSON body, with a key under which it acts once.
    pub async fn post_once(&self, path: &str, body: &Value, key: Option<&str>) -> anyhow::Result<Value> {
        let mut request = self.request(Method::POST, path).json(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.json(request).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.json(self.request(Method::DELETE, path)).await
    }

    /// Uploads a file from the disk, streamed.
    pub async fn upload(&self, path: &Path, purpose: &str) -> anyhow::Result<Value> {
        let name = path.file_name().map_or_else(|| "upload".into(), |n| n.to_string_lossy().into_owned());
        let file = tokio::fs::File::open(path).await.with_context(|| format!("cannot open {}", path.display()))?;
        let length = file.metadata().await?.len();
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
        let part = reqwest::multipart::Part::stream_with_length(body, length).file_name(name);
        let form = reqwest::multipart::Form::new().text("purpose", purpose.to_owned()).part("file", part);
        self.json(self.request(Method::POST, "/v1/files").multipart(form)).await
    }

    async fn json(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.send(request).await?;
        response.json().await.context("the server's answer is not JSON")
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                bail!("no server answers at {}; start one with `tunesmith serve`, or name another with --url", self.url)
            }
            Err(error) => return Err(error).context("the request failed"),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let message = serde_json::from_str::<Value>(&text).ok().and_then(|v| Some(v["error"]["message"].as_str()?.to_owned()));
        bail!("{} ({status})", message.unwrap_or(text))
    }
}

/// A name as one path segment.
pub fn segment(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Every item of a paged list.
pub async fn all_pages(client: &Client, path: &str, most: usize) -> anyhow::Result<Vec<Value>> {
    let mut items: Vec<Value> = Vec::new();
    let mut after = String::new();
    loop {
        let page = client.get(&format!("{path}?limit=100{after}")).await?;
        items.extend(page["data"].as_array().cloned().unwrap_or_default());
        match page["last_id"].as_str() {
            Some(id) if page["has_more"] == true && items.len() < most => after = format!("&after={id}"),
            _ => break,
        }
    }
    items.truncate(most);
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("org/name:x"), "org%2Fname:x");
        assert_eq!(segment("a b?c#d"), "a%20b%3Fc%23d");
    }
}
