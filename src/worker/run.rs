//! A worker process: it claims a job, trains it, and claims the next, until it is told to stop.
//!
//! SIGTERM, and for a supervised worker the end of its standard input, mean: write a checkpoint, give the job back, end.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tunesmith_hub::{Hub, HubConfig};
use tunesmith_store::{Claim, Store, SystemClock};

use super::job::{Machine, work};
use crate::config::{Config, ConfigFlags};

/// How often an idle worker asks for a job.
const IDLE: Duration = Duration::from_millis(200);

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Set by `serve`: the name under which this worker holds jobs; it ends when its standard input closes
    #[arg(long, hide = true)]
    owner: Option<String>,
}

/// Works until a signal ends it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    crate::logging::start(&config.log).map_err(anyhow::Error::msg)?;
    config.device.supported().map_err(anyhow::Error::msg)?;
    anyhow::ensure!(
        config.data_dir.is_dir(),
        "there is no data folder {}; name the server's with --data-dir, and start `tunesmith serve` first",
        config.data_dir.display()
    );
    // The server answers first; training takes what is left.
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "the priority stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve_queue(config, args.owner.clone()));
    runtime.shutdown_timeout(Duration::from_millis(500));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve_queue(config: Config, supervised_as: Option<String>) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;
    if supervised_as.is_some() {
        tokio::spawn(stop_with_parent(stop.clone()));
    }
    let owner = supervised_as.unwrap_or_else(|| format!("worker:{}:{}", std::process::id(), uuid::Uuid::now_v7().simple()));
    let store = Store::open(&config.data_dir, Arc::new(SystemClock::new())).await?;
    let threads = config.threads_of_a_worker();
    let machine = Machine {
        hub: Arc::new(Hub::new(HubConfig::from_env())?),
        pool: Arc::new(tunesmith_ops::threads::build_pool(threads)?),
        threads,
        store: store.clone(),
        config: Arc::new(config),
        stop: stop.clone(),
    };
    let claim = Claim { owner, memory_budget: Some(i64::try_from(machine.config.jobs_bytes()).unwrap_or(i64::MAX)) };
    tracing::info!(owner = claim.owner, threads, "waiting for jobs");
    while !stop.is_cancelled() {
        match store.claim(&claim).await {
            Ok(Some((lease, job))) => work(&machine, lease, job).await,
            Ok(None) => pause(&stop).await,
            Err(error) => {
                tracing::error!(%error, "the queue cannot be read");
                pause(&stop).await;
            }
        }
    }
    store.close().await;
    Ok(())
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(IDLE) => {}
        () = stop.cancelled() => {}
    }
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// The server holds the other end of standard input: when it is gone, however it went, there is nobody to work for.
async fn stop_with_parent(stop: CancellationToken) {
    let mut stdin = tokio::io::stdin();
    let mut nothing = [0; 64];
    while matches!(stdin.read(&mut nothing).await, Ok(n) if n > 0) {}
    stop.cancel();
}
