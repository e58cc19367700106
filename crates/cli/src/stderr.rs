//! Standard error, which may be full, closed, or a pipe that nobody reads: none of this may end the work or hold it up.
//!
//! All lines go through one bounded queue to a thread that writes them and ignores errors. What does not fit in the queue is
//! dropped. Nothing else in the program writes to standard error, besides progress bars, which show on terminals only.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Messages that wait for a slow reader; later ones are dropped.
const MOST_WAITING: usize = 1024;
/// How long a flush waits for a slow reader.
const PATIENCE: Duration = Duration::from_secs(1);

enum Message {
    Text(Vec<u8>),
    /// Is answered once all before it is written.
    Flush(SyncSender<()>),
}

/// Writes a line, sooner or later.
pub fn line(line: impl Display) {
    send(Message::Text(format!("{line}\n").into_bytes()));
}

/// `eprintln!` that cannot fail: see [`line`].
macro_rules! note {
    ($($arg:tt)*) => { $crate::stderr::line(format_args!($($arg)*)) };
}
pub(crate) use note;

/// Whether a person reads along.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Waits until what was said is written, but not for long.
pub fn flush() {
    let (written, wait) = sync_channel(1);
    send(Message::Flush(written));
    let _ = wait.recv_timeout(PATIENCE); // a reader that is slower misses something
}

/// The same for what wants a [`Write`].
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
        let (queue, messages) = sync_channel(MOST_WAITING);
        // Without the thread the queue's other end is gone, and so is all that is sent: there is nowhere to say it.
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
