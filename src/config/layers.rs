//! Puts the configuration's layers on top of each other and turns what does not fit into one clear line.
//!
//! The environment is read here and not by figment's own provider: that one would read the key `007` as the number 7.

use figment2::providers::{Format, Serialized, Toml};
use figment2::value::{Dict, Map, Value};
use figment2::{Figment, Metadata, Profile, Provider};

use super::{Config, ConfigError, ConfigFlags};

/// Carries a finished configuration to a child process.
pub(super) const INHERITED: &str = "TUNESMITH_INHERITED_CONFIG";

const PREFIX: &str = "TUNESMITH_";
/// Names under the prefix that other parts read: the hub, and the command line itself.
const ELSEWHERE: &[&str] = &["CONFIG", "URL", "BIN", "PYTHON", "CACHE", "INHERITED_CONFIG"];
/// Lowers the instruction set of the kernels, which read it themselves.
const ISA: &str = "TUNESMITH_ISA";
/// More threads than any machine of ours has processors: a slip of the keyboard.
const MOST_THREADS: usize = 1024;
/// Settings whose value is text, whatever it looks like.
const TEXT: &[&str] = &["api_key", "cors_origin", "host", "data_dir", "model_dir"];

/// Builds the configuration from every layer; `environment` is injected so that tests need not change the process's own.
pub(super) fn load(flags: &ConfigFlags, environment: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    figment = match &flags.config {
        Some(path) if !path.is_file() => return Err(ConfigError::NoFile(path.clone())),
        Some(path) => figment.merge(Toml::file(path).search(false)),
        None => figment.merge(Toml::file("tunesmith.toml").search(false)),
    };
    let (inherited, own): (Vec<_>, Vec<_>) = environment.partition(|(name, _)| name == INHERITED);
    let mut unknown = Vec::new();
    figment = match inherited.first() {
        // Finished: the server's flags stand in it, above the environment that the child has too.
        Some((_, json)) => {
            let value: serde_json::Value = serde_json::from_str(json).map_err(|e| ConfigError::Invalid(format!("{INHERITED}: {e}")))?;
            figment.merge(Serialized::defaults(value))
        }
        None => figment.merge(Environment::read(own.into_iter(), &mut unknown)?),
    };
    figment = figment.merge(Serialized::defaults(flags.layer()));
    let mut config: Config = figment.extract().map_err(|e| ConfigError::Invalid(explain(&e)))?;
    config.unknown_environment = unknown;
    config.data_dir = std::path::absolute(&config.data_dir).map_err(|e| ConfigError::Invalid(format!("data_dir: {e}")))?;
    check(&config)?;
    Ok(config)
}

/// `TUNESMITH_*` as a layer; `__` goes one section down, as in `TUNESMITH_LIMITS__MAX_FILE_BYTES`.
struct Environment(Dict);

impl Environment {
    /// Names that are no setting are collected and no error: Kubernetes sets `TUNESMITH_SERVICE_HOST` and the like for a
    /// service of our name.
    fn read(variables: impl Iterator<Item = (String, String)>, unknown: &mut Vec<String>) -> Result<Self, ConfigError> {
        let settings = Serialized::defaults(Config::default()).data().map_err(|e| ConfigError::Invalid(e.to_string()))?;
        let known = |key: &str| settings.values().any(|layer| layer.contains_key(key));
        let mut layer = Dict::new();
        for (name, text) in variables {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            if ELSEWHERE.contains(&key) {
                continue;
            }
            if name == ISA {
                check_isa(&text)?;
                continue;
            }
            let key = key.to_ascii_lowercase();
            if !known(key.split("__").next().unwrap_or_default()) {
                unknown.push(name);
                continue;
            }
            let value = if TEXT.contains(&key.as_str()) {
                Value::from(text)
            } else {
                // Never fails: what is no number, truth value or list is text.
                text.parse().unwrap_or_else(|_| Value::from(text.clone()))
            };
            match key.split_once("__") {
                None => {
                    layer.insert(key, value);
                }
                Some((section, field)) => {
                    let entry = layer.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
                    let Value::Dict(_, fields) = entry else {
                        return Err(ConfigError::Invalid(format!("{name}: `{section}` is set as a whole too; set one of the two")));
                    };
                    fields.insert(field.to_owned(), value);
                }
            }
        }
        Ok(Self(layer))
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("the environment (TUNESMITH_*)")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment2::Error> {
        Ok(Map::from([(Profile::Default, self.0.clone())]))
    }
}

/// One line for the first thing that does not fit: where it stands, what is wrong.
fn explain(error: &figment2::Error) -> String {
    let path = error.path.join(".");
    let place = error.metadata.as_ref().map_or(String::new(), |m| {
        let source = m.source.as_ref().map_or(String::new(), |s| format!(" {s}"));
        format!(" (in {}{source})", m.name)
    });
    match path.is_empty() {
        true => format!("{}{place}", error.kind),
        false => format!("`{path}`: {}{place}", error.kind),
    }
}

/// The kernels take an instruction set that they do not know for none.
fn check_isa(text: &str) -> Result<(), ConfigError> {
    let names = tunesmith_ops::cpu::LOWERED;
    if names.contains(&text) {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!("{ISA}: `{text}` is none of {}", names.join(", "))))
}

/// Settings that are well-formed and still cannot work.
fn check(config: &Config) -> Result<(), ConfigError> {
    let invalid = |text: &str| Err(ConfigError::Invalid(text.to_owned()));
    if config.api_key.iter().any(|k| k.trim().is_empty()) {
        return invalid("`api_key`: an empty key would let everybody in; remove it or set one");
    }
    if config.threads == Some(0) || config.worker_threads == Some(0) {
        return invalid("`threads`: 0 threads can do nothing; leave it out to use every core");
    }
    if let Some(threads) = config.threads.max(config.worker_threads).filter(|threads| *threads > MOST_THREADS) {
        return Err(ConfigError::Invalid(format!("`threads`: {threads} is more than {MOST_THREADS}; leave it out to use every core")));
    }
    if let Some(origin) = config.cors_origin.iter().find(|o| !is_origin(o)) {
        return Err(ConfigError::Invalid(format!(
            "`cors_origin`: `{origin}` is no origin; write scheme and host, as in https://example.com or http://localhost:3000, or * for all"
        )));
    }
    if let Some(folder) = config.model_dir.as_ref().filter(|f| !f.is_dir()) {
        return Err(ConfigError::Invalid(format!("`model_dir`: {} is no folder", folder.display())));
    }
    if config.lease_seconds < 3 {
        return invalid("`lease_seconds`: workers give a sign of life every second; set at least 3");
    }
    if config.limits.max_body_bytes == 0 || config.limits.max_file_bytes == 0 {
        return invalid("`limits`: a limit of 0 bytes would refuse every request");
    }
    if config.limits.request_timeout_seconds == 0 || config.limits.body_idle_seconds == 0 {
        return invalid("`limits`: a time-out of 0 seconds would refuse every request");
    }
    Ok(())
}

/// What a browser may send as `Origin`: a scheme, a host, perhaps a port, and nothing behind.
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    text == "*" || text == "null" || rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::ServeDtype;
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>().into_iter()
    }

    fn file(text: &str) -> (tempfile::TempDir, ConfigFlags) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, text).unwrap();
        let flags = ConfigFlags { config: Some(path), ..ConfigFlags::default() };
        (dir, flags)
    }

    #[test]
    fn later_layers_win() {
        let (_dir, mut flags) = file("port = 1\nworkers = 5\nhost = \"::1\"\n[limits]\nmax_file_bytes = 10\nmax_line_bytes = 11\n");
        flags.port = Some(3);
        flags.max_file_bytes = Some(12);
        let config =
            load(&flags, env(&[("TUNESMITH_PORT", "2"), ("TUNESMITH_WORKERS", "6"), ("TUNESMITH_LIMITS__MAX_FILE_BYTES", "13")])).unwrap();
        assert_eq!((config.port, config.workers, config.host.as_str()), (3, 6, "::1"));
        assert_eq!((config.limits.max_file_bytes, config.limits.max_line_bytes), (12, 11));
        assert_eq!(config.limits.max_body_bytes, 8 << 20);
        flags.serve_dtype = Some(ServeDtype::Int8);
        assert_eq!(load(&flags, env(&[("TUNESMITH_SERVE__DTYPE", "bf16")])).unwrap().serve.dtype, ServeDtype::Int8);
        flags.serve_dtype = None;
        assert_eq!(load(&flags, env(&[("TUNESMITH_SERVE__DTYPE", "bfloat16")])).unwrap().serve.dtype, ServeDtype::Bf16);
    }

    #[test]
    fn a_childs_environment_does_not_undo_its_servers_flags() {
        let server = Config { workers: 3, ..Config::default() };
        let json = serde_json::to_string(&server).unwrap();
        let child = load(&ConfigFlags::default(), env(&[(INHERITED, &json), ("TUNESMITH_WORKERS", "5")])).unwrap();
        assert_eq!(child.workers, 3);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_named() {
        let (_dir, flags) = file("[limits]\nmax_file_byte = 10\n");
        let message = load(&flags, env(&[])).unwrap_err().to_string();
        assert!(message.contains("max_file_byte") && message.contains("t.toml"), "{message}");
    }

    #[test]
    fn a_variable_that_is_no_setting_is_told() {
        let config = load(&ConfigFlags::default(), env(&[("TUNESMITH_WORKRES", "2"), ("TUNESMITH_WORKERS", "2"), ("HOME", "/")])).unwrap();
        assert_eq!(config.unknown_environment, ["TUNESMITH_WORKRES"]);
    }

    #[test]
    fn an_instruction_set_is_one_that_the_kernels_know() {
        let isa = |text| load(&ConfigFlags::default(), env(&[("TUNESMITH_ISA", text)]));
        assert!(isa("avx2").unwrap().unknown_environment.is_empty());
        for text in ["AVX2", "", "sse"] {
            let message = isa(text).unwrap_err().to_string();
            assert!(message.contains(&format!("TUNESMITH_ISA: `{text}` is none of scalar, avx2, avx512")), "{message}");
        }
    }

    #[test]
    fn threads_are_one_at_least_and_no_slip_of_the_keyboard() {
        for (threads, says) in [(0, "0 threads"), (5000, "5000 is more than 1024")] {
            for name in ["TUNESMITH_THREADS", "TUNESMITH_WORKER_THREADS"] {
                let message = load(&ConfigFlags::default(), env(&[(name, &threads.to_string())])).unwrap_err().to_string();
                assert!(message.contains(says), "{message}");
            }
        }
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for (origin, good) in
            [("https://a.b", true), ("http://localhost:3000", true), ("*", true), ("foo", false), ("https://a.b/c", false)]
        {
            let message =
                load(&ConfigFlags { cors_origin: vec![origin.into()], ..ConfigFlags::default() }, env(&[])).map_err(|e| e.to_string());
            assert_eq!(message.is_ok(), good, "{message:?}");
        }
    }

    #[test]
    fn a_model_folder_that_is_not_there_is_named() {
        let flags = ConfigFlags { model_dir: Some("no-such-folder".into()), ..ConfigFlags::default() };
        assert!(load(&flags, env(&[])).unwrap_err().to_string().contains("no-such-folder"));
    }

    #[test]
    fn a_wrong_type_names_its_key_and_layer() {
        let message = load(&ConfigFlags::default(), env(&[("TUNESMITH_PORT", "many")])).unwrap_err().to_string();
        assert!(message.contains("port") && message.contains("TUNESMITH_"), "{message}");
    }

    #[test]
    fn a_key_that_looks_like_a_number_stays_text() {
        let config = load(&ConfigFlags::default(), env(&[("TUNESMITH_API_KEY", "007, second")])).unwrap();
        assert_eq!(config.api_key, ["007", "second"]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let flags = ConfigFlags { config: Some("no-such.toml".into()), ..ConfigFlags::default() };
        assert!(load(&flags, env(&[])).unwrap_err().to_string().contains("no-such.toml"));
    }
}
