//! The limits of the server. A request that exceeds one gets a clear error.

use std::time::Duration;

/// The maximum size of a form in bytes. Two large pictures fit.
pub const FORM_BYTES: usize = 24 * 1024 * 1024;
/// The maximum size of a JSON request in bytes.
pub const JSON_BYTES: usize = 256 * 1024;
/// The maximum number of pixels of an uploaded picture: 16 million, like those of a good camera.
pub const IMAGE_PIXELS: u64 = 16_000_000;
/// The maximum number of characters of a prompt. The model reads far fewer, and the answer contains
/// what it read.
pub const PROMPT_CHARS: usize = 4000;
/// The maximum number of pictures that one request returns.
pub const N: usize = 64;
/// The maximum number of candidates of one request (512 in the paper).
pub const BEST_OF: usize = 512;
/// The maximum side of a returned picture in pixels.
pub const SIZE: u32 = 1024;
/// The maximum number of pixels of all pictures of an answer together, including partial pictures.
pub const ANSWER_PIXELS: usize = 16 * 1024 * 1024;
/// The maximum number of partial pictures per candidate of a stream.
pub const PARTIAL_IMAGES: usize = 64;
/// The maximum number of requests that are being drawn or waiting.
pub const PENDING_JOBS: usize = 256;
/// The maximum number of candidates that are being drawn or waiting, over all requests.
pub const PENDING_PICTURES: usize = 8192;
/// The number of uploaded pictures that are decoded and encoded at the same time; others wait. Each
/// may need memory for [`IMAGE_PIXELS`].
pub const UPLOADS_AT_ONCE: usize = 2;
/// The number of bytes of a form that are read immediately. A larger form then waits for a place.
pub const SMALL_FORM_BYTES: usize = JSON_BYTES;
/// The maximum number of bytes of a form in which no field begins or continues. It limits part
/// headers and the text before the first part.
pub const FORM_HEAD_BYTES: usize = 64 * 1024;
/// The maximum number of parts of a form. There are fewer parameters.
pub const FORM_PARTS: usize = 100;
/// The number of places: forms above [`SMALL_FORM_BYTES`] in memory at the same time. Others wait
/// before the server reads more of them.
pub const FORMS_AT_ONCE: usize = 16;
/// The maximum number of `async` requests that are being drawn or waiting.
pub const PENDING_LOGS: usize = 32;
/// The maximum number of open connections. Others wait until one is closed.
pub const CONNECTIONS: usize = 512;
/// The time in which the head of the first request on a connection must arrive.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// The time in which the head of the next request on an open connection must arrive. It is longer
/// than clients and proxies keep idle connections.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// The time in which the body of a request must arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How fast a form must arrive: completely within [`BODY_TIMEOUT`] and, while it has a place, at
/// 13 KiB per second.
pub const FORM_PACE: Pace =
    Pace { total: BODY_TIMEOUT, window: Duration::from_secs(5), window_bytes: 64 * 1024 };
/// The number of bytes that are read and discarded from the body of a refused request. Many clients
/// do not read an answer before they have sent the complete body.
pub const DRAIN_BYTES: usize = 48 * 1024 * 1024;
/// The time in which more of such a body must arrive.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// The time in which a client must read each piece of a response.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The time in which current requests are finished after the server was asked to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of the pictures that are stored for their URLs, in bytes. The oldest pictures
/// are deleted first.
pub const KEPT_BYTES: usize = 64 * 1024 * 1024;
/// The size of the events that are stored for `GET /v1/events/{id}`, in bytes. Above it, the oldest
/// logs of finished requests are deleted.
pub const EVENT_BYTES: usize = 64 * 1024 * 1024;

/// How fast a form must arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time in which the complete form must arrive.
    pub total: Duration,
    /// The time in which each [`Pace::window_bytes`] of a form with a place must arrive.
    pub window: Duration,
    /// The number of bytes of a window. When they have arrived, the next window begins.
    pub window_bytes: usize,
}
