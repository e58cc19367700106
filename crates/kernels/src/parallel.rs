//! rayon's parallel loops with the caller's [`Cpu`] in force on every thread.
//!
//! The choice of instructions belongs to a thread, and rayon runs a closure on any thread. Code outside this crate that
//! runs kernels in parallel imports this module's traits in place of `rayon::prelude`: they have the same names, and
//! each closure that they take runs within the [`Cpu::scope`] of the thread that started the loop. A test of the
//! workspace (`tidy.rs`) forbids rayon's own there.

use std::io;
use std::thread::{self, JoinHandle};

use rayon::iter::{Map, ParallelIterator};

pub use rayon::current_num_threads;
pub use rayon::iter::{
    IndexedParallelIterator, IntoParallelIterator, IntoParallelRefIterator, IntoParallelRefMutIterator,
};
pub use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::Cpu;

/// Sets how many threads the pool has; once, before anything runs on it.
///
/// # Errors
/// If the pool is in use already.
pub fn set_num_threads(n: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new().num_threads(n).build_global()
}

/// `f` within the scope of the [`Cpu`] that is in force where this is called.
fn carried<T, R>(f: impl Fn(T) -> R + Sync + Send) -> impl Fn(T) -> R + Sync + Send {
    let cpu = Cpu::current();
    move |item| cpu.scope(|| f(item))
}

/// The methods of rayon's `ParallelIterator`, with the caller's [`Cpu`] on every thread.
pub trait Parallel: ParallelIterator {
    /// As rayon's.
    fn map<R: Send>(
        self,
        f: impl Fn(Self::Item) -> R + Sync + Send,
    ) -> Map<Self, impl Fn(Self::Item) -> R + Sync + Send> {
        ParallelIterator::map(self, carried(f))
    }

    /// As rayon's.
    fn for_each(self, f: impl Fn(Self::Item) + Sync + Send) {
        ParallelIterator::for_each(self, carried(f));
    }

    /// As rayon's, for results.
    fn try_for_each<E: Send>(self, f: impl Fn(Self::Item) -> Result<(), E> + Sync + Send) -> Result<(), E> {
        ParallelIterator::try_for_each(self, carried(f))
    }

    /// As rayon's.
    fn all(self, f: impl Fn(Self::Item) -> bool + Sync + Send) -> bool {
        ParallelIterator::all(self, carried(f))
    }

    /// As rayon's: the results, in order.
    fn collect<C: rayon::iter::FromParallelIterator<Self::Item>>(self) -> C {
        ParallelIterator::collect(self)
    }
}

impl<I: ParallelIterator> Parallel for I {}

/// rayon's `join`, with the caller's [`Cpu`] on both threads.
pub fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let cpu = Cpu::current();
    rayon::join(|| cpu.scope(a), || cpu.scope(b))
}

/// Starts a thread called `name` with the caller's [`Cpu`].
///
/// # Errors
/// If the system has no thread left.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let cpu = Cpu::current();
    thread::Builder::new().name(name.to_string()).spawn(move || cpu.scope(body))
}

/// Runs `body` on a thread of rayon's pool with the caller's [`Cpu`]; handing work to the pool's threads costs less
/// there than from outside.
pub fn in_pool<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    let cpu = Cpu::current();
    rayon::scope(|_| cpu.scope(body))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crate::Cpu;
    use crate::parallel::{IntoParallelIterator, Parallel, in_pool, join, spawn};

    /// The choice in force on this thread, which must not be the caller's.
    fn choice(caller: thread::ThreadId) -> Cpu {
        assert_ne!(thread::current().id(), caller, "nothing ran on rayon's threads");
        Cpu::current()
    }

    /// Loops that start on a thread outside the pool and, inside them, others that start on the pool's threads.
    #[test]
    fn f32_is_f32_on_every_thread() {
        let caller = thread::current().id();
        for cpu in Cpu::all() {
            cpu.scope(|| {
                let nested = |_| (0..8).into_par_iter().map(|_| choice(caller)).collect::<Vec<_>>();
                let found: Vec<Vec<Cpu>> = (0..8).into_par_iter().map(nested).collect();
                assert!(found.iter().flatten().all(|found| *found == cpu), "{cpu}: {found:?}");
                (0..8).into_par_iter().for_each(|_| assert_eq!(choice(caller), cpu));
                let tried = (0..8).into_par_iter().try_for_each(|_| match choice(caller) == cpu {
                    true => Ok(()),
                    false => Err(()),
                });
                assert_eq!(tried, Ok(()));
                assert!((0..8).into_par_iter().all(|_| choice(caller) == cpu));
                assert_eq!(join(|| choice(caller), || choice(caller)), (cpu, cpu));
                assert_eq!(in_pool(|| choice(caller)), cpu);
                assert_eq!(spawn("own", move || choice(caller)).unwrap().join().unwrap(), cpu);
            });
        }
    }
}
