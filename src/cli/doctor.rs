//! `tunesmith doctor`: what this machine offers, and what is missing, one line each.
//!
//! Ends with failure where something would keep the server from working.

use std::path::Path;
use std::process::ExitCode;

use tunesmith_hub::{Hub, HubConfig};

use super::output::say;
use super::table::size;
use crate::config::{Config, ConfigFlags, Device};
use crate::machine;

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut findings = Findings::default();
    findings.good("version", env!("CARGO_PKG_VERSION"));
    processor(&mut findings);
    match Config::load(&args.config) {
        Ok(config) => {
            findings.good("configuration", "readable");
            if !config.unknown_environment.is_empty() {
                findings.note("environment", format!("{}: no setting of that name", config.unknown_environment.join(", ")));
            }
            device(&mut findings, config.device);
            address(&mut findings, &config);
            data_folder(&mut findings, &config.data_dir);
        }
        Err(error) => findings.bad("configuration", error.to_string()),
    }
    python(&mut findings).await;
    hub(&mut findings).await;
    say!("{}", findings.lines.join("\n"));
    Ok(if findings.unsound { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The lines so far.
#[derive(Default)]
struct Findings {
    lines: Vec<String>,
    unsound: bool,
}

impl Findings {
    fn good(&mut self, what: &str, text: impl AsRef<str>) {
        self.lines.push(format!("ok    {what:14} {}", text.as_ref()));
    }

    fn note(&mut self, what: &str, text: impl AsRef<str>) {
        self.lines.push(format!("note  {what:14} {}", text.as_ref()));
    }

    fn bad(&mut self, what: &str, text: impl AsRef<str>) {
        self.unsound = true;
        self.lines.push(format!("FAIL  {what:14} {}", text.as_ref()));
    }
}

fn processor(findings: &mut Findings) {
    findings.good("processor", format!("{}, {} cores", machine::cpu_name(), machine::cores()));
    let (has, lacks): (Vec<_>, Vec<_>) = machine::cpu_features().into_iter().partition(|(_, there)| *there);
    let names = |list: Vec<(&'static str, bool)>| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" ");
    let lacks = match lacks.is_empty() {
        true => String::new(),
        false => format!("; not {}", names(lacks)),
    };
    findings.good("features", format!("{}{lacks}", names(has)));
    findings.good("kernels", tunesmith_ops::cpu::kernel_set());
    let available = machine::memory_available().map_or(String::new(), |bytes| format!(", {} available now", size(bytes)));
    findings.good("memory", format!("{}{available}", size(machine::memory_limit())));
}

fn device(findings: &mut Findings, device: Device) {
    match device.supported() {
        Ok(()) => findings.good("device", device.to_string()),
        Err(why) => findings.bad("device", why),
    }
}

fn address(findings: &mut Findings, config: &Config) {
    match config.addresses() {
        Ok(addresses) => {
            let keys = config.api_key.len();
            findings
                .good("address", format!("{}, {keys} API keys", addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")));
        }
        Err(error) => findings.bad("address", error.to_string()),
    }
}

/// Whether the folder, or the nearest folder above it that exists, takes a file.
fn data_folder(findings: &mut Findings, folder: &Path) {
    let Some(existing) = folder.ancestors().find(|f| f.is_dir()) else {
        return findings.bad("data folder", format!("{} cannot be made: no folder above it exists", folder.display()));
    };
    match tempfile::tempfile_in(existing) {
        Ok(_) => {
            let free = machine::free_disk(existing).map_or("unknown".to_owned(), size);
            let state = if existing == folder { "" } else { " (will be made)" };
            findings.good("data folder", format!("{}{state}, {free} free", folder.display()));
        }
        Err(error) => findings.bad("data folder", format!("{} cannot be written: {error}", folder.display())),
    }
}

/// Only package sources need it, so its absence is no fault.
async fn python(findings: &mut Findings) {
    let wanted = HubConfig::from_env().python;
    let names = match wanted {
        Some(path) => vec![path],
        None => vec!["python3".into(), "python".into()],
    };
    for name in names {
        let output = tokio::process::Command::new(&name).args(["-m", "pip", "--version"]).output().await;
        if let Ok(output) = output
            && output.status.success()
        {
            let version = String::from_utf8_lossy(&output.stdout).split(" from ").next().unwrap_or_default().trim().to_owned();
            return findings.good("python", format!("{} with {version}", name.display()));
        }
    }
    findings.note("python", "none with pip; models whose only reachable source is a package cannot be pulled");
}

async fn hub(findings: &mut Findings) {
    let config = HubConfig::from_env();
    findings.good("hub cache", format!("{}", config.hf_cache.display()));
    let endpoint = config.hf_endpoint.clone();
    if config.offline {
        return findings.note("hub", "switched off by HF_HUB_OFFLINE");
    }
    let timeout = config.connect_timeout;
    if let Err(error) = Hub::new(config) {
        return findings.bad("hub", error.to_string());
    }
    let client = reqwest::Client::builder().connect_timeout(timeout).timeout(timeout * 2).build();
    let answer = match client {
        Ok(client) => client.head(&endpoint).send().await.map(|_| ()).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match answer {
        Ok(()) => findings.good("hub", format!("{endpoint} answers")),
        Err(_) => findings.note("hub", format!("{endpoint} cannot be reached; the catalogue's other sources and local folders work")),
    }
}
