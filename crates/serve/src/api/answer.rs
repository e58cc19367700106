//! Answers a request with all pictures together, with a stream of events, or with a log of events.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tessera_model::{Event, Picture};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::image_request::{Delivery, Format, Shown};
use super::{ApiError, ImageRequest, Kind};
use crate::App;
use crate::client::{Client, LOOK};
use crate::engine::{JobHandle, Refused};
use crate::event_log::EventLog;
use crate::limits::WRITE_TIMEOUT;

/// The size of the pieces in which a large answer is sent. If the client does not read a piece in
/// time, the rest is dropped.
const PIECE_BYTES: usize = 64 * 1024;
/// The maximum number of events that wait for a client.
const WAITING_EVENTS: usize = 4;
/// The comment that a stream sends when nothing has happened for [`SILENCE`].
const STILL_THERE: &[u8] = b": still there\n\n";
/// The maximum time in which a stream sends nothing.
const SILENCE: Duration = Duration::from_secs(10);

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        match refused {
            Refused::Busy => ApiError::busy("Too many requests are waiting: try again in a moment."),
            Refused::Stopped => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "The server is stopping.")
            }
            Refused::Invalid(message) => {
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", format!("{message}."))
            }
            Refused::Failed(message) => ApiError::ours(format!("Drawing failed: {message}.")),
        }
    }
}

/// Draws the pictures of a request and answers in the form that it asks for. `asked` is the head of
/// the HTTP request.
pub async fn answer(
    app: &Arc<App>,
    image_request: ImageRequest,
    asked: &Parts,
) -> Result<Response, ApiError> {
    let tokens = match image_request.delivery {
        Delivery::Whole => false,
        Delivery::Stream(shown) | Delivery::Log(shown) => shown.tokens,
    };
    let handle = app.engine.draw(image_request.request.clone(), tokens)?;
    let base = app.public_url.clone().unwrap_or_else(|| host(&asked.headers));
    let unknown_words = json!(app.tessera.unknown_words(&image_request.request.prompt));
    let responder = Responder { app: app.clone(), image_request, base, unknown_words };
    match responder.image_request.delivery {
        Delivery::Whole => responder.whole(handle).await,
        Delivery::Stream(shown) => Ok(responder.stream(handle, shown, asked.extensions.get().cloned())),
        Delivery::Log(shown) => responder.log(handle, shown),
    }
}

/// Returns the URL of the server as the client knows it.
fn host(headers: &HeaderMap) -> String {
    let value_of = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = value_of("x-forwarded-proto").filter(|scheme| *scheme == "https").unwrap_or("http");
    format!("{scheme}://{}", value_of("host").unwrap_or("localhost"))
}

/// Turns the events of a request into its answer.
struct Responder {
    app: Arc<App>,
    image_request: ImageRequest,
    /// The URL of the server as the client knows it.
    base: String,
    /// The words of the prompt that are not in the model's training captions; null if the model
    /// file does not list the words of the captions.
    unknown_words: Value,
}

impl Responder {
    async fn whole(self, mut handle: JobHandle) -> Result<Response, ApiError> {
        let mut data = Vec::new();
        while let Some(event) = handle.next().await {
            if let Event::Picture(picture) = event? {
                data.push(self.picture(&picture)?);
            }
        }
        let size = self.image_request.style.size;
        let answer = json!({
            "created": now(),
            "data": data,
            "model": self.app.model.id,
            "size": format!("{size}x{size}"),
            "output_format": self.image_request.style.encoding.name(),
            "background": "opaque",
            "usage": self.usage(),
        });
        let bytes = Bytes::from(answer.to_string());
        let headers = [
            (header::CONTENT_TYPE, "application/json".to_string()),
            (header::CONTENT_LENGTH, bytes.len().to_string()),
        ];
        Ok((headers, in_pieces(bytes)).into_response())
    }

    /// Returns the entry of a finished picture in an answer.
    fn picture(&self, picture: &Picture) -> Result<Value, ApiError> {
        let file = self.file(picture)?;
        let parameters = &self.image_request.style.parameters;
        let mut entry = json!({
            "prompt": parameters.asked[0],
            "revised_prompt": parameters.prompts[0],
            "truncated": self.image_request.truncated,
            "unknown_words": self.unknown_words,
            "seed": parameters.seed,
            "index": picture.index,
            "score": picture.score,
        });
        match self.image_request.format {
            Format::Base64 => entry["b64_json"] = STANDARD.encode(file).into(),
            Format::Url => {
                let name = self.app.image_store.keep(file, self.image_request.style.encoding.name());
                entry["url"] = format!("{}/v1/pictures/{name}", self.base).into();
            }
        }
        Ok(entry)
    }

    fn file(&self, picture: &Picture) -> Result<Vec<u8>, ApiError> {
        self.image_request.style.file(picture).map_err(|error| ApiError::ours(format!("{error:#}.")))
    }

    fn usage(&self) -> Value {
        let read = self.app.tessera.read_prompt(&self.image_request.request.prompt);
        let text = read.map_or(0, |read| read.tokens.len());
        let given = self.image_request.request.given.iter().flatten().count();
        let drawn = self.image_request.request.n * self.app.model.grid.pow(2);
        json!({
            "input_tokens": text + given,
            "output_tokens": drawn,
            "total_tokens": text + given + drawn,
            "input_tokens_details": { "text_tokens": text, "image_tokens": given },
        })
    }

    fn stream(self, handle: JobHandle, shown: Shown, client: Option<Client>) -> Response {
        let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
        tokio::spawn(async move {
            let listener = Listener::Client(sender.clone());
            // If the client has disconnected, the handle is dropped, which cancels the request.
            tokio::select! {
                () = self.send_events(handle, shown, &listener) => {}
                () = sender.closed() => {}
                () = probe(client, &listener) => {}
            }
        });
        events_response(receiver)
    }

    fn log(self, handle: JobHandle, shown: Shown) -> Result<Response, ApiError> {
        let log = self.app.events.start().ok_or(Refused::Busy)?;
        let id = log.id.clone();
        let base = self.app.public_url.clone().unwrap_or_default();
        let task = tokio::spawn({
            let log = log.clone();
            async move {
                self.send_events(handle, shown, &Listener::Log(log.clone())).await;
                log.finish();
            }
        });
        log.written_by(task.abort_handle());
        let body = json!({ "id": id, "status": "queued", "events": format!("{base}/v1/events/{id}") });
        Ok((StatusCode::ACCEPTED, Json(body)).into_response())
    }

    /// Sends all events, frame by frame, until the last one or until the client disconnects.
    async fn send_events(&self, mut handle: JobHandle, shown: Shown, listener: &Listener) {
        let mut progress = Progress::new(shown, self.app.model.grid);
        let mut frames = if shown.tokens { vec![self.started()] } else { Vec::new() };
        loop {
            for frame in frames {
                if !listener.send(frame).await {
                    return;
                }
            }
            let Some(event) = handle.next().await else { return };
            let result = event.map_err(ApiError::from).and_then(|event| self.frames(event, &mut progress));
            // After an error, the handle returns no more events.
            frames = result.unwrap_or_else(|error| vec![frame("error", &error.json())]);
        }
    }

    fn started(&self) -> Bytes {
        let (style, request) = (&self.image_request.style.parameters, &self.image_request.request);
        let data = json!({
            "type": "tessera.started", "n": style.n, "drawn": request.n, "seed": style.seed,
            "prompt": style.asked[0], "revised_prompt": style.prompts[0], "model": self.app.model.id, "given": request.given,
            "strength": request.strength, "truncated": self.image_request.truncated,
            "unknown_words": self.unknown_words,
        });
        frame("tessera.started", &data)
    }

    fn frames(&self, event: Event, progress: &mut Progress) -> Result<Vec<Bytes>, ApiError> {
        match event {
            Event::Tokens { new, done, total } => {
                let new: Vec<[u64; 3]> = new
                    .iter()
                    .map(|token| [token.picture as u64, token.position as u64, u64::from(token.code)])
                    .collect();
                let data = json!({ "type": "tessera.tokens", "done": done, "total": total, "new": new });
                Ok(vec![frame("tessera.tokens", &data)])
            }
            Event::Preview(pictures) => {
                let shown = pictures.iter().filter_map(|picture| Some((progress.partial(picture)?, picture)));
                shown.map(|(at, picture)| self.image_frame("partial_image", picture, Some(at))).collect()
            }
            Event::Picture(picture) => Ok(vec![self.image_frame("completed", &picture, None)?]),
        }
    }

    /// Returns the event of a finished or partial picture, in OpenAI's format.
    fn image_frame(&self, what: &str, picture: &Picture, partial: Option<usize>) -> Result<Bytes, ApiError> {
        let name = match self.image_request.kind {
            Kind::Generation => format!("image_generation.{what}"),
            Kind::Edit | Kind::Variation => format!("image_edit.{what}"),
        };
        let size = self.image_request.style.size;
        let mut data = match partial {
            // Never a URL: the picture would be out of date before a client could fetch it.
            Some(at) => json!({
                "b64_json": STANDARD.encode(self.file(picture)?), "partial_image_index": at, "index": picture.index,
            }),
            None => self.picture(picture)?,
        };
        data["type"] = name.clone().into();
        data["created_at"] = now().into();
        data["size"] = format!("{size}x{size}").into();
        data["output_format"] = self.image_request.style.encoding.name().into();
        data["background"] = "opaque".into();
        if partial.is_none() {
            data["usage"] = self.usage();
        }
        Ok(frame(&name, &data))
    }
}

/// Writes comments to a client that has closed its sending half, because only a failed write shows
/// that it has disconnected. Returns when it has.
async fn probe(client: Option<Client>, listener: &Listener) {
    let Some(client) = client else { return std::future::pending().await };
    client.ended().await;
    while listener.send(Bytes::from_static(STILL_THERE)).await {
        tokio::time::sleep(LOOK).await;
    }
}

/// Decides after which rows a partial picture is sent.
struct Progress {
    shown: Shown,
    grid: usize,
    /// The number of partial pictures that were sent, by candidate.
    n_sent: BTreeMap<usize, usize>,
}

impl Progress {
    fn new(shown: Shown, grid: usize) -> Progress {
        Progress { shown, grid, n_sent: BTreeMap::new() }
    }

    /// Returns the number of this partial picture, from 0, if it is to be sent. Partial pictures
    /// are spread evenly over all rows except the last.
    fn partial(&mut self, picture: &Picture) -> Option<usize> {
        let (row, rows) = (picture.tokens.len() / self.grid, self.grid - 1);
        let wanted = self.shown.partial_images.min(rows);
        let due = |row: usize| row * wanted / rows;
        if due(row) == due(row - 1) {
            return None;
        }
        let n_sent = self.n_sent.entry(picture.index).or_default();
        *n_sent += 1;
        Some(*n_sent - 1)
    }
}

/// The receiver of events.
enum Listener {
    /// A connected client.
    Client(mpsc::Sender<Frame>),
    /// A log that clients read later.
    Log(Arc<EventLog>),
}

type Frame = Result<Bytes, Infallible>;

impl Listener {
    /// Sends a frame. Returns whether the receiver still accepts frames.
    async fn send(&self, frame: Bytes) -> bool {
        match self {
            Listener::Client(client) => {
                matches!(tokio::time::timeout(WRITE_TIMEOUT, client.send(Ok(frame))).await, Ok(Ok(())))
            }
            Listener::Log(log) => {
                log.push(frame);
                true
            }
        }
    }
}

/// Returns a stream of the events of a log, from frame `from` on.
pub fn watch(log: Arc<EventLog>, from: usize) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
    tokio::spawn(async move {
        let client = Listener::Client(sender);
        for at in from.. {
            let Some(frame) = log.frame(at).await else { return };
            // A browser that reconnects sends the last number back as Last-Event-ID.
            let frame = Bytes::from([format!("id: {}\n", at + 1).as_bytes(), &frame].concat());
            if !client.send(frame).await {
                return;
            }
        }
    });
    events_response(receiver)
}

fn frame(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

fn events_response(frames: mpsc::Receiver<Frame>) -> Response {
    // Between events, comments keep the connection open.
    let silent = tokio::time::interval_at(tokio::time::Instant::now() + SILENCE, SILENCE);
    let frames = ReceiverStream::new(frames).timeout_repeating(silent);
    let body = Body::from_stream(frames.map(|frame| frame.unwrap_or(Ok(Bytes::from_static(STILL_THERE)))));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

/// Returns a body that is sent in pieces, so that it does not stay in memory if the client reads
/// nothing.
fn in_pieces(bytes: Bytes) -> Body {
    if bytes.len() <= PIECE_BYTES {
        return Body::from(bytes);
    }
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let client = Listener::Client(sender);
        for start in (0..bytes.len()).step_by(PIECE_BYTES) {
            if !client.send(bytes.slice(start..bytes.len().min(start + PIECE_BYTES))).await {
                return;
            }
        }
    });
    Body::from_stream(ReceiverStream::new(receiver))
}

/// Returns the seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
