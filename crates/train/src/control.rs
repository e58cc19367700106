//! The interface between a training run and the program that started it.

use std::sync::atomic::AtomicBool;

use tessera_base::Reporter;

/// What the program that starts a training run passes to it.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// When this becomes `true`, the run saves a checkpoint and ends.
    pub stop: &'a AtomicBool,
    /// Whether the model file gets the last weights even if earlier ones are better on held-out
    /// data ([`Best`](crate::best::Best)).
    pub last: bool,
    /// Receives messages and progress.
    pub reporter: &'a dyn Reporter,
}
