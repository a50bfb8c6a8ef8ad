//! Following a job: a progress bar in a terminal, lines elsewhere; the losses, the messages as they come.
//!
//! Used by `jobs watch`, `submit --watch` and `demo`. It reads the event stream, and takes it up again after
//! `Last-Event-ID` when the connection breaks.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::{Client, segment};

/// Broken connections in a row before giving up.
const TRIES: u32 = 10;
/// Without a terminal: the longest that nothing is printed, and the least time between two losses.
const SILENCE: Duration = Duration::from_secs(10);

/// Follows the job to its end and answers it.
pub async fn follow(client: &Client, id: &str) -> anyhow::Result<Value> {
    let path = format!("/v1/fine_tuning/jobs/{}", segment(id));
    let mut screen = Screen::new();
    let mut last_event: Option<String> = None;
    let mut failures = 0;
    loop {
        match read_stream(client, &path, &mut screen, &mut last_event).await {
            Ok(()) => failures = 0,
            Err(error) if failures >= TRIES => {
                screen.bar.abandon();
                return Err(error);
            }
            Err(_) => {
                failures += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let job = match client.get(&path).await {
            Ok(job) => job,
            Err(_) if failures < TRIES => continue,
            Err(error) => return Err(error),
        };
        if is_over(&job) {
            screen.progress(&job);
            screen.bar.finish();
            return Ok(job);
        }
    }
}

/// Success for a job that succeeded.
pub fn exit_code(job: &Value) -> ExitCode {
    match job["status"].as_str() {
        Some("succeeded") => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A paused job is over for whoever watches: nothing more comes by itself.
fn is_over(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("succeeded" | "failed" | "cancelled" | "paused"))
}

async fn read_stream(client: &Client, path: &str, screen: &mut Screen, last_event: &mut Option<String>) -> anyhow::Result<()> {
    let response = client.stream(&format!("{path}/events"), last_event.as_deref()).await?;
    let mut bytes = response.bytes_stream();
    let mut reader = EventReader::default();
    loop {
        // A long step or a download sends no events; what the job says of itself is shown all the same.
        match tokio::time::timeout(SILENCE, bytes.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(piece)) => {
                for event in reader.push(&piece?) {
                    *last_event = event["id"].as_str().map(str::to_owned);
                    screen.event(&event);
                }
            }
            Err(_) => {}
        }
        let job = client.get(path).await?;
        screen.progress(&job);
        if job["status"] == "paused" {
            return Ok(());
        }
    }
}

/// Where a job is shown: a bar with lines above it, or on what is no terminal lines alone.
struct Screen {
    bar: ProgressBar,
    /// When the last line was printed, where there is no terminal.
    printed: Option<Instant>,
}

impl Screen {
    fn new() -> Self {
        let bar = ProgressBar::new(0).with_style(style());
        bar.enable_steady_tick(Duration::from_millis(250));
        let printed = bar.is_hidden().then(Instant::now);
        Self { bar, printed }
    }

    fn is_silent(&self) -> bool {
        self.printed.is_some_and(|at| at.elapsed() >= SILENCE)
    }

    fn event(&mut self, event: &Value) {
        let message = event["message"].as_str().unwrap_or_default();
        match event["level"].as_str() {
            // Losses come often: the newest stands beside the bar, and of lines alone there is one in a while.
            Some("info") if event["type"] == "metrics" => {
                self.bar.set_message(message.to_owned());
                let evaluates = !event["data"]["eval_loss"].is_null();
                if self.printed.is_some() && (evaluates || self.is_silent()) {
                    self.line(message);
                }
            }
            Some("info") => self.line(message),
            Some(level) => self.line(&format!("{level}: {message}")),
            None => {}
        }
    }

    fn line(&mut self, text: &str) {
        match &mut self.printed {
            Some(at) => {
                // As with the bar, nobody has to read it.
                let _ = writeln!(std::io::stderr(), "   {text}");
                *at = Instant::now();
            }
            None => self.bar.println(text),
        }
    }

    fn progress(&mut self, job: &Value) {
        let progress = &job["progress"];
        if let Some(total) = progress["total_steps"].as_u64() {
            self.bar.set_length(total);
        }
        self.bar.set_position(progress["step"].as_u64().unwrap_or(0));
        let state = job["status"].as_str().unwrap_or_default();
        let reason = job["queue"]["reason"].as_str().map(|r| format!(": {r}")).unwrap_or_default();
        self.bar.set_prefix(format!("{state}{reason}"));
        if self.is_silent() {
            let text = match (progress["total_steps"].as_u64(), progress["phase"].as_str()) {
                (Some(total), _) => format!("{state}: step {} of {total}", progress["step"].as_u64().unwrap_or(0)),
                (None, Some(phase)) => format!("{state}: {phase}"),
                (None, None) => format!("{state}{reason}"),
            };
            self.line(&text);
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} [{bar:32}] {pos}/{len} {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Puts an event stream's lines together; keeps the JSON of `data:` fields.
#[derive(Default)]
struct EventReader {
    line: Vec<u8>,
    data: String,
}

impl EventReader {
    fn push(&mut self, piece: &[u8]) -> Vec<Value> {
        let mut events = Vec::new();
        for &byte in piece {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).trim_end_matches('\r').to_owned();
            self.line.clear();
            if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.trim_start());
            } else if line.is_empty() && !self.data.is_empty() {
                events.extend(serde_json::from_str(&self.data).ok());
                self.data.clear();
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_any_pieces() {
        let text = ": keep-alive\n\nid: a\nevent: message\ndata: {\"id\":\"a\"}\n\ndata: {\"id\":\"ü\"}\r\n\r\n";
        let mut whole = EventReader::default();
        let mut bytewise = EventReader::default();
        let expected = vec![serde_json::json!({"id": "a"}), serde_json::json!({"id": "ü"})];
        assert_eq!(whole.push(text.as_bytes()), expected);
        let events: Vec<Value> = text.bytes().flat_map(|b| bytewise.push(&[b])).collect();
        assert_eq!(events, expected);
    }
}
