//! How a training run and the program that started it communicate.

use std::sync::atomic::AtomicBool;

use tessera_base::Reporter;

/// What a training run is given by the program that started it.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Set to `true` to make the run save a checkpoint and end.
    pub stop: &'a AtomicBool,
    /// Receives messages and progress.
    pub reporter: &'a dyn Reporter,
}
