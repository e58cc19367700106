//! The engine: one worker thread that owns the model and draws all requests in one batch. Its queue
//! is bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use tessera_base::Fault;
use tessera_model::{Batch, Event, Request, Tessera};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::limits::{PENDING_JOBS, PENDING_PICTURES};
use crate::metrics::Metrics;

/// Why a request was not accepted or not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The queue is full.
    Busy,
    /// The server is stopping, or its worker has failed.
    Stopped,
    /// The request is invalid.
    Invalid(String),
    /// The program or the machine has failed.
    Failed(String),
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Refused {
        let message = format!("{error:#}");
        match Fault::of(&error) {
            Fault::Request => Refused::Invalid(message),
            Fault::Program | Fault::Machine => Refused::Failed(message),
        }
    }
}

/// Sends the events of a request to its client. The channel closes after the last event.
type Events = UnboundedSender<Result<Event, Refused>>;

/// The client that waits for a request.
struct Client {
    id: u64,
    /// The number of pictures that are still to be sent.
    awaited: usize,
    /// Whether the client gets the events of sampled tokens.
    tokens: bool,
    events: Events,
}

enum Order {
    Draw(Box<Request>, Client),
    Cancel(u64),
    Stop,
}

/// A handle to the worker.
pub struct Engine {
    orders: Mutex<Sender<Order>>,
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
    next: AtomicUsize,
}

struct Shared {
    jobs: AtomicUsize,
    pictures: AtomicUsize,
    alive: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// Starts the worker. Its batch has at most `rows` rows.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(tessera: Arc<Tessera>, rows: usize, metrics: Arc<Metrics>) -> Result<Engine> {
        let (sender, orders) = channel();
        let shared = Arc::new(Shared {
            jobs: AtomicUsize::new(0),
            pictures: AtomicUsize::new(0),
            alive: AtomicBool::new(true),
            metrics,
        });
        let worker = thread::Builder::new().name("drawing".into()).spawn({
            let shared = shared.clone();
            move || {
                // The server must know when the worker ends, even by a panic.
                let drawing = std::panic::AssertUnwindSafe(|| work(&tessera, rows, &orders, &shared));
                if std::panic::catch_unwind(drawing).is_err() {
                    tracing::error!("the worker has failed");
                }
                shared.alive.store(false, Ordering::SeqCst);
            }
        });
        let worker = Mutex::new(Some(worker.context("cannot start the worker")?));
        Ok(Engine { orders: Mutex::new(sender), shared, worker, next: AtomicUsize::new(1) })
    }

    /// Whether the worker is running.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::SeqCst)
    }

    /// The number of requests that are being drawn or waiting.
    pub fn pending(&self) -> usize {
        self.shared.jobs.load(Ordering::SeqCst)
    }

    /// Passes a request to the worker. Its events include sampled tokens only with `tokens`.
    ///
    /// # Errors
    /// If the queue is full or the worker has ended.
    pub fn draw(self: &Arc<Engine>, request: Request, tokens: bool) -> Result<JobHandle, Refused> {
        let (pictures, awaited) = (request.n, awaited(&request));
        let reserved = Reserved::new(&self.shared, pictures)?;
        let (events, receiver) = unbounded_channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed) as u64;
        self.order(Order::Draw(Box::new(request), Client { id, awaited, tokens, events }))?;
        Ok(JobHandle { engine: self.clone(), id, events: receiver, awaited, _reserved: reserved })
    }

    /// Stops the worker without finishing pending jobs, and joins it.
    pub fn stop(&self) {
        let _ = self.order(Order::Stop);
        if let Some(worker) = self.worker.lock().ok().and_then(|mut worker| worker.take()) {
            let _ = worker.join();
        }
    }

    fn order(&self, order: Order) -> Result<(), Refused> {
        if !self.is_alive() {
            return Err(Refused::Stopped);
        }
        let orders = self.orders.lock().map_err(|_| Refused::Stopped)?;
        orders.send(order).map_err(|_| Refused::Stopped)
    }
}

/// A place in the queue, which is free again when this is dropped.
struct Reserved {
    shared: Arc<Shared>,
    pictures: usize,
}

impl Reserved {
    fn new(shared: &Arc<Shared>, pictures: usize) -> Result<Reserved, Refused> {
        let jobs = shared.jobs.fetch_add(1, Ordering::SeqCst);
        let waiting = shared.pictures.fetch_add(pictures, Ordering::SeqCst);
        // If the request is refused below, dropping this frees the place again.
        let reserved = Reserved { shared: shared.clone(), pictures };
        shared.metrics.pending.set(shared.jobs.load(Ordering::SeqCst) as i64);
        match jobs >= PENDING_JOBS || waiting + pictures > PENDING_PICTURES {
            true => Err(Refused::Busy),
            false => Ok(reserved),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let jobs = self.shared.jobs.fetch_sub(1, Ordering::SeqCst) - 1;
        self.shared.pictures.fetch_sub(self.pictures, Ordering::SeqCst);
        self.shared.metrics.pending.set(jobs as i64);
    }
}

/// A request that is being drawn or waiting. Dropping it before its end cancels the request.
pub struct JobHandle {
    engine: Arc<Engine>,
    id: u64,
    events: UnboundedReceiver<Result<Event, Refused>>,
    /// The number of pictures that are still to come; 0 after an error.
    awaited: usize,
    _reserved: Reserved,
}

impl JobHandle {
    /// Waits for the next event. Returns `None` after the last picture or an error.
    pub async fn next(&mut self) -> Option<Result<Event, Refused>> {
        if self.awaited == 0 {
            return None;
        }
        // If the worker ends before the last picture, the channel closes.
        let event = self.events.recv().await.unwrap_or(Err(Refused::Stopped));
        match &event {
            Ok(Event::Picture(_)) => self.awaited -= 1,
            Ok(_) => {}
            Err(_) => self.awaited = 0,
        }
        Some(event)
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if self.awaited > 0 {
            let _ = self.engine.order(Order::Cancel(self.id));
        }
    }
}

fn work(tessera: &Tessera, rows: usize, orders: &Receiver<Order>, shared: &Shared) {
    let mut batch = tessera.batch(rows);
    let mut clients: BTreeMap<u64, Client> = BTreeMap::new(); // by job number
    loop {
        loop {
            let order = match batch.is_empty() {
                true => orders.recv().map_err(|_| TryRecvError::Disconnected),
                false => orders.try_recv(),
            };
            match order {
                Ok(Order::Draw(request, client)) => {
                    clients.extend(accept(tessera, &mut batch, *request, client));
                }
                Ok(Order::Cancel(id)) => {
                    for (job, _) in clients.extract_if(.., |_, client| client.id == id) {
                        shared.metrics.cancelled.inc();
                        batch.remove(job);
                    }
                }
                Err(TryRecvError::Empty) => break,
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return,
            }
        }
        match batch.step() {
            Ok(events) => {
                shared.metrics.steps.inc();
                shared.metrics.drawn_together.observe(batch.active() as f64);
                deliver(&mut batch, &mut clients, events, &shared.metrics);
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "drawing failed");
                batch.clear();
                for client in std::mem::take(&mut clients).into_values() {
                    let _ = client.events.send(Err(Refused::Failed(format!("{error:#}"))));
                }
            }
        }
    }
}

/// Adds a request to the batch and returns its job number and its client. If the request is
/// invalid, the client gets the error immediately.
fn accept<'a>(
    tessera: &'a Tessera,
    batch: &mut Batch<'a>,
    request: Request,
    client: Client,
) -> Option<(u64, Client)> {
    match tessera.job(request).and_then(|job| batch.add(job)) {
        Ok(job) => Some((job, client)),
        Err(error) => {
            let _ = client.events.send(Err(Refused::from(error)));
            None
        }
    }
}

fn deliver(
    batch: &mut Batch,
    clients: &mut BTreeMap<u64, Client>,
    events: Vec<(u64, Event)>,
    metrics: &Metrics,
) {
    for (job, event) in events {
        let Some(client) = clients.get_mut(&job) else { continue };
        let is_wanted = match &event {
            Event::Tokens { new, .. } => {
                metrics.tokens.inc_by(new.len() as u64);
                client.tokens
            }
            Event::Picture(_) => {
                metrics.pictures.inc();
                client.awaited -= 1;
                true
            }
            Event::Preview(_) => true,
        };
        let left = is_wanted && client.events.send(Ok(event)).is_err();
        if left {
            metrics.cancelled.inc();
            batch.remove(job);
        }
        // Dropping the client closes its channel.
        if left || client.awaited == 0 {
            clients.remove(&job);
        }
    }
}

/// The number of pictures that a request returns.
fn awaited(request: &Request) -> usize {
    request.best.unwrap_or(request.n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_client_gets_an_error_when_the_worker_stops() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let tessera = Arc::new(Tessera::embedded().unwrap());
        let engine = Arc::new(Engine::start(tessera, 4, metrics).unwrap());
        let request = Request { prompt: "a cat".into(), n: 64, previews: false, ..Request::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut handle = engine.draw(request.clone(), true).unwrap();
            assert!(matches!(handle.next().await, Some(Ok(Event::Tokens { .. }))));
            engine.stop();
            let mut pictures = 0;
            let end = loop {
                match handle.next().await {
                    Some(Ok(Event::Picture(_))) => pictures += 1,
                    Some(Ok(_)) => {}
                    other => break other,
                }
            };
            assert!(matches!(end, Some(Err(Refused::Stopped))) && pictures < 64, "{pictures} pictures");
            assert!(handle.next().await.is_none());
        });
        assert!(!engine.is_alive() && engine.draw(request, false).is_err());
        assert_eq!(engine.pending(), 0);
    }
}
