//! Shows what libraries report: notes as lines on standard error, and progress as a bar on
//! terminals.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tessera_base::{Progress, Reporter};

use crate::stderr;

/// A bar's looks, behind the name of its task.
const STYLE: &str = "{prefix} {elapsed_precise} {bar:30} {pos}/{len} {per_sec} eta {eta} {msg}";

/// The time between two lines of progress, without a terminal.
const LINE_EVERY: Duration = Duration::from_mins(1);

/// A reporter for a person at a terminal, or for a log. A terminal shows a progress bar; a log gets
/// one line of progress per minute.
#[derive(Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
    lines: Mutex<Option<Lines>>,
}

/// The lines of progress of a task.
struct Lines {
    task: String,
    /// When the task began, and how much of it was done then.
    began: (Instant, u64),
    /// When the last line was written; at first when the task began.
    last: Instant,
}

impl Lines {
    fn new(task: &str, done: u64, now: Instant) -> Lines {
        Lines { task: task.to_string(), began: (now, done), last: now }
    }

    /// Returns the next line if it is due.
    fn line(&mut self, Progress { task, done, total, detail }: Progress, now: Instant) -> Option<String> {
        if now.duration_since(self.last) < LINE_EVERY || done >= total {
            return None;
        }
        self.last = now;
        let (since, before) = self.began;
        let seconds = now.duration_since(since).as_secs_f64() * (total - done) as f64
            / done.saturating_sub(before).max(1) as f64;
        let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
        Some(format!("{task}: {done} of {total}{detail}, about {:.0} min left", (seconds / 60.0).ceil()))
    }
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
        if bar.is_hidden() {
            self.log(Progress { task, done, total, detail });
        }
        match done >= total {
            true => bar.finish_and_clear(),
            false => *shown = Some(bar),
        }
    }
}

impl Terminal {
    /// Writes a line of progress if one is due.
    fn log(&self, progress: Progress) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if lines.as_ref().is_none_or(|lines| lines.task != progress.task) {
            *lines = Some(Lines::new(progress.task, progress.done, now));
        }
        if let Some(line) = lines.as_mut().and_then(|lines| lines.line(progress, now)) {
            stderr::line(line);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_has_one_line_of_progress_per_minute() {
        let start = Instant::now();
        let mut lines = Lines::new("training", 100, start);
        let mut at = |seconds: u64, done: u64| {
            let progress = Progress { task: "training", done, total: 700, detail: "loss 2.1" };
            lines.line(progress, start + Duration::from_secs(seconds))
        };
        assert_eq!(at(59, 190), None);
        assert_eq!(at(60, 200).unwrap(), "training: 200 of 700, loss 2.1, about 5 min left");
        assert_eq!(at(90, 250), None);
        assert!(at(120, 300).is_some());
        assert_eq!(at(400, 700), None, "the end needs no line");
    }
}
