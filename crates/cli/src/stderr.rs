//! Writes lines to standard error. If it is full, closed, or a pipe without a reader, this neither
//! ends nor delays the work.
//!
//! All lines go through one bounded queue to a thread that writes them and ignores write errors.
//! Lines that do not fit in the queue are dropped. Nothing else in the program writes to standard
//! error, except progress bars, which appear only on terminals.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// The maximum number of messages that wait for a slow reader; later ones are dropped.
const MAX_WAITING: usize = 1024;
/// The maximum time that a flush waits for a slow reader.
const PATIENCE: Duration = Duration::from_secs(1);

enum Message {
    Text(Vec<u8>),
    /// Is answered as soon as all earlier messages are written.
    Flush(SyncSender<()>),
}

/// Whether only errors are written.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Sets whether only errors are written (`--quiet`).
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// The number of this process among those that train together.
static RANK: OnceLock<usize> = OnceLock::new();

/// Sets the number that begins each error of this process.
pub fn set_rank(rank: usize) {
    let _ = RANK.set(rank); // it does not change
}

/// Returns whether only errors are written.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a line, unless only errors are written.
pub fn line(line: impl Display) {
    if !is_quiet() {
        send(Message::Text(format!("{line}\n").into_bytes()));
    }
}

/// Writes a line that is never suppressed.
pub fn error(line: impl Display) {
    let rank = RANK.get().map_or(String::new(), |rank| format!("rank {rank}: "));
    send(Message::Text(format!("{rank}{line}\n").into_bytes()));
}

/// `eprintln!` that cannot fail: see [`line`].
macro_rules! note {
    ($($arg:tt)*) => { $crate::stderr::line(format_args!($($arg)*)) };
}
pub(crate) use note;

/// Returns whether standard error is a terminal.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Waits until all lines are written, at most for [`PATIENCE`].
pub fn flush() {
    let (written, wait) = sync_channel(1);
    send(Message::Flush(written));
    let _ = wait.recv_timeout(PATIENCE); // a slower reader misses lines
}

/// Standard error as a [`Write`].
#[derive(Debug, Clone, Copy)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send(Message::Text(bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(message: Message) {
    static QUEUE: OnceLock<SyncSender<Message>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (queue, messages) = sync_channel(MAX_WAITING);
        // If the thread cannot start, the receiver is dropped and all messages are lost. This
        // cannot be reported anywhere.
        let _ = std::thread::Builder::new().name("stderr".into()).spawn(move || write_all(&messages));
        queue
    });
    let _ = queue.try_send(message);
}

fn write_all(messages: &Receiver<Message>) {
    for message in messages {
        match message {
            Message::Text(text) => drop(io::stderr().write_all(&text)),
            Message::Flush(written) => drop(written.send(())),
        }
    }
}
