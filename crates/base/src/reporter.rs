//! How libraries tell people what they do: they never print, they report to a [`Reporter`].

/// How far a task has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The task's name, as in `encoding`.
    pub task: &'a str,
    /// Units of work that are done.
    pub done: u64,
    /// Units of work in total.
    pub total: u64,
    /// A figure to show next to the bar, as in `loss 1.2345`; may be empty.
    pub detail: &'a str,
}

/// Receives messages and progress while a task runs. A reporter never fails: nothing that happens
/// to it may disturb the task.
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
