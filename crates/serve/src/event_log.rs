//! Events of requests that are drawn behind the scenes: kept from the first, so that whoever comes late or comes back misses none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::image_store::unguessable;
use crate::limits::{EVENT_BYTES, PENDING_LOGS};

/// Logs by their names.
#[derive(Default)]
pub struct EventLogs(Mutex<VecDeque<Arc<EventLog>>>);

/// What has happened to one request.
pub struct EventLog {
    pub id: String,
    frames: Mutex<Vec<Bytes>>,
    /// Frames so far, and whether that is all.
    grown: watch::Sender<(usize, bool)>,
    drawing: Mutex<Option<AbortHandle>>,
}

impl EventLogs {
    /// A new log, unless too many are being written; if all of them hold too much, the oldest that are finished go.
    pub fn start(&self) -> Option<Arc<EventLog>> {
        let log = Arc::new(EventLog {
            id: unguessable(),
            frames: Mutex::default(),
            grown: watch::Sender::new((0, false)),
            drawing: Mutex::default(),
        });
        let mut logs = self.0.lock().ok()?;
        if logs.iter().filter(|log| !log.is_finished()).count() >= PENDING_LOGS {
            return None;
        }
        let mut bytes: usize = logs.iter().map(|log| log.bytes()).sum();
        logs.retain(|log| {
            let goes = bytes > EVENT_BYTES && log.is_finished();
            bytes -= if goes { log.bytes() } else { 0 };
            !goes
        });
        logs.push_back(log.clone());
        Some(log)
    }

    /// The log of this name, if it is still there.
    pub fn get(&self, id: &str) -> Option<Arc<EventLog>> {
        self.0.lock().ok()?.iter().find(|log| log.id == id).cloned()
    }

    /// Stops a request and forgets its log; whether there was one.
    pub fn remove(&self, id: &str) -> bool {
        let Ok(mut logs) = self.0.lock() else { return false };
        let Some(at) = logs.iter().position(|log| log.id == id) else { return false };
        if let Some(log) = logs.remove(at) {
            if let Some(drawing) = log.drawing.lock().ok().and_then(|mut drawing| drawing.take()) {
                drawing.abort();
            }
            log.finish();
        }
        true
    }
}

impl EventLog {
    /// One more frame.
    pub fn push(&self, frame: Bytes) {
        if let Ok(mut frames) = self.frames.lock() {
            frames.push(frame);
            self.grown.send_modify(|(n, _)| *n = frames.len());
        }
    }

    /// No more will come.
    pub fn finish(&self) {
        self.grown.send_modify(|(_, all)| *all = true);
    }

    fn is_finished(&self) -> bool {
        self.grown.borrow().1
    }

    /// The task that writes the log.
    pub fn written_by(&self, task: AbortHandle) {
        if let Ok(mut drawing) = self.drawing.lock() {
            *drawing = Some(task);
        }
    }

    /// Frame `at`, as soon as there is one; nothing if there will not be.
    pub async fn frame(&self, at: usize) -> Option<Bytes> {
        let mut grown = self.grown.subscribe();
        grown.wait_for(|(n, all)| *n > at || *all).await.ok()?;
        self.frames.lock().ok()?.get(at).cloned()
    }

    fn bytes(&self) -> usize {
        self.frames.lock().map_or(0, |frames| frames.iter().map(Bytes::len).sum())
    }
}
