//! Accepts connections, limits their number and their time, and closes them when the server stops.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::client::Client;
use crate::limits::{CONNECTIONS, HEAD_TIMEOUT, IDLE_TIMEOUT, STOP_TIMEOUT};

/// Serves connections until `stop` completes. Current requests are then finished within
/// [`STOP_TIMEOUT`].
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let open = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let place = room.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => (place, stream),
                Err(error) => {
                    // The likely cause is too many open files, until connections close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let client = client(stream);
        let connection = open.watch(connection(client.clone(), router.clone()));
        tokio::spawn(async move {
            // A client that disconnects or is too slow ends only its own connection.
            tokio::select! {
                _ = connection => {}
                () = client.has_not_asked_after(HEAD_TIMEOUT) => {}
            }
            drop(place);
        });
    }
    drop(listener);
    tracing::info!("stopping after the current requests are finished");
    if tokio::time::timeout(STOP_TIMEOUT, open.shutdown()).await.is_err() {
        tracing::warn!("stopped before all requests were finished");
    }
}

fn client(stream: TcpStream) -> Client {
    // Small events should be sent immediately.
    let _ = stream.set_nodelay(true);
    Client::new(stream)
}

fn connection(client: Client, router: Router) -> http1::Connection<TokioIo<Client>, Answers> {
    let answers = Answers { client: client.clone(), router: TowerToHyperService::new(router) };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        // `Client::left` finds out whether a client that closes its sending half has disconnected.
        .half_close(true)
        .serve_connection(TokioIo::new(client), answers)
}

/// The service of one connection. It adds the client to each request.
struct Answers {
    client: Client,
    router: TowerToHyperService<Router>,
}

impl hyper::service::Service<Request<Incoming>> for Answers {
    type Response = Response;
    type Error = Infallible;
    type Future = TowerToHyperServiceFuture<Router, Request<Incoming>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.client.has_asked();
        request.extensions_mut().insert(self.client.clone());
        self.router.call(request)
    }
}
