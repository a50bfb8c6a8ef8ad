//! The settings of the hub: where to look, what to send, how much to accept.
//!
//! Made once by the server, worker or CLI. The environment variables are those that Python's `huggingface_hub` reads, so
//! a machine that is set up for one is set up for the other, and both share one cache.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A token. Its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a token; `None` if nothing but white space is in it.
    pub fn new(token: &str) -> Option<Self> {
        let token = token.trim();
        (!token.is_empty()).then(|| Self(token.to_owned()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The settings of a [`Hub`](crate::Hub).
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// The hub's address (`HF_ENDPOINT`).
    pub hf_endpoint: String,
    /// The hub's token (`HF_TOKEN`, or the file that `huggingface-cli login` writes).
    pub hf_token: Option<Secret>,
    /// Never ask the hub (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The Hugging Face cache (`HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`).
    pub hf_cache: PathBuf,
    /// The cache of everything else (`TUNESMITH_CACHE`, `XDG_CACHE_HOME/tunesmith`, `~/.cache/tunesmith`).
    pub cache: PathBuf,
    /// How long a host may take to answer at all.
    pub connect_timeout: Duration,
    /// How long a running download may stand still before it counts as cut.
    pub stall_timeout: Duration,
    /// The pause after the first failure; it doubles with each further one.
    pub retry_delay: Duration,
    /// The Python whose pip fetches packages (`TUNESMITH_PYTHON`); `python3`, then `python` when absent.
    pub python: Option<PathBuf>,
    /// Most files of one repository or archive.
    pub max_files: usize,
    /// Most bytes of one repository or unpacked archive.
    pub max_bytes: u64,
}

impl HubConfig {
    /// The settings that the environment asks for.
    pub fn from_env() -> Self {
        let home = std::env::home_dir().unwrap_or_else(|| PathBuf::from("."));
        Self::from_lookup(&home, |name| std::env::var_os(name))
    }

    /// The same with the environment given as a function, which is how it is tested.
    pub fn from_lookup(home: &Path, lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        // An empty variable means an unset one, as in shells' `${NAME:-…}` and in Python's hub client.
        let var = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| var(name).map(|value| expand_home(Path::new(&value), home));

        let user_cache = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        Self {
            hf_endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            hf_token: text("HF_TOKEN")
                .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| std::fs::read_to_string(token_file).ok())
                .and_then(|token| Secret::new(&token)),
            offline: text("HF_HUB_OFFLINE").is_some_and(|value| is_truthy(&value)),
            hf_cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| hf_home.join("hub")),
            cache: path("TUNESMITH_CACHE").unwrap_or_else(|| user_cache.join("tunesmith")),
            python: path("TUNESMITH_PYTHON"),
            ..Self::in_folder(home)
        }
    }

    /// Default limits and times, no token, and both caches below one folder: for tests and self-contained set-ups.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            hf_endpoint: "https://huggingface.co".to_owned(),
            hf_token: None,
            offline: false,
            hf_cache: folder.join("huggingface"),
            cache: folder.join("tunesmith"),
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            retry_delay: Duration::from_millis(500),
            python: None,
            max_files: 1_000,
            max_bytes: 64 << 30,
        }
    }
}

fn expand_home(path: &Path, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => path.to_owned(),
    }
}

fn is_truthy(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|yes| yes.eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    fn config(home: &Path, vars: &[(&str, &str)]) -> HubConfig {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        HubConfig::from_lookup(home, |name| vars.get(name).map(OsString::from))
    }

    #[test]
    fn without_variables_both_caches_are_the_standard_ones() {
        let config = config(Path::new("/home/ada"), &[("HF_ENDPOINT", "")]);
        assert_eq!(config.hf_endpoint, "https://huggingface.co");
        assert_eq!(config.hf_cache, Path::new("/home/ada/.cache/huggingface/hub"));
        assert_eq!(config.cache, Path::new("/home/ada/.cache/tunesmith"));
        assert!(!config.offline);
        assert_eq!(config.connect_timeout, Duration::from_secs(5));
    }

    #[test]
    fn the_narrower_variable_wins() {
        let wide = config(Path::new("/h"), &[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]);
        assert_eq!(wide.hf_cache, Path::new("/h/hf/hub"));
        assert_eq!(wide.cache, Path::new("/x/tunesmith"));
        let narrow =
            config(Path::new("/h"), &[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c"), ("XDG_CACHE_HOME", "/x"), ("TUNESMITH_CACHE", "/t")]);
        assert_eq!(narrow.hf_cache, Path::new("/c"));
        assert_eq!(narrow.cache, Path::new("/t"));
    }

    #[test]
    fn the_token_of_the_variable_wins_over_the_login_file_and_neither_is_printed() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cache/huggingface");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("token"), "hf_from_file\n").unwrap();

        let from_file = config(home.path(), &[]);
        assert_eq!(from_file.hf_token, Secret::new("hf_from_file"));
        let from_variable = config(home.path(), &[("HF_TOKEN", "hf_from_variable")]);
        assert_eq!(from_variable.hf_token, Secret::new("hf_from_variable"));
        assert!(!format!("{from_variable:?}").contains("hf_from"));
    }

    #[test]
    fn offline_takes_the_spellings_of_the_python_client() {
        for (value, expected) in [("1", true), ("TRUE", true), ("on", true), ("0", false), ("no", false)] {
            assert_eq!(config(Path::new("/h"), &[("HF_HUB_OFFLINE", value)]).offline, expected);
        }
    }
}
