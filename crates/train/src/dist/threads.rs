//! Ranks that are threads of one process, for tests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::comm::Comm;

/// One of several ranks in this process, each on its own thread. When one is dropped, the calls of
/// the others fail instead of waiting for it.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    size: usize,
    room: Arc<Room>,
    /// How long a rank waits for the others.
    patience: Duration,
}

/// What the ranks of a group share.
#[derive(Debug, Default)]
struct Room {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Messages on their way, by sender and receiver.
    mail: HashMap<(usize, usize), VecDeque<Vec<u8>>>,
    /// The ranks that were dropped.
    gone: Vec<usize>,
    /// The groups into which this one was divided, by color and number of the division.
    groups: HashMap<(usize, usize), Arc<Room>>,
    /// The number of divisions in which each rank took part.
    divisions: HashMap<usize, usize>,
}

impl Room {
    /// Ignores poisoning: the panic of another thread leaves the state consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Threads {
    /// Makes a group of `size` ranks, which wait for each other for at most `patience`.
    pub fn group(size: usize, patience: Duration) -> Vec<Threads> {
        let room = Arc::<Room>::default();
        (0..size).map(|rank| Threads { rank, size, room: Arc::clone(&room), patience }).collect()
    }

    /// Waits for the next message of each rank.
    fn receive(&self) -> Result<Vec<Vec<u8>>> {
        let start = Instant::now();
        let mut state = self.room.lock();
        loop {
            let missing: Vec<usize> = (0..self.size)
                .filter(|&from| state.mail.get(&(from, self.rank)).is_none_or(VecDeque::is_empty))
                .collect();
            if missing.is_empty() {
                let next = |from| state.mail.get_mut(&(from, self.rank)).and_then(VecDeque::pop_front);
                return Ok((0..self.size).filter_map(next).collect());
            }
            if let Some(gone) = missing.iter().find(|rank| state.gone.contains(rank)) {
                bail!("rank {}: rank {gone} is gone", self.rank);
            }
            let Some(left) = self.patience.checked_sub(start.elapsed()) else {
                bail!("rank {}: no answer from {missing:?} within {:?}", self.rank, self.patience);
            };
            let waited = self.room.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Comm for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let mut state = self.room.lock();
        for (to, part) in parts.iter().enumerate() {
            state.mail.entry((self.rank, to)).or_default().push_back(part.to_vec());
        }
        drop(state);
        self.room.changed.notify_all();
        self.receive()
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Comm>> {
        let colors = (self as &dyn Comm).all_gather(&[color as u64])?.concat();
        let own: Vec<usize> = (0..self.size).filter(|&rank| colors[rank] == color as u64).collect();
        let mut state = self.room.lock();
        let division = state.divisions.entry(self.rank).or_default();
        let key = (color, *division);
        *division += 1;
        let room = Arc::clone(state.groups.entry(key).or_default());
        let rank = own.iter().position(|&rank| rank == self.rank).unwrap_or_default();
        Ok(Arc::new(Threads { rank, size: own.len(), room, patience: self.patience }))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.room.lock().gone.push(self.rank);
        self.room.changed.notify_all();
    }
}

/// Runs `body` on a thread for each of `size` ranks. Returns the results by rank.
///
/// Each rank has a pool of its own, as a process has. In a common pool, a worker that waits for another
/// rank could begin to run that rank's task on top of its own, and both would wait forever.
///
/// # Panics
/// If a body panics.
#[cfg(test)]
pub(crate) fn on_ranks<T: Send>(size: usize, body: impl Fn(Arc<dyn Comm>) -> T + Sync) -> Vec<T> {
    let body = &body;
    let run = move |rank: Threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads can be started");
        pool.install(|| body(Arc::new(rank)))
    };
    std::thread::scope(|scope| {
        let ranks = Threads::group(size, Duration::from_secs(60)).into_iter();
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_rank_makes_the_others_fail() {
        let mut ranks = Threads::group(3, Duration::from_secs(60));
        let gone = ranks.pop();
        std::thread::scope(|scope| {
            let sum = |rank: &Threads| (rank as &dyn Comm).any(true).unwrap_err().to_string();
            let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(move || sum(rank))).collect();
            drop(gone);
            for thread in threads {
                assert!(thread.join().unwrap().contains("rank 2 is gone"));
            }
        });
    }

    #[test]
    fn silent_rank_is_named_when_the_time_is_over() {
        let ranks = Threads::group(2, Duration::from_millis(20));
        let error = (&ranks[0] as &dyn Comm).any(true).unwrap_err().to_string();
        assert!(error.contains("rank 0: no answer from [1] within 20ms"), "{error}");
    }
}
