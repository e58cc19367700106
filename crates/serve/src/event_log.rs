//! Logs of the events of `async` requests. A log starts with the first event, so clients that
//! connect late or reconnect miss none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::image_store::unguessable;
use crate::limits::{EVENT_BYTES, PENDING_LOGS};

/// The stored logs, oldest first.
#[derive(Default)]
pub struct EventLogs(Mutex<VecDeque<Arc<EventLog>>>);

/// The events of one request so far.
pub struct EventLog {
    /// The unguessable identifier in the URL of the log.
    pub id: String,
    frames: Mutex<Vec<Bytes>>,
    /// The number of frames so far, and whether the log is complete.
    grown: watch::Sender<(usize, bool)>,
    drawing: Mutex<Option<AbortHandle>>,
}

impl EventLogs {
    /// Starts a log. Returns `None` if too many logs are incomplete. If all logs together are too
    /// large, the oldest complete logs are deleted.
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
            let is_deleted = bytes > EVENT_BYTES && log.is_finished();
            bytes -= if is_deleted { log.bytes() } else { 0 };
            !is_deleted
        });
        logs.push_back(log.clone());
        Some(log)
    }

    /// Returns the log with this id, if it is still stored.
    pub fn get(&self, id: &str) -> Option<Arc<EventLog>> {
        self.0.lock().ok()?.iter().find(|log| log.id == id).cloned()
    }

    /// Cancels a request and deletes its log. Returns whether the log existed.
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
    /// Appends a frame.
    pub fn push(&self, frame: Bytes) {
        if let Ok(mut frames) = self.frames.lock() {
            frames.push(frame);
            self.grown.send_modify(|(n, _)| *n = frames.len());
        }
    }

    /// Marks the log as complete.
    pub fn finish(&self) {
        self.grown.send_modify(|(_, all)| *all = true);
    }

    fn is_finished(&self) -> bool {
        self.grown.borrow().1
    }

    /// Stores the handle of the task that writes the log.
    pub fn written_by(&self, task: AbortHandle) {
        if let Ok(mut drawing) = self.drawing.lock() {
            *drawing = Some(task);
        }
    }

    /// Waits for frame `at`. Returns `None` if the log ends before it.
    pub async fn frame(&self, at: usize) -> Option<Bytes> {
        let mut grown = self.grown.subscribe();
        grown.wait_for(|(n, all)| *n > at || *all).await.ok()?;
        self.frames.lock().ok()?.get(at).cloned()
    }

    fn bytes(&self) -> usize {
        self.frames.lock().map_or(0, |frames| frames.iter().map(Bytes::len).sum())
    }
}
