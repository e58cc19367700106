//! The body of a form, as a stream for the form parser that counts bytes and limits how many the
//! parser stores.
//!
//! The parser stores the bytes that it has not returned yet: part headers, and the text before the
//! first part. Without a limit, it would read a complete body while it searches for the next part.
//! Therefore [`FormBody`] pauses after [`FORM_HEAD_BYTES`], so that the parser processes the bytes
//! that it has. If no field has begun or continued by then, the stream ends with [`NoFieldData`].

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream, Bytes};
use tokio_stream::Stream;

use crate::limits::FORM_HEAD_BYTES;

/// The stream that the parser reads.
pub struct FormBody {
    body: BodyDataStream,
    progress: Progress,
    has_paused: bool,
}

/// How much of a [`FormBody`] the parser has read.
#[derive(Clone, Default)]
pub struct Progress {
    /// The number of bytes since a field last began or continued.
    held: Arc<AtomicUsize>,
}

/// The error of a body that has too many bytes in which no field begins or continues.
#[derive(Debug)]
pub struct NoFieldData;

impl FormBody {
    /// Wraps a request body. Also returns the progress of its parser.
    pub fn new(body: Body) -> (FormBody, Progress) {
        let progress = Progress::default();
        (FormBody { body: body.into_data_stream(), progress: progress.clone(), has_paused: false }, progress)
    }
}

impl Progress {
    /// Records that a field has begun or continued. Returns the number of bytes that the parser has
    /// read since the last call.
    pub fn take(&self) -> usize {
        self.held.swap(0, Ordering::Relaxed)
    }
}

impl Stream for FormBody {
    type Item = Result<Bytes, Box<dyn Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let is_full = self.progress.held.load(Ordering::Relaxed) > FORM_HEAD_BYTES;
        match (is_full, self.has_paused) {
            (true, true) => return Poll::Ready(Some(Err(NoFieldData.into()))),
            (true, false) => {
                self.has_paused = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            (false, _) => self.has_paused = false,
        }
        let next = ready!(Pin::new(&mut self.body).poll_next(context));
        if let Some(Ok(bytes)) = &next {
            self.progress.held.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        Poll::Ready(next.map(|read| read.map_err(Into::into)))
    }
}

impl fmt::Display for NoFieldData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = FORM_HEAD_BYTES / 1024;
        write!(
            f,
            "The form has more than {most} KiB in which no field begins or continues: wanted '--' and its boundary, a part's headers, an empty line and data"
        )
    }
}

impl Error for NoFieldData {}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
    use tokio::sync::Semaphore;

    use super::super::ApiError;
    use super::super::fields::Fields;
    use super::super::intake::Intake;
    use super::*;
    use crate::limits::{FORM_PACE, FORM_PARTS};

    const PIECE: usize = 8 * 1024;

    /// Reads a form of `bytes`. Returns the result and how many of the bytes were read.
    fn read(bytes: Vec<u8>) -> (Result<(), ApiError>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let pieces: Vec<Bytes> = bytes.chunks(PIECE).map(Bytes::copy_from_slice).collect();
        let pieces = tokio_stream::iter(pieces.into_iter().map(move |piece| {
            counter.fetch_add(piece.len(), Ordering::Relaxed);
            Ok::<Bytes, std::io::Error>(piece)
        }));
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("multipart/form-data; boundary=edge");
        headers.insert(header::CONTENT_TYPE, kind);
        let places = Semaphore::new(1);
        let mut intake = Intake::new(&places, FORM_PACE);
        let fields = Fields::form(&headers, Body::from_stream(pieces), &mut intake);
        let answer = runtime.block_on(fields).map(drop);
        (answer, count.load(Ordering::Relaxed))
    }

    fn part(name: &str, header: &str, data: &[u8]) -> Vec<u8> {
        let head = format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{header}\r\n");
        [head.as_bytes(), data, b"\r\n"].concat()
    }

    #[test]
    fn form_without_fields_is_refused_after_64_kib() {
        let long = "x".repeat(2 << 20);
        for (what, bytes) in [
            ("no boundary", vec![b'0'; 2 << 20]),
            ("a long preamble", [long.as_bytes(), &part("n", "", b"1"), b"--edge--\r\n"].concat()),
            ("a long part header", part("n", &format!("X-Long: {long}\r\n"), b"1")),
            ("many part headers", part("n", &"X: y\r\n".repeat(1 << 18), b"1")),
            ("a part header that does not end", format!("--edge\r\n{long}").into_bytes()),
        ] {
            let (answer, bytes) = read(bytes);
            let error = answer.unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{what}");
            assert!(
                error.message.contains("more than 64 KiB in which no field"),
                "{what}: {}",
                error.message
            );
            assert!(bytes <= FORM_HEAD_BYTES + 2 * PIECE, "{what}: {bytes} bytes were read");
        }
    }

    #[test]
    fn form_with_fields_is_read_completely() {
        let image = part("image", "Content-Type: image/png\r\n", &vec![b'\r'; 2 << 20]);
        let bytes = [&image, &part("n", "X-Note: long\r\n", b"1")[..], b"--edge--\r\n"].concat();
        let length = bytes.len();
        let (answer, read) = read(bytes);
        assert!(answer.is_ok() && read == length, "{read} of {length}: {:?}", answer.err());
    }

    #[test]
    fn form_with_too_many_parts_is_refused() {
        let all: Vec<u8> = (0..=FORM_PARTS).flat_map(|n| part(&format!("p{n}"), "", b"1")).collect();
        let (answer, _) = read([&all[..], b"--edge--\r\n"].concat());
        let error = answer.unwrap_err();
        assert!(error.message.contains("more than 100 parts"), "{}", error.message);
    }
}
