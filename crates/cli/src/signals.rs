//! Handles the signals that ask the program to end: Ctrl-C (SIGINT), SIGTERM and SIGHUP. This also
//! works if the program is process 1.
//!
//! SIGHUP stays ignored if it was ignored when the program started, which is what `nohup` does.
//!
//! The program may get the same signal twice: a terminal sends it to a program and to the program's
//! parent, and the parent passes it on. Signals shortly after the first one are therefore ignored.

use std::io;
use std::process::{Child, ExitStatus, exit};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Builder;
use tokio::time::timeout;

/// The number that a shell adds to a signal's number to report it as an exit code.
const BY_SIGNAL: i32 = 128;
/// The number of Ctrl-C's signal on every system.
const SIGINT: i32 = 2;
/// The time after the first signal in which further ones count as the same.
const SAME: Duration = Duration::from_millis(500);
/// The time between two looks at a child process.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The number of the first signal that arrived; 0 if there was none.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// Whether a second signal has arrived.
static SECOND: AtomicBool = AtomicBool::new(false);

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
    watch(move |_| first(), |signal| exit(BY_SIGNAL + signal))
}

/// Listens for signals, which [`wait`] passes on to a child process.
///
/// # Errors
/// If the system does not let the program listen.
pub fn pass_on() -> Result<()> {
    watch(|_| {}, |_| SECOND.store(true, Ordering::Relaxed))
}

/// Waits for `child`, and passes the first signal on to it. The second signal kills it.
///
/// # Errors
/// If the system cannot tell whether the child has ended, or cannot kill it.
pub fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let mut is_passed_on = false;
    loop {
        // A child that has not ended keeps its process number.
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        match received() {
            Some(_) if SECOND.load(Ordering::Relaxed) => child.kill()?,
            Some(signal) if !is_passed_on => {
                send(child, signal);
                is_passed_on = true;
            }
            _ => {}
        }
        thread::sleep(LOOK_EVERY);
    }
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
    let end = |signal| exit(BY_SIGNAL + signal);
    watch(end, end)
}

/// Starts to listen in a separate thread, which calls `first` at the first signal and `second` at
/// the second one.
fn watch(first: impl FnOnce(i32) + Send + 'static, second: impl FnOnce(i32) + Send + 'static) -> Result<()> {
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
            let repeated = async {
                loop {
                    signals.next().await;
                }
            };
            let _: Result<(), _> = timeout(SAME, repeated).await;
            second(signals.next().await);
        });
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context(cannot)?;
    Ok(())
}

#[cfg(not(unix))]
use other::{Signals, send};
#[cfg(unix)]
use unix::{Signals, send};

#[cfg(unix)]
mod unix {
    use std::io;
    use std::process::Child;

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

    /// Sends `signal` to a child process that has not been waited for.
    pub fn send(child: &Child, signal: libc::c_int) {
        let Ok(id) = libc::pid_t::try_from(child.id()) else { return };
        // SAFETY: the call only sends a signal. The process number is that of the child, because the
        // system does not reuse it before the child has been waited for.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(id, signal);
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
    use std::process::Child;

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

    /// Does nothing: on this system, Ctrl-C reaches the child too.
    pub fn send(_: &Child, _: i32) {}
}
