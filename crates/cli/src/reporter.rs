//! What libraries report, for people: notes as lines on standard error, progress as a bar on terminals.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use tessera_base::{Progress, Reporter};

use crate::stderr;

/// A bar's looks, behind the name of its task.
const STYLE: &str = "{prefix} {elapsed_precise} {bar:30} {pos}/{len} {per_sec} eta {eta} {msg}";

/// A reporter for a person at a terminal, or for a log.
#[derive(Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
}

impl Reporter for Terminal {
    fn note(&self, text: &str) {
        match &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            // The bar must not be drawn into the line.
            Some(bar) if !bar.is_hidden() => bar.suspend(|| {
                stderr::line(text);
                stderr::flush();
            }),
            Some(_) | None => stderr::line(text),
        }
    }

    fn progress(&self, Progress { task, done, total, detail }: Progress) {
        let mut shown = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = match shown.take().filter(|bar| bar.prefix() == task && bar.length() == Some(total)) {
            Some(bar) => bar,
            None => bar(task, done, total),
        };
        bar.set_position(done);
        if bar.message() != detail {
            bar.set_message(detail.to_string());
        }
        match done >= total {
            true => bar.finish_and_clear(),
            false => *shown = Some(bar),
        }
    }
}

/// Creates a progress bar, which is hidden if standard error is no terminal or only errors are
/// written.
pub fn progress_bar(total: u64) -> ProgressBar {
    match stderr::is_quiet() {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(total),
    }
}

/// A bar of `total` that starts at `done`, as a resumed run does.
fn bar(task: &str, done: u64, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = progress_bar(total).with_style(style).with_prefix(task.to_string()).with_position(done);
    bar.reset_eta();
    bar
}
