//! What the server takes, and no more: every limit has its name here, and a clear answer where it is reached.

use std::time::Duration;

/// Bytes of a form: two pictures, and some.
pub const FORM_BYTES: usize = 24 * 1024 * 1024;
/// Bytes of a request in JSON.
pub const JSON_BYTES: usize = 256 * 1024;
/// Pixels of a picture that is sent: 16 million, as of a good camera.
pub const IMAGE_PIXELS: u64 = 16_000_000;
/// Characters of a prompt. The model reads far fewer and says where it stopped.
pub const PROMPT_CHARS: usize = 4000;
/// Pictures that one request gets back.
pub const N: usize = 64;
/// Candidates that one request may have drawn to choose from: the paper's number.
pub const BEST_OF: usize = 512;
/// Side of a picture that is sent back, in pixels.
pub const SIZE: u32 = 1024;
/// Pixels of all pictures of an answer together, partial ones included.
pub const ANSWER_PIXELS: usize = 16 * 1024 * 1024;
/// Partial pictures of a stream.
pub const PARTIAL_IMAGES: usize = 64;
/// Requests that are drawn or wait for it.
pub const PENDING_JOBS: usize = 256;
/// Pictures that are drawn or wait for it, over all requests.
pub const PENDING_PICTURES: usize = 8192;
/// Uploaded pictures that are decoded and encoded at once; others wait. Each may take the memory of [`IMAGE_PIXELS`].
pub const UPLOADS_AT_ONCE: usize = 2;
/// Bytes of a form that are read at once, as many as of JSON: a larger one then waits for its place.
pub const SMALL_FORM_BYTES: usize = JSON_BYTES;
/// Bytes of a form in which a field must begin or go on: part headers, and what comes before the first part, may be no longer.
pub const FORM_HEAD_BYTES: usize = 64 * 1024;
/// Parts of a form: there are fewer parameters.
pub const FORM_PARTS: usize = 100;
/// Larger forms in memory at once; others wait before they are read any further.
pub const FORMS_AT_ONCE: usize = 16;
/// Requests that are drawn behind the scenes, or wait for it.
pub const PENDING_LOGS: usize = 32;
/// Connections; more wait until one is closed.
pub const CONNECTIONS: usize = 512;
/// For the head of a connection's first request to arrive.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// For the head of the next request on a connection that is kept: longer than clients and proxies keep theirs.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// For the body of a request to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How fast a form must come: all of it within the time of any body and, while it has one of the places, at 13 KiB a second.
pub const FORM_PACE: Pace =
    Pace { total: BODY_TIMEOUT, window: Duration::from_secs(5), window_bytes: 64 * 1024 };
/// Bytes that are read of the body of a request that was refused early: many clients read no answer before they have sent all.
pub const DRAIN_BYTES: usize = 48 * 1024 * 1024;
/// For more of such a body.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// For a response to be taken by its client before it is given up.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// For what is being drawn to be finished after the server was asked to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of pictures that are kept for their address to work; the oldest go first.
pub const KEPT_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of events that are kept for `GET /v1/events/{id}`; those of finished requests go first, the oldest of them.
pub const EVENT_BYTES: usize = 64 * 1024 * 1024;

/// How fast a form must come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time in which all of it must come.
    pub total: Duration,
    /// The time in which a form that has a place must send [`Pace::window_bytes`], again and again.
    pub window: Duration,
    /// The bytes of a window. When they have come, the next window begins.
    pub window_bytes: usize,
}
