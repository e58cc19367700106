//! Connections: how many, for how long, and how they end.

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

/// Answers until `stop` comes; what is under way then is finished, unless it takes too long.
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
                    // Too many open files, most likely: it passes when connections close.
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
            // A client that leaves or is too slow ends its own connection and nothing else.
            tokio::select! {
                _ = connection => {}
                () = client.has_not_asked_after(HEAD_TIMEOUT) => {}
            }
            drop(place);
        });
    }
    drop(listener);
    tracing::info!("stopping; what is under way is finished");
    if tokio::time::timeout(STOP_TIMEOUT, open.shutdown()).await.is_err() {
        tracing::warn!("not everything was finished in time");
    }
}

fn client(stream: TcpStream) -> Client {
    // Small events should go out at once.
    let _ = stream.set_nodelay(true);
    Client::new(stream)
}

fn connection(client: Client, router: Router) -> http1::Connection<TokioIo<Client>, Answers> {
    let answers = Answers { client: client.clone(), router: TowerToHyperService::new(router) };
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        // Whether a client that ends its half has left is seen by `Client::left`.
        .half_close(true)
        .serve_connection(TokioIo::new(client), answers)
}

/// What answers the requests of one connection, each of which knows its client.
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
