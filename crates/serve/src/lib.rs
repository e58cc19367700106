//! The HTTP server: a web page for people, and an API for programs that is compatible with OpenAI's
//! image API.
//!
//! One worker ([`engine`]) draws all requests in one batch; all other code only reads requests and
//! writes answers. [`api`] reads a request and passes it to the worker. The events of the request
//! become one JSON answer, a stream, or a log that clients can read later.

#![forbid(unsafe_code)]

mod access;
mod api;
mod client;
mod connections;
mod engine;
mod event_log;
mod image_store;
pub mod limits;
mod metrics;
mod model;
mod origins;
mod page;
mod picture;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use tessera_model::{Batch, Tessera};
use tokio::net::TcpListener;

pub use access::Keys;
pub use api::ROUTES;
pub use model::About;
pub use origins::{Origin, public_url};

use engine::Engine;
use event_log::EventLogs;
use image_store::ImageStore;
use metrics::Metrics;
use model::Model;
use origins::Origins;

/// The settings of a server.
pub struct Options {
    /// The model that draws.
    pub tessera: Tessera,
    /// The description of the model for users.
    pub about: About,
    /// The API keys that are accepted. If absent, no key is required.
    pub keys: Option<Keys>,
    /// The maximum batch size in rows of the sampler; [`Options::ROWS`] is fastest.
    pub rows: usize,
    /// The URL at which clients reach the server, checked by [`public_url`]. If absent, the host of
    /// each request is used.
    pub public_url: Option<String>,
    /// Other sites whose pages may use the server.
    pub origins: Vec<Origin>,
}

impl Options {
    /// The default of [`Options::rows`].
    pub const ROWS: usize = Batch::ROWS;

    /// Returns the default settings: no key is required, and pages of other sites are refused.
    pub fn new(tessera: Tessera, about: About) -> Options {
        Options { tessera, about, keys: None, rows: Options::ROWS, public_url: None, origins: Vec::new() }
    }
}

/// The state that all requests share.
struct App {
    tessera: Arc<Tessera>,
    model: Model,
    keys: Option<Keys>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    image_store: ImageStore,
    events: Arc<EventLogs>,
    limits: api::Limits,
    public_url: Option<String>,
    origins: Origins,
}

/// A server that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Starts the worker and listens at `address`: a host name or IP address, and a port. Port 0
    /// selects any free port.
    ///
    /// # Errors
    /// If the address is in use or does not belong to this machine.
    pub async fn bind(address: &str, options: Options) -> Result<Server> {
        let wanted = "wanted HOST:PORT of this machine, such as 127.0.0.1:8080";
        let listener = TcpListener::bind(address).await;
        let listener = listener
            .with_context(|| format!("cannot listen at {address}; choose another --bind, {wanted}"))?;
        let metrics = Arc::new(Metrics::new()?);
        let tessera = Arc::new(options.tessera);
        let app = App {
            model: Model::new(&tessera, options.about),
            engine: Arc::new(Engine::start(tessera.clone(), options.rows, metrics.clone())?),
            tessera,
            keys: options.keys,
            metrics,
            image_store: ImageStore::default(),
            events: Arc::default(),
            limits: api::Limits::default(),
            public_url: options.public_url,
            origins: Origins::new(options.origins),
        };
        Ok(Server { listener, app: Arc::new(app) })
    }

    /// Returns the address that the server listens at.
    ///
    /// # Errors
    /// If the operating system does not return it.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers requests until `stop` completes. Then it finishes the current requests, within
    /// [`limits::STOP_TIMEOUT`].
    pub async fn run(self, stop: impl Future<Output = ()>) {
        connections::serve(self.listener, api::router(self.app.clone()), stop).await;
        let engine = self.app.engine.clone();
        // This blocks until the worker has finished its current step.
        let _ = tokio::task::spawn_blocking(move || engine.stop()).await;
    }
}
