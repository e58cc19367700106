//! A server for people and programs: a page to draw on, and the image API that OpenAI's clients speak.
//!
//! One worker ([`engine`]) draws all requests together; everything else only reads requests and writes answers. A request is read
//! in [`api`], handed to the worker, and its events become one JSON answer, a stream, or a log that is watched.

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

/// What a server is started with.
pub struct Options {
    /// The model that draws.
    pub tessera: Tessera,
    /// What people are told of it.
    pub about: About,
    /// Who may draw; anyone if absent.
    pub keys: Option<Keys>,
    /// Rows of the decoder that step together; [`Options::ROWS`] is fastest.
    pub rows: usize,
    /// The address at which clients reach the server, of [`public_url`]; that of each request if absent.
    pub public_url: Option<String>,
    /// Other sites whose pages may have the server draw.
    pub origins: Vec<Origin>,
}

impl Options {
    /// Rows of the decoder that step together unless told otherwise.
    pub const ROWS: usize = Batch::ROWS;

    /// A server for anyone who reaches it.
    pub fn new(tessera: Tessera, about: About) -> Options {
        Options { tessera, about, keys: None, rows: Options::ROWS, public_url: None, origins: Vec::new() }
    }
}

/// What all requests share.
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

/// A server that listens, but does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Starts the worker and listens at `address`, a host's name or number and a port; port 0 is any free one.
    ///
    /// # Errors
    /// If the address is taken or not this machine's.
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

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Answers until `stop` comes, then finishes what is under way, within [`limits::STOP_TIMEOUT`].
    pub async fn run(self, stop: impl Future<Output = ()>) {
        connections::serve(self.listener, api::router(self.app.clone()), stop).await;
        let engine = self.app.engine.clone();
        // The worker may be in the middle of a step.
        let _ = tokio::task::spawn_blocking(move || engine.stop()).await;
    }
}
