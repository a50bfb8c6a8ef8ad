//! `tunesmith serve`: the server process, from the lock on the data folder to a clean end.
//!
//! Prints one line to standard output when it can be reached. SIGTERM and SIGINT end it within ten seconds: event streams
//! end, running requests finish, workers write a checkpoint.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tunesmith_hub::{Hub, HubConfig};
use tunesmith_store::{DataLock, Store, SystemClock};

use crate::api::{self, AppState};
use crate::config::{Config, ConfigFlags};
use crate::serve::Registry;
use crate::worker::Supervisor;

/// How long requests may go on after the signal, while the workers write their checkpoints.
const GRACE: Duration = Duration::from_secs(5);

/// Flags of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
}

/// Serves until a signal ends it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    crate::logging::start(&config.log).map_err(anyhow::Error::msg)?;
    config.device.supported().map_err(anyhow::Error::msg)?;
    let addresses = config.addresses()?;
    for name in &config.unknown_environment {
        tracing::warn!(name, "no setting of that name");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(config, &addresses));
    // Parsing that still runs is of no use to anybody any more.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: Config, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    let lock = DataLock::acquire(&config.data_dir)?;
    let store = Store::open(&config.data_dir, Arc::new(SystemClock::new())).await?;
    // Clears the scratch folder too, but for what workers that were started by hand have there right now.
    let swept = store.sweep(&lock).await?;
    tracing::info!(?swept, "the data folder is in order");
    api::responses::fail_abandoned(&store).await?;
    let hub = Arc::new(Hub::new(HubConfig::from_env())?);
    let shutdown = CancellationToken::new();
    let config = Arc::new(config);
    let registry = Registry::new(store.clone(), hub.clone(), config.clone())?;
    let state = AppState::new(config.clone(), store.clone(), hub, registry, shutdown.clone());

    let listener = TcpListener::bind(addresses).await.with_context(|| format!("cannot listen on {}:{}", config.host, config.port))?;
    let address = listener.local_addr()?;
    let signals = tokio::spawn(wait_for_signal(shutdown.clone()));
    let workers = Supervisor::start(store.clone(), config.clone(), shutdown.clone()).await?;
    announce(address);
    let app = api::router(state);
    let head_limit = Duration::from_secs(config.limits.body_idle_seconds);
    let requests = async {
        tokio::select! {
            () = api::serve(listener, app, head_limit, shutdown.clone()) => {}
            () = overtime(&shutdown) => tracing::warn!("requests that still ran were broken off"),
        }
    };
    let ((), ()) = tokio::join!(requests, workers.ended());
    signals.abort();
    store.close().await;
    tracing::info!("ended");
    drop(lock);
    Ok(())
}

/// The one line on standard output: programs that start a server wait for it. Nobody has to listen.
fn announce(address: SocketAddr) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "tunesmith listening on http://{address}").and_then(|()| out.flush()) {
        tracing::warn!(%error, %address, "listening, and standard output is closed");
    }
}

async fn wait_for_signal(shutdown: CancellationToken) {
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("ending");
            shutdown.cancel();
        }
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "signals cannot be heard; the server ends only by kill -9"),
    }
}

/// Resolves when the grace after the shutdown is over.
async fn overtime(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GRACE).await;
}
