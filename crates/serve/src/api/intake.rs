//! Limits the time and memory of forms while they arrive.
//!
//! A small form is read immediately. A larger one waits for one of a few places and must then
//! arrive at a minimum rate, so that slow clients do not block others.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::ApiError;
use crate::limits::{Pace, SMALL_FORM_BYTES};

/// The state of one form that is being read. Dropping it frees its place.
pub struct Intake<'a> {
    places: &'a Semaphore,
    place: Option<SemaphorePermit<'a>>,
    pace: Pace,
    bytes: usize,
    /// The remaining time in which the complete form must arrive.
    left: Duration,
    window: Window,
}

/// The current window of a form that has a place.
struct Window {
    /// The number of bytes that have arrived in the window.
    bytes: usize,
    /// The remaining time of the window.
    left: Duration,
}

impl<'a> Intake<'a> {
    /// Starts to read a form at the rate and in the time that `pace` demands. A large form needs
    /// one of `places`.
    pub fn new(places: &'a Semaphore, pace: Pace) -> Intake<'a> {
        let window = Window { bytes: 0, left: pace.window };
        Intake { places, place: None, pace, bytes: 0, left: pace.total, window }
    }

    /// Runs `read`, with an error if it takes too long.
    pub async fn next<T>(&mut self, read: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        let is_windowed = self.place.is_some() && self.window.left < self.left;
        let start = Instant::now();
        let next = timeout(if is_windowed { self.window.left } else { self.left }, read).await;
        let elapsed = start.elapsed();
        self.left = self.left.saturating_sub(elapsed);
        if self.place.is_some() {
            self.window.left = self.window.left.saturating_sub(elapsed);
        }
        next.unwrap_or_else(|_| match is_windowed {
            true => Err(self.under_pace()),
            false => Err(too_slow(self.pace.total)),
        })
    }

    /// Counts bytes that were read, and waits for a place if the form is large. The client's time
    /// does not run meanwhile.
    pub async fn count(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        self.window.bytes += bytes;
        if self.place.is_none() && self.bytes > SMALL_FORM_BYTES {
            let place = self.places.acquire().await;
            self.place = Some(place.map_err(|_| ApiError::ours("The server is stopping."))?);
        }
        if self.window.bytes >= self.pace.window_bytes {
            self.window = Window { bytes: 0, left: self.pace.window };
        }
        Ok(())
    }

    fn under_pace(&self) -> ApiError {
        let Pace { window, window_bytes, .. } = self.pace;
        let (came, seconds) = (self.window.bytes / 1024, window.as_secs_f32());
        late(format!(
            "{came} KiB of the body came within {seconds} seconds: wanted {} KiB at least; send a smaller picture.",
            window_bytes / 1024
        ))
    }
}

/// Returns the error of a body that did not arrive in time.
pub fn too_slow(time: Duration) -> ApiError {
    late(format!("The body did not come within {} seconds.", time.as_secs_f32()))
}

fn late(message: String) -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::{Body, Bytes};
    use axum::http::{HeaderMap, HeaderValue, header};
    use tokio_stream::StreamExt;

    use super::super::fields::Fields;
    use super::*;

    /// Reads a form whose first `immediate` bytes arrive immediately, and then `n_pieces` pieces of
    /// `piece` bytes, one every 10 ms.
    fn read(immediate: usize, piece: usize, n_pieces: usize, pace: Pace) -> Result<(), ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let head = b"--edge\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n";
        let first = Bytes::from([&head[..], &vec![0; immediate]].concat());
        let slow = tokio_stream::iter((0..n_pieces).map(move |_| Bytes::from(vec![0; piece])));
        let slow = slow.then(async |piece| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            piece
        });
        let end = tokio_stream::once(Bytes::from_static(b"\r\n--edge--\r\n"));
        let body = tokio_stream::once(first).chain(slow).chain(end).map(Ok::<Bytes, Infallible>);
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("multipart/form-data; boundary=edge");
        headers.insert(header::CONTENT_TYPE, kind);
        let places = Semaphore::new(1);
        runtime.block_on(async {
            let mut intake = Intake::new(&places, pace);
            Fields::form(&headers, Body::from_stream(body), &mut intake).await.map(drop)
        })
    }

    const PACE: Pace =
        Pace { total: Duration::from_secs(30), window: Duration::from_millis(500), window_bytes: 64 * 1024 };

    #[test]
    fn slow_form_with_a_place_times_out_after_one_window() {
        let start = Instant::now();
        let error = read(SMALL_FORM_BYTES + 1, 1, 1000, PACE).unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
        let wanted = "0 KiB of the body came within 0.5 seconds: wanted 64 KiB at least";
        assert!(error.message.contains(wanted), "{}", error.message);
        assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    }

    #[test]
    fn form_that_keeps_its_pace_is_read_over_many_windows() {
        let start = Instant::now();
        read(SMALL_FORM_BYTES + 1, 16 * 1024, 120, PACE).unwrap();
        assert!(start.elapsed() > 2 * PACE.window);
    }

    #[test]
    fn small_form_may_be_slow_until_its_total_time_is_over() {
        read(1000, 1, 80, PACE).unwrap();
        let error = read(1000, 1, 1000, Pace { total: PACE.window, ..PACE }).unwrap_err();
        assert!(error.message.contains("did not come within 0.5 seconds"), "{}", error.message);
    }
}
