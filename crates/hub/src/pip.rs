//! `python -m pip download`: the one way to a package index, so that the environment's own index is used.
//!
//! Called by `package`. No index address stands in this program; pip reads its own configuration. pip's arguments are a
//! requirements file that we write, from parts that `Source` has checked.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::config::HubConfig;
use crate::error::HubError;
use crate::progress::{Progress, Report};

const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// One package archive to fetch.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) package: &'a str,
    pub(crate) version: &'a str,
    pub(crate) sha256: Option<&'a str>,
    /// A wheel if true, a source archive if false.
    pub(crate) binary: bool,
}

impl Request<'_> {
    /// `package==version`, as progress and errors call it.
    pub(crate) fn name(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

/// Fetches the archive into `work`, a fresh folder, and answers its path.
pub(crate) async fn download(config: &HubConfig, request: &Request<'_>, work: &Path, report: &Report) -> Result<PathBuf, HubError> {
    let python = find_python(config).await?;
    let (target, scratch) = (work.join("download"), work.join("pip"));
    for folder in [&target, &scratch] {
        std::fs::create_dir_all(folder).map_err(HubError::io(folder))?;
    }
    let requirements = work.join("requirements.txt");
    let hash = request.sha256.map_or(String::new(), |hash| format!(" --hash=sha256:{hash}"));
    std::fs::write(&requirements, format!("{}{hash}\n", request.name())).map_err(HubError::io(&requirements))?;

    let mut command = pip(&python, &scratch);
    let seconds = config.connect_timeout.as_secs().max(1).to_string();
    command.args(["download", "--no-deps", "--quiet", "--retries", "0"]).args(["--timeout", &seconds]);
    // `--no-binary :all:` would also build the source archive's own build tools from source.
    match request.binary {
        true => command.args(["--only-binary", ":all:"]),
        false => command.args(["--no-binary", request.package]),
    };
    if request.sha256.is_some() {
        command.arg("--require-hashes");
    }
    command.arg("--requirement").arg(&requirements).arg("--dest").arg(&target);

    let mut last = run(&mut command, request, work, report).await?;
    if let Err(stderr) = &last
        && is_worth_a_second_try(stderr)
    {
        tracing::debug!(package = %request.name(), "pip was cut off, running it again");
        last = run(&mut command, request, work, report).await?;
    }
    if let Err(stderr) = last {
        return Err(explain(request, &stderr));
    }
    only_file(&target, request)
}

/// pip with its scratch folder as working directory: `python -m` looks there first, and nothing else's `pip` may lie there.
fn pip(python: &Path, scratch: &Path) -> Command {
    let mut command = Command::new(python);
    command
        .args(["-m", "pip", "--no-input", "--disable-pip-version-check"])
        .env("TMPDIR", scratch)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("HF_TOKEN")
        .env_remove("HUGGING_FACE_HUB_TOKEN")
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs pip and reports how much it has written; the inner error is its error output.
async fn run(command: &mut Command, request: &Request<'_>, work: &Path, report: &Report) -> Result<Result<(), String>, HubError> {
    let child = command.spawn().map_err(|why| HubError::NoPython(format!("Python does not start: {why}")))?;
    let mut output = std::pin::pin!(child.wait_with_output());
    let mut tick = tokio::time::interval(REPORT_EVERY);
    let mut written = None;
    loop {
        tokio::select! {
            output = &mut output => {
                let output = output.map_err(HubError::io(work))?;
                let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                return Ok(if output.status.success() { Ok(()) } else { Err(stderr) });
            }
            _ = tick.tick() => {
                let now = largest_below(work, 0);
                if written.is_none_or(|before| now > before) {
                    written = Some(now);
                    report(Progress { file: request.name(), done: now, total: None });
                }
            }
        }
    }
}

/// The size of the largest file that pip is writing. Not the sum: pip copies the archive once it is there. A file that
/// vanishes meanwhile counts as nothing.
fn largest_below(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, meta)| match meta.is_dir() {
            true if depth < 4 => largest_below(&path, depth + 1),
            true => 0,
            false => meta.len(),
        })
        .max()
        .unwrap_or(0)
}

async fn find_python(config: &HubConfig) -> Result<PathBuf, HubError> {
    let candidates = match &config.python {
        Some(python) => vec![python.clone()],
        None => vec![PathBuf::from("python3"), PathBuf::from("python")],
    };
    let mut reasons = Vec::new();
    for python in candidates {
        match probe(&python).await {
            Ok(()) => return Ok(python),
            Err(why) => reasons.push(format!("{}: {why}", python.display())),
        }
    }
    Err(HubError::NoPython(format!(
        "package sources need Python with pip, and there is none ({}); install it, or set TUNESMITH_PYTHON to one",
        reasons.join("; ")
    )))
}

async fn probe(python: &Path) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|why| why.to_string())?;
    let mut command = pip(python, scratch.path());
    let running = command.arg("--version").output();
    let output = tokio::time::timeout(PROBE_TIMEOUT, running)
        .await
        .map_err(|_| format!("no answer within {} s", PROBE_TIMEOUT.as_secs()))?
        .map_err(|why| why.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(last_line(&stderr).unwrap_or_else(|| output.status.to_string()))
}

/// With `--retries 0` a hiccup of a good connection would be final; an index that is not there is not asked again.
fn is_worth_a_second_try(stderr: &str) -> bool {
    ["IncompleteRead", "Connection broken", "Read timed out", "Connection aborted", "ConnectionResetError"]
        .iter()
        .any(|mark| stderr.contains(mark))
}

fn explain(request: &Request<'_>, stderr: &str) -> HubError {
    let after = |mark: &str| {
        let rest = stderr.split_once(mark)?.1;
        Some(rest.split_whitespace().next()?.to_owned())
    };
    if stderr.contains("DO NOT MATCH THE HASHES") {
        return HubError::Checksum {
            file: request.name(),
            expected: after("Expected sha256 ").unwrap_or_default(),
            found: after("Got ").unwrap_or_default(),
        };
    }
    let why = match stderr.contains("(from versions: none)") {
        true => "the package index has no such package, or cannot be reached".to_owned(),
        false => error_line(stderr).unwrap_or_else(|| "it says nothing".to_owned()),
    };
    HubError::Pip { package: request.name(), why }
}

fn error_line(stderr: &str) -> Option<String> {
    let error = stderr.lines().find_map(|line| line.strip_prefix("ERROR: "));
    error.map(|line| line.chars().take(300).collect()).or_else(|| last_line(stderr))
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(300).collect())
}

fn only_file(folder: &Path, request: &Request<'_>) -> Result<PathBuf, HubError> {
    let endings: &[&str] = match request.binary {
        true => &[".whl"],
        false => &[".tar.gz", ".tgz", ".zip"],
    };
    let fits = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        endings.iter().any(|ending| name.ends_with(ending))
    };
    let files: Vec<PathBuf> = std::fs::read_dir(folder).map_err(HubError::io(folder))?.flatten().map(|entry| entry.path()).collect();
    match files.as_slice() {
        [file] if fits(file) => Ok(file.clone()),
        _ => Err(HubError::Pip {
            package: request.name(),
            why: format!("it left {} files, expected one of {}", files.len(), endings.join(", ")),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request<'_> = Request { package: "tiny", version: "1.0", sha256: None, binary: true };

    #[test]
    fn pips_hash_complaint_becomes_a_checksum_error() {
        let stderr = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. …\n    tiny==1.0:\n        \
                      Expected sha256 aaaa\n             Got        bbbb\n";
        match explain(&REQUEST, stderr) {
            HubError::Checksum { file, expected, found } => {
                assert_eq!((file.as_str(), expected.as_str(), found.as_str()), ("tiny==1.0", "aaaa", "bbbb"));
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_first_error_line_of_pip_is_what_the_user_reads() {
        let error = explain(&REQUEST, "WARNING: x\nERROR: disk is odd\nhint: see above\n");
        assert_eq!(error.to_string(), "pip could not fetch tiny==1.0: disk is odd");
        let unknown = explain(&REQUEST, "ERROR: Could not find a version … (from versions: none)\n");
        assert!(unknown.to_string().contains("cannot be reached"));
    }
}
