//! The client of a connection: its socket, and whether it still waits for an answer.
//!
//! A client may end its half of a connection once it has asked, and still read the answer. One that has left looks the same from
//! here, until something is written to it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How often a connection is looked at that its client has half closed.
pub const LOOK: Duration = Duration::from_millis(250);
/// An answer that says nothing, which every client of HTTP/1.1 must be ready for.
const GO_ON_WAITING: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A connection's client, shared by the connection and the requests that come on it.
#[derive(Clone)]
pub struct Client(Arc<Socket>);

struct Socket {
    stream: TcpStream,
    /// Whether a request has come.
    asked: AtomicBool,
    /// Whether something is written that the client has not taken yet.
    stuck: AtomicBool,
}

impl Client {
    pub fn new(stream: TcpStream) -> Client {
        Client(Arc::new(Socket { stream, asked: AtomicBool::new(false), stuck: AtomicBool::new(false) }))
    }

    /// Notes that the head of a request has come.
    pub fn has_asked(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
    }

    /// Waits for `time`, and for ever if a request has come by then.
    pub async fn has_not_asked_after(&self, time: Duration) {
        tokio::time::sleep(time).await;
        if self.0.asked.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    /// Waits until the client sends no more.
    pub async fn ended(&self) {
        // Bytes that nobody has read yet hide the end.
        while self.0.stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the client has left, while no part of an answer to its request of this `version` is written.
    pub async fn left(&self, version: Version) {
        self.ended().await;
        // Whatever came before it should be on its way.
        tokio::time::sleep(LOOK).await;
        if version < Version::HTTP_11 || self.0.stuck.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if self.0.stream.try_write(GO_ON_WAITING).is_err() {
            return;
        }
        // Who has left refuses what was written.
        while self.0.stream.take_error().is_ok_and(|error| error.is_none()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Writes as soon as something can be taken.
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

    /// The last owner of the socket closes it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
