//! The configuration: one struct, read once at start.
//!
//! Every command builds it through [`Config::load`]. Later layers win: defaults, `tunesmith.toml`, `TUNESMITH_*`, flags.
//! A worker that `serve` starts gets the server's finished configuration through [`Config::child_environment`].

mod derived;
mod flags;
mod layers;
mod values;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use flags::ConfigFlags;
pub use values::{AllowPull, Device, LogFormat, ServeDtype};

/// Everything that can be configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the database and the blobs live.
    pub data_dir: PathBuf,
    /// Address or name that the server binds.
    pub host: String,
    /// Port that the server binds; 0 picks a free one.
    pub port: u16,
    /// Where models run.
    pub device: Device,
    /// Threads for the maths; absent: one for each core.
    pub threads: Option<usize>,
    /// Keys that clients may present; without any, only loopback is served.
    #[serde(deserialize_with = "values::list")]
    pub api_key: Vec<String>,
    /// Worker processes that the server starts; 0 leaves that to others.
    pub workers: usize,
    /// Threads of each worker; absent: the cores shared among the workers.
    pub worker_threads: Option<usize>,
    /// Seconds without a sign of life after which a worker counts as dead.
    pub lease_seconds: u64,
    /// The only folder from which requests may name `file:` sources and adapters.
    pub model_dir: Option<PathBuf>,
    /// Which models a request may make the server download.
    pub allow_pull: AllowPull,
    /// Origins of web pages that may call the API.
    #[serde(deserialize_with = "values::list")]
    pub cors_origin: Vec<String>,
    /// How models answer.
    pub serve: Serve,
    /// Bounds on what a request may send.
    pub limits: Limits,
    /// Bounds on what the server keeps in memory.
    pub budgets: Budgets,
    /// What the log says and how.
    pub log: Log,
    /// `TUNESMITH_*` variables that are no setting; whoever starts a service warns of them.
    #[serde(skip)]
    pub unknown_environment: Vec<String>,
}

/// How models answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serve {
    /// The arithmetic of encoders' products; language models keep their file's format.
    pub dtype: ServeDtype,
}

/// Bounds on what a request may send.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of an uploaded file.
    pub max_file_bytes: u64,
    /// Bytes of an uploaded file after unpacking.
    pub max_unpacked_bytes: u64,
    /// Unpacked bytes for each packed byte.
    pub max_unpack_ratio: u64,
    /// Bytes of one line of a data set.
    pub max_line_bytes: u64,
    /// Bytes of a JSON body.
    pub max_body_bytes: u64,
    /// Seconds that a request other than an upload may take until its answer begins.
    pub request_timeout_seconds: u64,
    /// Seconds that a body may stand still, and that a request's head may take.
    pub body_idle_seconds: u64,
}

/// Bounds on what the server keeps in memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budgets {
    /// Bytes of loaded models; absent: half of what the machine or its control group allows.
    pub models_bytes: Option<u64>,
    /// Bytes of all jobs that train at once, by their estimates; absent: what models leave of the memory.
    pub jobs_bytes: Option<u64>,
    /// Rows that wait for a classifier before 429 is answered.
    pub classify_queue_rows: usize,
    /// Tokens that wait for a classifier before 429 is answered.
    pub classify_queue_tokens: usize,
    /// Inputs of one classify request.
    pub classify_inputs: usize,
    /// Bytes of keys and values of each language model; absent: a quarter of what models may take.
    pub kv_cache_bytes: Option<u64>,
    /// Requests for text that wait or run before 429 is answered.
    pub generation_requests: usize,
    /// Answers that a language model works on at the same time.
    pub generation_sequences: usize,
    /// Seconds that a request waits for a model's first download.
    pub pull_wait_seconds: u64,
}

/// What the log says and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Lines for people, or JSON for machines.
    pub format: LogFormat,
    /// A level, or directives as `tracing` takes them.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./tunesmith-data"),
            host: "127.0.0.1".into(),
            port: 8080,
            device: Device::Auto,
            threads: None,
            api_key: Vec::new(),
            workers: 1,
            worker_threads: None,
            lease_seconds: tunesmith_store::LEASE_TIMEOUT.as_secs(),
            model_dir: None,
            allow_pull: AllowPull::Catalogue,
            cors_origin: Vec::new(),
            serve: Serve::default(),
            limits: Limits::default(),
            budgets: Budgets::default(),
            log: Log::default(),
            unknown_environment: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_file_bytes: 512 << 20,
            max_unpacked_bytes: 4 << 30,
            max_unpack_ratio: 100,
            max_line_bytes: 16 << 20,
            max_body_bytes: 8 << 20,
            // Longer than the 300 s that the first use of a model may wait for its download.
            request_timeout_seconds: 330,
            body_idle_seconds: 60,
        }
    }
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            models_bytes: None,
            jobs_bytes: None,
            classify_queue_rows: 1024,
            classify_queue_tokens: 262_144,
            classify_inputs: 2048,
            kv_cache_bytes: None,
            generation_requests: 1024,
            generation_sequences: 64,
            pull_wait_seconds: 300,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A layer holds something that the configuration has no place for.
    #[error("configuration: {0}")]
    Invalid(String),
    /// The named file is not there.
    #[error("configuration: {0} does not exist; leave out --config to use tunesmith.toml of the current folder, if any")]
    NoFile(PathBuf),
    /// The server would be open to the network.
    #[error(
        "--host {0} can be reached from other machines, and no API key is set: anybody could use this server. \
         Set --api-key (or TUNESMITH_API_KEY), or bind to 127.0.0.1"
    )]
    OpenToAll(String),
    /// The host has no address.
    #[error("--host {0} has no address: {1}")]
    NoAddress(String, String),
}

impl Config {
    /// Reads all layers: defaults, the file, the environment, then the flags.
    pub fn load(flags: &ConfigFlags) -> Result<Self, ConfigError> {
        layers::load(flags, std::env::vars())
    }

    /// The addresses to bind; refused where they are open to the network and no key protects them.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let no_address = |why: String| ConfigError::NoAddress(self.host.clone(), why);
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = (host, self.port).to_socket_addrs().map_err(|e| no_address(e.to_string()))?.collect();
        if addresses.is_empty() {
            return Err(no_address("the name resolves to nothing".into()));
        }
        if self.api_key.is_empty() && !addresses.iter().all(|a| is_loopback(a.ip())) {
            return Err(ConfigError::OpenToAll(self.host.clone()));
        }
        Ok(addresses)
    }

    /// Environment that hands this configuration to a child process, without the API keys, which a worker never needs.
    pub fn child_environment(&self) -> Vec<(String, String)> {
        let mut config = self.clone();
        config.api_key.clear();
        let json = serde_json::to_string(&config).expect("a configuration holds only strings, numbers, lists and maps with string keys");
        vec![(layers::INHERITED.to_owned(), json)]
    }

    /// Where uploads and downloads stand until they are complete.
    pub fn scratch_dir(&self) -> PathBuf {
        self.data_dir.join("tmp")
    }

    /// Bytes of models that may be loaded at once.
    pub fn models_bytes(&self) -> u64 {
        self.budgets.models_bytes.unwrap_or_else(|| crate::machine::memory_limit() / 2)
    }

    /// How long a request may take until its answer begins.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.request_timeout_seconds)
    }

    /// `model_dir`, if `path` lies in it.
    pub fn below_model_dir(&self, path: &Path) -> Option<PathBuf> {
        let dir = self.model_dir.as_ref()?.canonicalize().ok()?;
        let path = dir.join(path).canonicalize().ok()?;
        path.starts_with(&dir).then_some(path)
    }
}

/// Whether only this machine can reach the address.
fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_open_server_without_a_key_is_refused() {
        let mut config = Config { host: "0.0.0.0".into(), ..Config::default() };
        assert!(matches!(config.addresses(), Err(ConfigError::OpenToAll(_))));
        config.api_key.push("secret".into());
        assert_eq!(config.addresses().unwrap()[0].port(), 8080);
    }

    #[test]
    fn loopback_needs_no_key() {
        for host in ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"] {
            let config = Config { host: host.into(), ..Config::default() };
            assert!(config.addresses().is_ok(), "{host}");
        }
    }

    #[test]
    fn a_child_gets_everything_but_the_keys() {
        let config = Config { api_key: vec!["secret".into()], workers: 3, ..Config::default() };
        let env = config.child_environment();
        assert!(!env[0].1.contains("secret"));
        let child = layers::load(&ConfigFlags::default(), env.into_iter()).unwrap();
        assert_eq!(child.workers, 3);
    }
}
