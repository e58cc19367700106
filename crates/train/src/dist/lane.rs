//! Communication that goes on while a rank computes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::comm::Comm;

/// How long a rank waits before it looks for other tasks to run.
const PAUSE: Duration = Duration::from_micros(50);

/// A piece of work for the thread of a lane.
type Job = Box<dyn FnOnce(&dyn Comm) + Send>;

/// A thread that communicates with a group of ranks. It does one piece of work after another, in the
/// order in which they were started, so ranks that start the same work in the same order agree.
#[derive(Debug)]
pub struct Lane {
    comm: Arc<dyn Comm>,
    jobs: Sender<Job>,
}

/// Work that was started and may still be going on.
#[derive(Debug)]
pub struct Pending<T>(Receiver<Result<T>>);

impl Lane {
    /// Starts a thread for the group. It ends when the lane is dropped and its work is done.
    pub fn new(comm: Arc<dyn Comm>) -> Lane {
        let (jobs, received) = channel::<Job>();
        let own = Arc::clone(&comm);
        thread::spawn(move || received.into_iter().for_each(|job| job(&*own)));
        Lane { comm, jobs }
    }

    /// Returns the number of this rank in the group, counted from 0.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// Returns the number of ranks in the group.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// Starts work, and does not wait for it.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Comm) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (done, result) = channel();
        let job: Job = Box::new(move |comm| {
            let _ = done.send(work(comm)); // nobody may wait for it any more
        });
        // If the thread has panicked, waiting for the result is the error.
        let _ = self.jobs.send(job);
        Pending(result)
    }

    /// Does work after all that was started before, and returns its result.
    ///
    /// # Errors
    /// Those of the work.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Comm) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.start(work).wait()
    }
}

impl<T> Pending<T> {
    /// Waits until the work is done, and returns its result.
    ///
    /// # Errors
    /// Those of the work.
    ///
    /// On a worker of rayon, other tasks of the pool run in the meantime. The work itself may need
    /// them.
    pub fn wait(self) -> Result<T> {
        loop {
            match self.0.recv_timeout(PAUSE) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => while rayon::yield_now() == Some(rayon::Yield::Executed) {},
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("communication between ranks failed: it panicked")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_ranks;
    use super::*;

    #[test]
    fn work_is_done_in_order_while_others_wait() {
        let results = on_ranks(3, |comm| {
            let lane = Lane::new(comm);
            let started: Vec<_> = (0..50)
                .map(|i| lane.start(move |comm| comm.all_gather(&[comm.rank() as u64 * 100 + i])))
                .collect();
            started.into_iter().map(|pending| pending.wait().unwrap().concat()).collect::<Vec<_>>()
        });
        let expected: Vec<_> = (0..50).map(|i| vec![i, 100 + i, 200 + i]).collect();
        assert!(results.iter().all(|result| *result == expected));
    }

    /// The only worker of a pool waits for work that needs a worker.
    #[test]
    fn worker_that_waits_runs_tasks_of_the_work() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let lane = Lane::new(Arc::new(super::super::comm::Solo));
        let pool = Arc::new(pool);
        let inner = Arc::clone(&pool);
        let sum = pool.install(|| lane.run(move |_| Ok(inner.install(|| 1 + 1))));
        assert_eq!(sum.unwrap(), 2);
    }

    #[test]
    fn failed_and_panicked_work_is_an_error() {
        let lane = Lane::new(Arc::new(super::super::comm::Solo));
        let failed: Result<()> = lane.run(|_| bail!("rank 7 is gone"));
        assert_eq!(failed.unwrap_err().to_string(), "rank 7 is gone");
        let panicked: Result<()> = lane.run(|_| panic!("expected by this test"));
        assert!(panicked.unwrap_err().to_string().contains("communication between ranks failed"));
        assert!(lane.run(|_| Ok(())).is_err());
    }
}
