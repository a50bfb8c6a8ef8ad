//! Where log lines go: standard error, as text for people or JSON for machines.
//!
//! Set up once by `serve` and `worker`; other commands print to the terminal and log only warnings. Standard output stays
//! free for what a command answers.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{Log, LogFormat};

/// Starts the log. A level that cannot be read is an error with what can.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|e| {
        format!("log level `{}`: {e}; use error, warn, info, debug, trace or directives such as info,tunesmith=debug", log.level)
    })?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE).with_writer(std::io::stderr).with_target(true);
    // Fails only where a log is started already, as when tests run in one process.
    match log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init().ok(),
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colours).try_init().ok()
        }
    };
    Ok(())
}
