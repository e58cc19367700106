//! Ranks that are processes started by `mpirun` or `srun`.
//!
//! Messages are sent and received by calls that return at once: one at a time, from any thread. Waiting
//! is a loop of such calls with a deadline. Only joining, dividing and ending wait inside the library. So two threads can communicate with two groups at the same time,
//! with any MPI library that allows calls from several threads in turn.

use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytemuck::cast_slice;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source};
use mpi::request::{self, Request};
use mpi::topology::{Color, Communicator, SimpleCommunicator};

use super::comm::Comm;

/// How long a rank polls without pausing. Messages between processes of a machine take less.
const BUSY: Duration = Duration::from_micros(200);
/// The pause between two polls after that.
const PAUSE: Duration = Duration::from_micros(50);

/// Held during a call of the library.
static CALLS: Mutex<()> = Mutex::new(());

fn call() -> MutexGuard<'static, ()> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the user why all ranks end.
pub(crate) type Report = fn(&str);

/// The processes that one command started.
pub struct Processes {
    /// The number of ranks of each machine.
    pub node_size: usize,
    /// Ending the communication waits for all processes, so one that fails must not do it.
    universe: ManuallyDrop<Universe>,
}

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} ranks per machine", self.node_size)
    }
}

impl Processes {
    /// Joins the processes that `mpirun` or `srun` started together with this one. A rank waits for
    /// the others for at most `patience`. `report` gets the reason before all of them are ended.
    ///
    /// # Errors
    /// If the library cannot be used from threads, or machines have different numbers of ranks.
    pub fn join(patience: Duration, report: Report) -> Result<(Arc<dyn Comm>, Processes)> {
        let (universe, threading) =
            mpi::initialize_with_threading(Threading::Serialized).context("MPI was initialized twice")?;
        ensure!(
            threading == Threading::Serialized || threading == Threading::Multiple,
            "this MPI library allows calls from one thread only; use one that supports MPI_THREAD_SERIALIZED"
        );
        let world = universe.world();
        let ranks: Arc<dyn Comm> =
            Arc::new(Mpi::new(world.duplicate(), (0..world.size() as usize).collect(), patience, report));
        let own = world.split_shared(world.rank()).size() as u64;
        let sizes = ranks.all_gather(&[own])?.concat();
        ensure!(
            sizes.iter().all(|&size| size == sizes[0]),
            "machines have different numbers of ranks ({sizes:?} by rank); start equally many on each, or use --node-size"
        );
        Ok((ranks, Processes { node_size: own as usize, universe: ManuallyDrop::new(universe) }))
    }

    /// Ends the communication after all ranks have finished.
    pub fn finish(self) {
        let _call = call();
        drop(ManuallyDrop::into_inner(self.universe));
    }
}

/// A group of processes, as one of them sees it.
struct Mpi {
    group: SimpleCommunicator,
    /// The numbers of the group's ranks among all ranks.
    members: Vec<usize>,
    rank: usize,
    size: usize,
    patience: Duration,
    report: Report,
}

// SAFETY: a communicator is a handle. The library was initialized for calls from several threads in
// turn. Each call holds `CALLS`, except that which frees the communicator, after its lane has ended.
#[allow(unsafe_code)]
unsafe impl Send for Mpi {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Mpi {}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.size)
    }
}

impl Mpi {
    fn new(group: SimpleCommunicator, members: Vec<usize>, patience: Duration, report: Report) -> Mpi {
        let (rank, size) = (group.rank() as usize, group.size() as usize);
        Mpi { group, members, rank, size, patience, report }
    }

    /// Sends `sent[r]` to rank `r` and fills `received[r]` with what it sends. Empty messages, and
    /// this rank's own, are not sent.
    fn transfer(&self, sent: &[&[u8]], received: &mut [&mut [u8]]) {
        let is_remote = |rank: usize, len: usize| rank != self.rank && len > 0;
        request::scope(|scope| {
            let mut open: Vec<(usize, Request<'_, [u8], _>)> = Vec::new();
            for (rank, part) in
                received.iter_mut().enumerate().filter(|(rank, part)| is_remote(*rank, part.len()))
            {
                let _call = call();
                let peer = self.group.process_at_rank(rank as i32);
                open.push((rank, peer.immediate_receive_into(scope, &mut **part)));
            }
            for (rank, part) in sent.iter().enumerate().filter(|(rank, part)| is_remote(*rank, part.len())) {
                let _call = call();
                let peer = self.group.process_at_rank(rank as i32);
                open.push((rank, peer.immediate_send(scope, *part)));
            }
            let start = Instant::now();
            loop {
                open = open
                    .into_iter()
                    .filter_map(|(rank, request)| {
                        let _call = call();
                        request.test().err().map(|request| (rank, request))
                    })
                    .collect();
                if open.is_empty() {
                    break;
                }
                match start.elapsed() {
                    waited if waited > self.patience => {
                        self.give_up(open.iter().map(|(rank, _)| *rank).collect())
                    }
                    waited if waited > BUSY => thread::sleep(PAUSE),
                    _ => thread::yield_now(),
                }
            }
        });
    }

    /// Ends all ranks, because some did not answer. Nothing else can be done with messages that are
    /// on their way.
    fn give_up(&self, silent: Vec<usize>) -> ! {
        let mut silent: Vec<usize> = silent.into_iter().map(|rank| self.members[rank]).collect();
        silent.sort_unstable();
        silent.dedup();
        (self.report)(&format!(
            "error: waited {:?} for ranks {silent:?}: they are gone, or slower than that (--patience)",
            self.patience
        ));
        let _call = call();
        self.group.abort(1)
    }
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        ensure!(
            parts.iter().all(|part| i32::try_from(part.len()).is_ok()),
            "a message of {:?} bytes is longer than MPI allows; use more ranks",
            parts.iter().map(|part| part.len()).max()
        );
        let lengths: Vec<[u64; 1]> = parts.iter().map(|part| [part.len() as u64]).collect();
        let lengths: Vec<&[u8]> = lengths.iter().map(|length| cast_slice(length)).collect();
        let mut theirs = vec![[0_u8; 8]; self.size];
        self.transfer(&lengths, &mut theirs.iter_mut().map(<[u8; 8]>::as_mut_slice).collect::<Vec<_>>());
        theirs[self.rank] = [0; 8];
        let mut received: Vec<Vec<u8>> =
            theirs.iter().map(|length| vec![0; u64::from_ne_bytes(*length) as usize]).collect();
        self.transfer(parts, &mut received.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        received[self.rank] = parts[self.rank].to_vec();
        Ok(received)
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Comm>> {
        let own = [color as u64, self.members[self.rank] as u64];
        let all = (self as &dyn Comm).all_gather(&own)?;
        let members = all.iter().filter(|member| member[0] == color as u64).map(|member| member[1] as usize);
        let _call = call();
        let color = i32::try_from(color).context("a group's number is too large for MPI")?;
        let group = self.group.split_by_color(Color::with_value(color)).context("MPI made no group")?;
        Ok(Arc::new(Mpi::new(group, members.collect(), self.patience, self.report)))
    }
}
