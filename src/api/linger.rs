//! Goes on reading a body for a moment after an early answer.
//!
//! A connection that is closed on unread bytes is reset, and many clients then never see why their request was refused
//! (413, 401, 415). So the outermost layer wraps every body: one that is dropped before its end is drained in the
//! background, for a bounded time, while the answer is already on its way.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use futures::StreamExt;

/// How long a refused body is still read. What a client sends after that is cut off.
const MOMENT: Duration = Duration::from_secs(2);

/// Wraps a request's body.
pub async fn wrap(request: Request) -> Request {
    request.map(|body| Body::new(Lingering { body: Some(body) }))
}

struct Lingering {
    /// Taken when it is dropped.
    body: Option<Body>,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        // Outside a runtime the process is about to end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(MOMENT, drain(body)));
        }
    }
}

async fn drain(body: Body) {
    let mut bytes = body.into_data_stream();
    while let Some(Ok(_)) = bytes.next().await {}
}
