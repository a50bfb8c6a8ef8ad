//! The accept loop: each connection is served by hyper, with a limit on how long a request's head may take.
//!
//! `cli/serve.rs` runs it. axum's own loop sets no such limit, so that clients who never finish a head could hold every
//! file descriptor.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long the loop rests when the system has no file descriptor left.
const REST: Duration = Duration::from_millis(200);

/// Serves until `shutdown`, then waits for the requests that still run. A connection that sends no whole head for
/// `head_limit` is closed, an idle one too.
pub async fn serve(listener: TcpListener, app: Router, head_limit: Duration, shutdown: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_limit);
    let running = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((connection, _)) => {
                let served = http.serve_connection(io(connection), service(app.clone()));
                let served = running.watch(served);
                tokio::spawn(async move {
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "a connection ended early");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(REST).await;
            }
        }
    }
    drop(listener);
    running.shutdown().await;
}

fn io(connection: TcpStream) -> TokioIo<TcpStream> {
    // Events and small answers go out at once, and not when the last packet was acknowledged.
    if let Err(error) = connection.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's delay");
    }
    TokioIo::new(connection)
}

fn service(
    app: Router,
) -> impl hyper::service::Service<hyper::Request<Incoming>, Response = axum::response::Response, Error = Infallible, Future: Send> {
    hyper::service::service_fn(move |request: Request<Incoming>| app.clone().oneshot(request.map(Body::new)))
}
