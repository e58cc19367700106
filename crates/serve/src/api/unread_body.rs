//! Reads the rest of a request's body when its answer is known before all of it has arrived.
//!
//! Many clients send the complete body before they read anything. If the server closed the
//! connection earlier, they would get a broken pipe instead of the answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::response::Response;
use hyper::body::Frame;
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::limits::{BODY_TIMEOUT, DRAIN_BYTES, DRAIN_TIMEOUT};

/// The body of a request, shared with the request's handler.
#[derive(Clone)]
pub struct UnreadBody(Arc<Mutex<Shared>>);

struct Shared {
    body: Body,
    /// Whether the client sends the body: immediately, or because it was asked for after
    /// `Expect: 100-continue`.
    coming: bool,
}

impl UnreadBody {
    /// Returns the same request, and a handle to the rest of its body.
    pub fn of(request: Request) -> (Request, UnreadBody) {
        let (parts, body) = request.into_parts();
        let coming = !parts.headers.contains_key(header::EXPECT);
        let rest = UnreadBody(Arc::new(Mutex::new(Shared { body, coming })));
        (Request::from_parts(parts, Body::new(rest.clone())), rest)
    }

    /// Returns the same answer, which ends only when the rest of the request has been read, up to
    /// [`DRAIN_BYTES`].
    pub fn after(self, response: Response) -> Response {
        if !self.0.lock().is_ok_and(|shared| shared.coming && !shared.body.is_end_stream()) {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        // With a known length, the answer would end before that.
        parts.headers.remove(header::CONTENT_LENGTH);
        let rest = tokio_stream::once(()).then(move |()| self.clone().drain());
        let all = body.into_data_stream().chain(rest.filter_map(|()| None));
        Response::from_parts(parts, Body::from_stream(all))
    }

    async fn drain(self) {
        let _ = timeout(BODY_TIMEOUT, async {
            let mut bytes = 0;
            let mut body = Body::new(self).into_data_stream();
            while let Ok(Some(Ok(data))) = timeout(DRAIN_TIMEOUT, body.next()).await {
                bytes += data.len();
                if bytes > DRAIN_BYTES {
                    return;
                }
            }
        })
        .await;
    }
}

impl HttpBody for UnreadBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.0.lock() {
            Ok(mut shared) => {
                shared.coming = true;
                Pin::new(&mut shared.body).poll_frame(context)
            }
            Err(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_ok_and(|shared| shared.body.is_end_stream())
    }
}
