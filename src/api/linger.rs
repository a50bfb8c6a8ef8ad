//! Goes on reading a body for a moment after an early answer.
//!
//! A connection that is closed on unread bytes is reset, and many clients then never see why their request was refused
//! (413, 401, 415). So the outermost layer wraps every body: one that is dropped before its end is drained in the
//! background, for a bounded time, while the answer is already on its way.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use futures::{Stream, StreamExt};

/// How long a refused body is still read. What a client sends after that is cut off.
const MOMENT: Duration = Duration::from_secs(2);

/// Wraps a request's body, if it has one.
pub async fn wrap(request: Request) -> Request {
    request.map(|body| match body.is_end_stream() {
        true => body,
        false => Body::from_stream(Lingering { body: Some(body.into_data_stream()) }),
    })
}

/// A body that is taken out when it has ended or failed.
struct Lingering {
    body: Option<BodyDataStream>,
}

impl Stream for Lingering {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let item = body.poll_next_unpin(context);
        if matches!(item, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        item
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        // Outside a runtime the process is about to end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(MOMENT, async move { while let Some(Ok(_)) = body.next().await {} }));
        }
    }
}
