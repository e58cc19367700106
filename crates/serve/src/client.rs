//! The client of a connection: its socket, and whether it still waits for an answer.
//!
//! A client may close its sending half of the connection after the request and still read the
//! answer. To the server, a client that has disconnected looks the same until the server writes
//! something.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The interval at which the server checks a connection that its client has half closed.
pub const LOOK: Duration = Duration::from_millis(250);
/// An answer without content, which every client of HTTP/1.1 must accept.
const GO_ON_WAITING: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The client of a connection, shared by the connection and its requests.
#[derive(Clone)]
pub struct Client(Arc<Socket>);

struct Socket {
    stream: TcpStream,
    /// Whether a request has arrived.
    asked: AtomicBool,
    /// Whether a write waits until the client reads what was sent before.
    stuck: AtomicBool,
}

impl Client {
    /// Creates the client at the other end of `stream`.
    pub fn new(stream: TcpStream) -> Client {
        Client(Arc::new(Socket { stream, asked: AtomicBool::new(false), stuck: AtomicBool::new(false) }))
    }

    /// Records that the head of a request has arrived.
    pub fn has_asked(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
    }

    /// Returns after `time` if no request has arrived by then, and otherwise never.
    pub async fn has_not_asked_after(&self, time: Duration) {
        tokio::time::sleep(time).await;
        if self.0.asked.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    /// Waits until the client has closed its sending half.
    pub async fn ended(&self) {
        // Bytes that are not read yet hide the end.
        while self.0.stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the client has disconnected. No part of the answer to its request of this HTTP
    /// `version` may have been written yet. If the server cannot find out, this never returns.
    pub async fn left(&self, version: Version) {
        self.ended().await;
        // Answers to earlier requests should have been sent by then.
        tokio::time::sleep(LOOK).await;
        if version < Version::HTTP_11 || self.0.stuck.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if self.0.stream.try_write(GO_ON_WAITING).is_err() {
            return;
        }
        // A client that has disconnected answers the written bytes with an error.
        while self.0.stream.take_error().is_ok_and(|error| error.is_none()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Writes as soon as the socket accepts bytes.
    fn poll_with(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let able = self.0.stream.poll_write_ready(context);
            self.0.stuck.store(able.is_pending(), Ordering::Relaxed);
            ready!(able)?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(context))?;
            match self.0.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|_| ())),
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the socket is closed when its last owner is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
