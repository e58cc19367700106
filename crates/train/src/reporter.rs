//! What training tells people while it works. This library never prints: it is given a [`Reporter`].

use std::sync::atomic::AtomicBool;

/// How far a task is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// What is being done, as in `encoding`.
    pub task: &'a str,
    /// Units that are done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// A figure to show beside, as in `loss 1.2345`; may be empty.
    pub detail: &'a str,
}

/// Takes what people should know while something is running. Nothing that happens to it disturbs the work.
pub trait Reporter: Sync {
    /// Shows a text of one or more lines.
    fn note(&self, text: &str);
    /// Shows how far a task is; a call in which all is done ends the task.
    fn progress(&self, progress: Progress);
}

/// A reporter that says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Reporter for Silent {
    fn note(&self, _: &str) {}

    fn progress(&self, _: Progress) {}
}

/// How a training and whoever started it talk with each other.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Raised to have the training save and end.
    pub stop: &'a AtomicBool,
    /// Takes what people should know.
    pub reporter: &'a dyn Reporter,
}
