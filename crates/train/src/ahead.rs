//! Batches made ahead of the step that takes them, on a thread of their own.
//!
//! A batch is a pure function of its step, so it does not matter when it is made. While one is
//! differentiated the next is read, cropped or encoded. This keeps both a GPU and the CPU's cores busy.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use anyhow::{Context, Result, ensure};

use crate::fit::Task;

/// The batches of a run in the order of its steps.
pub(crate) struct Ahead<B> {
    batches: Receiver<(u64, Result<Vec<B>>)>,
}

impl<B: Send> Ahead<B> {
    /// Starts to make the batches of `steps`, in `n_parts` each. The thread ends when this value is dropped.
    pub fn start<'scope, T: Task<Batch = B>>(
        scope: &'scope Scope<'scope, '_>,
        task: &'scope T,
        steps: Range<u64>,
        n_parts: usize,
    ) -> Ahead<B>
    where
        B: 'scope,
    {
        let (sender, batches) = sync_channel(0); // one batch waits, in the thread
        scope.spawn(move || {
            for step in steps {
                if sender.send((step, whole(task, step, n_parts))).is_err() {
                    return; // nobody takes them any more
                }
            }
        });
        Ahead { batches }
    }

    /// The batch of update `step`. Each can be taken once, in their order.
    ///
    /// Do not call this on a rayon worker: the batch may need that worker, and both would wait for ever.
    ///
    /// # Errors
    /// If it could not be made.
    pub fn take(&self, step: u64) -> Result<Vec<B>> {
        let (made, batch) = self.batches.recv().context("the thread that makes batches has ended")?;
        ensure!(made == step, "the batch of step {made} was made, wanted that of step {step}");
        batch
    }
}

/// All parts of the batch of update `step`.
pub(crate) fn whole<T: Task>(task: &T, step: u64, n_parts: usize) -> Result<Vec<T::Batch>> {
    (0..n_parts).map(|part| task.batch(step, part)).collect()
}
