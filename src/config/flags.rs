//! The configuration's flags, shared by every command that reads the configuration.
//!
//! A flag that is absent leaves the lower layers alone, so every field is optional here.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{AllowPull, Device, LogFormat, ServeDtype};

/// Flags that override the configuration file and the environment.
#[derive(Debug, Clone, Default, Args, Serialize)]
pub struct ConfigFlags {
    /// Configuration file [default: tunesmith.toml in the current folder, if it exists]
    #[arg(long, env = "TUNESMITH_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where the database and the blobs live [default: ./tunesmith-data]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Address to bind [default: 127.0.0.1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port to bind; 0 picks a free one [default: 8080]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// auto, cpu, cuda:N or metal [default: auto]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Threads for the maths [default: one for each core]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Key that clients must present; may be given several times
    #[arg(long, value_name = "KEY")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_key: Vec<String>,
    /// Worker processes to start; 0 leaves that to `tunesmith worker` [default: 1]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
    /// Threads of each worker [default: the cores shared among the workers]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_threads: Option<usize>,
    /// Folder from which requests may name models and adapters
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dir: Option<PathBuf>,
    /// Which models requests may make the server download [default: catalogue]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_pull: Option<AllowPull>,
    /// Origin of web pages that may call the API; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cors_origin: Vec<String>,
    /// Arithmetic of encoders when they answer; language models keep their file's format [default: f32]
    #[arg(long, value_enum, value_name = "DTYPE")]
    #[serde(skip)]
    pub serve_dtype: Option<ServeDtype>,
    /// Largest upload in bytes [default: 512 MiB]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip)]
    pub max_file_bytes: Option<u64>,
    /// Bytes of models in memory [default: half of what the machine allows]
    #[arg(long, value_name = "BYTES")]
    #[serde(skip)]
    pub models_bytes: Option<u64>,
    /// Lines for people or JSON for machines [default: text]
    #[arg(long, value_enum)]
    #[serde(skip)]
    pub log_format: Option<LogFormat>,
    /// Level, or directives such as `info,tunesmith=debug` [default: info]
    #[arg(long, value_name = "LEVEL")]
    #[serde(skip)]
    pub log_level: Option<String>,
}

impl ConfigFlags {
    /// The flags in the configuration's own shape.
    pub(super) fn layer(&self) -> serde_json::Value {
        let mut layer = serde_json::to_value(self).expect("flags are strings, numbers and lists of strings");
        let mut nested = |section: &str, field: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                layer[section][field] = value;
            }
        };
        nested("limits", "max_file_bytes", self.max_file_bytes.map(Into::into));
        nested("budgets", "models_bytes", self.models_bytes.map(Into::into));
        let dtype = self.serve_dtype.map(|d| serde_json::to_value(d).expect("a dtype is a word"));
        nested("serve", "dtype", dtype);
        nested("log", "level", self.log_level.clone().map(Into::into));
        let format = self.log_format.map(|f| match f {
            LogFormat::Text => "text".into(),
            LogFormat::Json => "json".into(),
        });
        nested("log", "format", format);
        layer
    }
}
