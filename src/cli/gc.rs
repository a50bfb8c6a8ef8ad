//! `tunesmith gc`: what takes disk space in the data folder, and what may go.
//!
//! Reads the data folder itself, beside a running server too. It removes nothing unless `--sweep` is given, which needs the
//! folder for itself.

use std::process::ExitCode;
use std::sync::Arc;

use tunesmith_store::{DataLock, JobFilter, JobState, PageQuery, Store, SystemClock};

use super::output::say;
use super::table::{size, table};
use crate::config::{Config, ConfigFlags};

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Remove what a crash left; the server must not run
    #[arg(long)]
    sweep: bool,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    anyhow::ensure!(config.data_dir.is_dir(), "there is no data folder {}; name it with --data-dir", config.data_dir.display());
    let lock = args.sweep.then(|| DataLock::acquire(&config.data_dir)).transpose()?;
    let store = Store::open(&config.data_dir, Arc::new(SystemClock::new())).await?;
    if let Some(lock) = &lock {
        let report = store.sweep(lock).await?;
        say!(
            "removed: {} blobs that no row names ({}), {} half-written files, {} staging folders, {} expired keys",
            report.orphan_blobs,
            size(report.orphan_bytes),
            report.half_written,
            report.staging_folders,
            report.expired_keys
        );
    }
    print_usage(&store).await?;
    print_removable(&store).await?;
    if let Some(free) = crate::machine::free_disk(&config.data_dir) {
        say!("\n{} free on that disk", size(free));
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn print_usage(store: &Store) -> anyhow::Result<()> {
    let usage = store.blobs().usage().await?;
    let mut out = table(&["WHAT", "BLOBS", "SIZE"]);
    for (folder, (count, bytes)) in &usage.folders {
        out.add_row([folder.clone(), count.to_string(), size(*bytes)]);
    }
    let database: u64 = ["tunesmith.db", "tunesmith.db-wal"]
        .iter()
        .filter_map(|name| std::fs::metadata(store.data_dir().join(name)).ok())
        .map(|meta| meta.len())
        .sum();
    out.add_row(["database".to_owned(), String::new(), size(database)]);
    out.add_row(["all".to_owned(), String::new(), size(usage.bytes + database)]);
    say!("{out}");
    Ok(())
}

/// What its owner may decide to delete; nothing of it goes by itself.
async fn print_removable(store: &Store) -> anyhow::Result<()> {
    let filter = JobFilter { states: vec![JobState::Failed, JobState::Cancelled, JobState::Succeeded], ..JobFilter::default() };
    let mut query = PageQuery { limit: 100, ..PageQuery::default() };
    let mut out = table(&["JOB", "STATE", "CHECKPOINTS"]);
    let mut any = false;
    loop {
        let page = store.list_jobs(&query, &filter).await?;
        for job in &page.items {
            let kept = store.checkpoints(job.id).await?.iter().filter(|c| c.has_model || c.has_state).count();
            if kept > 0 {
                any = true;
                out.add_row([job.id.to_string(), job.state.to_string(), kept.to_string()]);
            }
        }
        query.after = page.items.last().map(|job| job.id);
        if !page.has_more {
            break;
        }
    }
    if any {
        say!("\nfinished jobs that still hold checkpoints; `tunesmith jobs delete ID` frees them and keeps the model:\n{out}");
    }
    Ok(())
}
