//! Preparation of batches on a separate thread, ahead of the step that takes them.
//!
//! A batch is a pure function of its step, so it does not matter when it is made. While one batch
//! is differentiated, the next one is read, cropped or encoded. This keeps the GPU and the CPU's
//! cores busy.

use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use anyhow::{Context, Result, ensure};

use crate::slots::Slots;

/// Makes a micro-batch, given the update and the slots of the micro-batch.
type MakeBatch<'a, B> = &'a (dyn Fn(u64, Slots) -> Result<B> + Sync);

/// The batches of a run, in the order of its steps.
pub(crate) struct Prefetcher<B> {
    batches: Receiver<(u64, Result<Vec<B>>)>,
}

impl<B: Send> Prefetcher<B> {
    /// Starts a thread that makes the batches of `steps`, each in `parts`. The thread ends when this
    /// value is dropped.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        batch: MakeBatch<'scope, B>,
        steps: Range<u64>,
        parts: &'scope [Slots],
    ) -> Prefetcher<B>
    where
        B: 'scope,
    {
        let (sender, batches) = sync_channel(0); // the thread holds one finished batch
        scope.spawn(move || {
            for step in steps {
                if sender.send((step, make_parts(batch, step, parts))).is_err() {
                    return; // the receiver was dropped
                }
            }
        });
        Prefetcher { batches }
    }

    /// Waits for the batch of update `step` and returns it. Each batch can be taken once, in the
    /// order of the steps.
    ///
    /// Do not call this on a rayon worker: making the batch may need that worker, and the two would
    /// wait for each other forever.
    ///
    /// # Errors
    /// If the batch could not be made.
    pub fn take(&self, step: u64) -> Result<Vec<B>> {
        let (made, batch) = self.batches.recv().context("the thread that makes batches has ended")?;
        ensure!(made == step, "the batch of step {made} was made, wanted that of step {step}");
        batch
    }
}

/// Makes all parts of the batch of update `step`.
pub(crate) fn make_parts<B>(batch: MakeBatch<B>, step: u64, parts: &[Slots]) -> Result<Vec<B>> {
    parts.iter().map(|&part| batch(step, part)).collect()
}
