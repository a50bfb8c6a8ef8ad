//! `tunesmith pull`: downloads a model or data set ahead of its first use, or lists the catalogue.
//!
//! Whoever owns the machine may name any source, so the server's `--allow-pull` does not count here.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tunesmith_hub::{Hub, HubConfig, Progress, Pulled, catalogue_entries};

use super::output::say;
use super::table::table;

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A name of the catalogue, a hub id, or a source such as hf:org/name@revision
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// List the catalogue
    #[arg(long)]
    list: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let hub = Hub::new(HubConfig::from_env())?;
    if let Some(name) = args.name {
        fetch(&hub, &name).await?;
    }
    if args.list {
        print_catalogue(&hub).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Downloads with progress bars, and says where it lies and where it came from.
pub async fn fetch(hub: &Hub, name: &str) -> anyhow::Result<Pulled> {
    let bars = Arc::new(Bars::default());
    let shown = bars.clone();
    let pulled = hub.pull(name, move |progress| shown.show(progress)).await?;
    bars.clear();
    say!("{name}: {}", pulled.folder.display());
    say!("   source {}, revision {}, licence {}", pulled.source, pulled.revision, pulled.licence.as_deref().unwrap_or("unknown"));
    Ok(pulled)
}

async fn print_catalogue(hub: &Hub) -> anyhow::Result<()> {
    let hub = hub.clone();
    let rows = tokio::task::spawn_blocking(move || {
        let row = |e: &tunesmith_hub::Entry| {
            let here = if hub.cached(e.name).is_some() { "yes" } else { "" };
            [e.name.to_owned(), here.to_owned(), e.licence.to_owned(), e.about.to_owned()]
        };
        catalogue_entries().iter().map(row).collect::<Vec<_>>()
    })
    .await?;
    let mut out = table(&["NAME", "HERE", "LICENCE", "ABOUT"]);
    rows.into_iter().for_each(|row| {
        out.add_row(row);
    });
    say!("{out}");
    Ok(())
}

/// A bar for each file that is on its way.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn show(&self, progress: Progress) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = files.entry(progress.file).or_insert_with_key(|name| {
            let style = ProgressStyle::with_template("{msg} [{bar:32}] {bytes}/{total_bytes} {binary_bytes_per_sec}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            self.all.add(ProgressBar::new(0).with_style(style).with_message(name.clone()))
        });
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
        if progress.total == Some(progress.done) {
            bar.finish();
        }
    }

    fn clear(&self) {
        // Fails where the terminal is gone; then there is nothing to clear.
        self.all.clear().ok();
    }
}
