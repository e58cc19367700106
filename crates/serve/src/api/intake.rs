//! How a form comes in: what it may take of time and of memory.
//!
//! A small form is read at once. A larger one waits for one of a few places and must then keep coming, so that clients that send
//! slowly, or nothing, keep no others waiting.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::ApiError;
use crate::limits::{BODY_TIMEOUT, SMALL_FORM_BYTES, STALL_TIMEOUT};

/// The reading of one form. Its place is free again when this is dropped.
pub struct Intake<'a> {
    places: &'a Semaphore,
    place: Option<SemaphorePermit<'a>>,
    bytes: usize,
    /// What is left of the time in which all of it must come.
    left: Duration,
}

impl<'a> Intake<'a> {
    pub fn new(places: &'a Semaphore) -> Intake<'a> {
        Intake { places, place: None, bytes: 0, left: BODY_TIMEOUT }
    }

    /// What is read next, if it comes in time.
    pub async fn next<T>(&mut self, read: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        let stall = self.place.is_some() && STALL_TIMEOUT < self.left;
        let start = Instant::now();
        let next = timeout(if stall { STALL_TIMEOUT } else { self.left }, read).await;
        self.left = self.left.saturating_sub(start.elapsed());
        next.unwrap_or_else(|_| match stall {
            true => Err(late(format!("Nothing of the body came for {} seconds.", STALL_TIMEOUT.as_secs()))),
            false => Err(too_slow()),
        })
    }

    /// Counts bytes that were read, and waits for a place once they are many. That takes nothing of the client's time.
    pub async fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        if self.place.is_none() && self.bytes > SMALL_FORM_BYTES {
            let place = self.places.acquire().await;
            self.place = Some(place.map_err(|_| ApiError::ours("The server is stopping."))?);
        }
        Ok(())
    }
}

/// The error of a body that did not come in time.
pub fn too_slow() -> ApiError {
    late(format!("The body did not come within {} seconds.", BODY_TIMEOUT.as_secs()))
}

fn late(message: String) -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
}
