//! The routes: checks access, reads requests, and logs them.

mod answer;
mod error;
mod fields;
mod form_body;
mod image_request;
mod intake;
mod unread_body;
mod upload;

use std::io::Cursor;
use std::sync::Arc;
use std::time::Instant;

use axum::body::to_bytes;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::Semaphore;

pub use error::ApiError;
use fields::{Fields, shortened};
use image_request::ImageRequest;
use intake::{Intake, too_slow};
use unread_body::UnreadBody;

use crate::App;
use crate::client::Client;
use crate::limits::{BODY_TIMEOUT, FORM_BYTES, FORM_PACE, FORMS_AT_ONCE, JSON_BYTES, UPLOADS_AT_ONCE};
use crate::page::{PAGE, POLICY};

/// All routes: path, methods, and whether a key is required if the server has keys. The OpenAPI
/// document describes each of them.
pub const ROUTES: [(&str, &[&str], bool); 12] = [
    ("/", &["GET"], false),
    ("/healthz", &["GET"], false),
    ("/openapi.json", &["GET"], false),
    ("/metrics", &["GET"], true),
    ("/v1/models", &["GET"], true),
    ("/v1/models/{model}", &["GET"], true),
    ("/v1/models/{model}/codes.png", &["GET"], true),
    ("/v1/images/generations", &["POST"], true),
    ("/v1/images/edits", &["POST"], true),
    ("/v1/images/variations", &["POST"], true),
    ("/v1/events/{id}", &["GET", "DELETE"], true),
    // No key: the name cannot be guessed, and web pages and other programs use the URL.
    ("/v1/pictures/{name}", &["GET"], false),
];

/// The three kinds of requests for pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Generation,
    Edit,
    Variation,
}

/// Semaphores for what only a few requests may do at the same time.
pub struct Limits {
    /// Permits to decode and encode an uploaded picture.
    uploads: Semaphore,
    /// Permits to read a large form, called places.
    forms: Semaphore,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { uploads: Semaphore::new(UPLOADS_AT_ONCE), forms: Semaphore::new(FORMS_AT_ONCE) }
    }
}

/// Returns the routes of the page and of the API.
pub fn router(app: Arc<App>) -> Router {
    let origins = app.origins.clone();
    let router = Router::new()
        .route("/", get(page))
        .route("/healthz", get(health))
        .route("/openapi.json", get(openapi))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/models/{model}/codes.png", get(codes))
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/images/variations", post(variations))
        .route("/v1/events/{id}", get(events).delete(stop_events))
        .route("/v1/pictures/{name}", get(picture))
        .fallback(async || {
            ApiError::not_found("There is nothing at this address; /openapi.json lists all addresses.")
        })
        .method_not_allowed_fallback(async || {
            let message = "This address does not support this method; /openapi.json lists its methods.";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(from_fn_with_state(app.clone(), log_and_authorize))
        .with_state(app);
    match origins.is_empty() {
        true => router,
        false => router.layer(origins.layer()),
    }
}

/// Authorizes, times and logs each request.
async fn log_and_authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str()).to_string();
    let method = request.method().clone();
    let (request, unread_body) = UnreadBody::of(request);
    let response = match authorize(&app, &route, &method, request.headers()) {
        Ok(()) => {
            let left = left(request.extensions().get().cloned(), request.version());
            tokio::select! {
                response = next.run(request) => response,
                () = left => unread(),
            }
        }
        Err(error) => error.into_response(),
    };
    let (status, seconds) = (response.status().as_u16(), start.elapsed().as_secs_f64());
    app.metrics.requests.with_label_values(&[route.as_str(), &status.to_string()]).inc();
    app.metrics.seconds.with_label_values(&[route.as_str()]).observe(seconds);
    tracing::info!(%method, route, status, ms = (seconds * 1e3).round() as u64, "request");
    unread_body.after(response)
}

/// Waits until the client has disconnected and reads no answer any more.
async fn left(client: Option<Client>, version: Version) {
    match client {
        Some(client) => client.left(version).await,
        None => std::future::pending().await,
    }
}

/// Returns the answer to a client that has disconnected. Its status in the log is 499, as in nginx.
fn unread() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
    response
}

fn authorize(app: &App, route: &str, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    // Any page in a browser can send a form to this machine; browsers state whether the page is of
    // another site. Links from other sites are allowed.
    let crossing = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    if method != Method::GET && crossing && !app.origins.allow(headers) {
        let message =
            "This request comes from another site's page: start the server with --cors-origin to allow it.";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "cross_site", message));
    }
    let wants_key = ROUTES.iter().find(|(path, _, _)| *path == route).is_none_or(|(_, _, wants)| *wants);
    match &app.keys {
        Some(keys) if wants_key => keys.check(headers),
        _ => Ok(()),
    }
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, text) = match app.engine.is_alive() {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the worker has failed"),
    };
    (status, Json(json!({ "status": text, "model": app.model.id, "pending": app.engine.pending() })))
        .into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../openapi.json")).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.text().map_err(|error| ApiError::ours(format!("{error:#}")))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn models(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "object": "list", "data": [entry(&app)] })).into_response()
}

async fn model(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Response, ApiError> {
    expect_model(&app, &model)?;
    Ok(Json(entry(&app)).into_response())
}

/// Returns the entry of the model: OpenAI's fields, and Tessera's own description.
fn entry(app: &App) -> serde_json::Value {
    json!({ "id": app.model.id, "object": "model", "created": 0, "owned_by": "tessera", "tessera": app.model })
}

fn expect_model(app: &App, name: &str) -> Result<(), ApiError> {
    match app.model.is_meant_by(name) {
        true => Ok(()),
        false => {
            let message = format!("There is no model '{}' here: wanted '{}'.", shortened(name), app.model.id);
            Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).of("model"))
        }
    }
}

/// Returns the sheet with a tile for each code. A page uses it to show a mosaic token by token.
async fn codes(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Response, ApiError> {
    expect_model(&app, &model)?;
    let made = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        app.model.tiles(&app.tessera)?.write_to(&mut bytes, image::ImageFormat::Png)?;
        Ok(bytes.into_inner())
    });
    match made.await {
        Ok(Ok(png)) => Ok(picture_response(png, "png")),
        Ok(Err(error)) => Err(ApiError::ours(format!("{error:#}"))),
        Err(_) => Err(ApiError::ours("The tiles could not be made.")),
    }
}

async fn generations(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    expect_length(&parts.headers, JSON_BYTES)?;
    // An error means that the body is too long, or that the client has disconnected and does not
    // read the answer.
    let whole = async { to_bytes(body, JSON_BYTES).await.map_err(|_| ApiError::too_large(JSON_BYTES)) };
    let fields = Fields::json(&parts.headers, &in_time(whole).await?)?;
    let image_request = ImageRequest::read(fields, Kind::Generation, &app, None)?;
    answer::answer(&app, image_request, &parts).await
}

async fn edits(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    with_picture(app, request, Kind::Edit).await
}

async fn variations(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    with_picture(app, request, Kind::Variation).await
}

async fn with_picture(app: Arc<App>, request: Request, kind: Kind) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    expect_length(&parts.headers, FORM_BYTES)?;
    let mut intake = Intake::new(&app.limits.forms, FORM_PACE);
    let fields = Fields::form(&parts.headers, body, &mut intake).await?;
    let image_request = upload::read(fields, kind, &app).await?;
    drop(intake);
    answer::answer(&app, image_request, &parts).await
}

async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let seen = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    match app.events.get(&id) {
        Some(log) => Ok(answer::watch(log, seen)),
        None => Err(ApiError::not_found("There are no events with this id, or they are no longer stored.")),
    }
}

async fn stop_events(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    match app.events.remove(&id) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found("There are no events with this id, or they are no longer stored.")),
    }
}

async fn picture(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let ending = name.rsplit_once('.').map_or("png", |(_, ending)| ending);
    let kept = app.image_store.get(&name).map(|file| picture_response(file, ending));
    kept.ok_or_else(|| ApiError::not_found("There is no picture of this name, or it is no longer stored."))
}

fn picture_response(file: Vec<u8>, format: &str) -> Response {
    let kind = format!("image/{format}");
    let headers = [(header::CONTENT_TYPE, kind.as_str()), (header::CACHE_CONTROL, "private, max-age=3600")];
    (headers, file).into_response()
}

/// Refuses a body whose `Content-Length` is too large.
fn expect_length(headers: &HeaderMap, most: usize) -> Result<(), ApiError> {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match length.is_some_and(|length| length > most as u64) {
        true => Err(ApiError::too_large(most)),
        false => Ok(()),
    }
}

/// Reads a body, with an error if it does not arrive in time.
async fn in_time<T>(read: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or_else(|_| Err(too_slow(BODY_TIMEOUT)))
}
