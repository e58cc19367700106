//! How libraries report messages and progress: they never print, but call a [`Reporter`].

/// How far a task has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The task's name, for example `encoding`.
    pub task: &'a str,
    /// The number of units of work that are done.
    pub done: u64,
    /// The total number of units of work.
    pub total: u64,
    /// A text to show next to the progress bar, for example `loss 1.2345`; may be empty.
    pub detail: &'a str,
}

/// Receives messages and progress while a task runs. A reporter never fails, because its problems
/// must not disturb the task.
pub trait Reporter: Sync {
    /// Shows a text of one or more lines.
    fn note(&self, text: &str);
    /// Shows how far a task has come. A call with `done == total` ends the task.
    fn progress(&self, progress: Progress);
}

/// A reporter that discards everything.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Reporter for Silent {
    fn note(&self, _: &str) {}

    fn progress(&self, _: Progress) {}
}
