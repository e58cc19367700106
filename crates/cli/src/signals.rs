//! Handles the signals that ask the program to end: Ctrl-C (SIGINT), SIGTERM and SIGHUP. This also
//! works if the program is process 1.
//!
//! SIGHUP stays ignored if it was ignored when the program started, which is what `nohup` does.

use std::process::exit;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use anyhow::{Context, Result};
use tokio::runtime::Builder;

/// The number that a shell adds to a signal's number to report it as an exit code.
const BY_SIGNAL: i32 = 128;
/// The number of Ctrl-C's signal on every system.
const SIGINT: i32 = 2;
/// The number of the first signal that arrived; 0 if there was none.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// Returns the number of the first signal that arrived while the program listened.
pub fn received() -> Option<i32> {
    Some(FIRST.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
}

/// Returns the exit code of a program that was ended by the first signal.
pub fn exit_code() -> u8 {
    u8::try_from(BY_SIGNAL + received().unwrap_or(SIGINT)).unwrap_or(u8::MAX)
}

/// Calls `first` at the first signal. The second signal ends the program immediately.
///
/// # Errors
/// If the system does not let the program listen.
pub fn on_first(first: impl FnOnce() + Send + 'static) -> Result<()> {
    watch(move |_| first())
}

/// Ends the program at the first signal if it is process 1. For other processes the system does
/// this by itself.
///
/// # Errors
/// If the system does not let the program listen.
pub fn end_as_process_1() -> Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    watch(|signal| exit(BY_SIGNAL + signal))
}

/// Starts to listen in a separate thread.
fn watch(first: impl FnOnce(i32) + Send + 'static) -> Result<()> {
    let cannot = "cannot listen for signals";
    let runtime = Builder::new_current_thread().enable_all().build().context(cannot)?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::listen().context(cannot)?
    };
    let wait = move || {
        runtime.block_on(async {
            let signal = signals.next().await;
            FIRST.store(signal, Ordering::Relaxed);
            first(signal);
            exit(BY_SIGNAL + signals.next().await)
        })
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context(cannot)?;
    Ok(())
}

#[cfg(not(unix))]
use other::Signals;
#[cfg(unix)]
use unix::Signals;

#[cfg(unix)]
mod unix {
    use std::io;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// The signals that are listened to.
    pub struct Signals {
        interrupted: Signal,
        terminated: Signal,
        /// `None` if SIGHUP is ignored.
        hung_up: Option<Signal>,
    }

    impl Signals {
        /// Starts to listen. It must be called inside a tokio runtime.
        pub fn listen() -> io::Result<Signals> {
            let hung_up = (!is_ignored(libc::SIGHUP)).then(|| signal(SignalKind::hangup())).transpose()?;
            Ok(Signals {
                interrupted: signal(SignalKind::interrupt())?,
                terminated: signal(SignalKind::terminate())?,
                hung_up,
            })
        }

        /// Waits for the next signal and returns its number.
        pub async fn next(&mut self) -> i32 {
            let hung_up = async {
                match &mut self.hung_up {
                    Some(hung_up) => hung_up.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupted.recv() => libc::SIGINT,
                _ = self.terminated.recv() => libc::SIGTERM,
                _ = hung_up => libc::SIGHUP,
            }
        }
    }

    /// Whether `signal` was ignored when the program started.
    fn is_ignored(signal: libc::c_int) -> bool {
        // SAFETY: a `sigaction` of zeros is valid; without a new action the call only fills in the
        // current one.
        #[allow(unsafe_code)]
        let (answer, action) = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            (libc::sigaction(signal, std::ptr::null(), &raw mut action), action)
        };
        answer == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
mod other {
    use std::io;

    /// Listens to Ctrl-C, the only signal on this system.
    pub struct Signals;

    impl Signals {
        /// Does nothing: the signal needs no preparation on this system.
        pub fn listen() -> io::Result<Signals> {
            Ok(Signals)
        }

        /// Waits for Ctrl-C and returns its number.
        pub async fn next(&mut self) -> i32 {
            let _ = tokio::signal::ctrl_c().await;
            super::SIGINT
        }
    }
}
