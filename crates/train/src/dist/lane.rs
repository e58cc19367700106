//! Communication that goes on while a rank computes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};

use super::comm::Comm;
use super::trace::Trace;

/// How long a rank waits before it looks for other tasks to run.
const PAUSE: Duration = Duration::from_micros(50);

/// A piece of work for the thread of a lane.
type Job = Box<dyn FnOnce(&dyn Comm) + Send>;

/// A thread that communicates with a group of ranks. It does one piece of work after another, in the
/// order in which they were started, so ranks that start the same work in the same order agree.
#[derive(Debug)]
pub struct Lane {
    comm: Arc<dyn Comm>,
    /// Where work is sent to, and the thread that does it.
    thread: (Sender<Job>, JoinHandle<()>),
    /// The record of its work, and the name of its row in it.
    trace: Option<(Trace, &'static str)>,
}

/// Work that was started and may still be going on.
#[derive(Debug)]
pub struct Pending<T> {
    result: Receiver<Result<T>>,
    name: &'static str,
    trace: Option<Trace>,
}

impl Lane {
    /// Starts a thread for the group. It ends after its last work when the lane is dropped.
    pub fn new(comm: Arc<dyn Comm>) -> Lane {
        let (jobs, received) = channel::<Job>();
        let own = Arc::clone(&comm);
        let thread = thread::spawn(move || received.into_iter().for_each(|job| job(&*own)));
        Lane { comm, thread: (jobs, thread), trace: None }
    }

    /// Records the work of the lane in the row `track` of a trace.
    pub fn recorded(mut self, trace: Option<&Trace>, track: &'static str) -> Lane {
        self.trace = trace.map(|trace| (trace.clone(), track));
        self
    }

    /// Returns the number of this rank in the group, counted from 0.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// Returns the number of ranks in the group.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// Starts work, and does not wait for it. `name` is its name in the trace.
    pub fn start<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&dyn Comm) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let (done, result) = channel();
        let recorded = self.trace.clone();
        let job: Job = Box::new(move |comm| {
            let result = match recorded {
                Some((trace, track)) => trace.record(track, name, || work(comm)),
                None => work(comm),
            };
            let _ = done.send(result); // nobody may wait for it any more
        });
        // If the thread has panicked, waiting for the result is the error.
        let _ = self.thread.0.send(job);
        Pending { result, name, trace: self.trace.as_ref().map(|(trace, _)| trace.clone()) }
    }

    /// Does work after all that was started before, and returns its result.
    ///
    /// # Errors
    /// Those of the work.
    pub fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&dyn Comm) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.start(name, work).wait()
    }
}

impl Lane {
    /// Waits until all work is done and nothing uses the group any more. After a failure a lane is only
    /// dropped, because its thread may wait for ranks that will never answer.
    pub fn end(self) {
        let (jobs, thread) = self.thread;
        drop(jobs);
        let _ = thread.join(); // a panic was the error of the work
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
        match &self.trace {
            Some(trace) => trace.record_wait(self.name, || self.received()),
            None => self.received(),
        }
    }

    fn received(&self) -> Result<T> {
        loop {
            match self.result.recv_timeout(PAUSE) {
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
                .map(|i| lane.start("test", move |comm| comm.all_gather(&[comm.rank() as u64 * 100 + i])))
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
        let sum = pool.install(|| lane.run("test", move |_| Ok(inner.install(|| 1 + 1))));
        assert_eq!(sum.unwrap(), 2);
    }

    #[test]
    fn failed_and_panicked_work_is_an_error() {
        let lane = Lane::new(Arc::new(super::super::comm::Solo));
        let failed: Result<()> = lane.run("test", |_| bail!("rank 7 is gone"));
        assert_eq!(failed.unwrap_err().to_string(), "rank 7 is gone");
        let panicked: Result<()> = lane.run("test", |_| panic!("expected by this test"));
        assert!(panicked.unwrap_err().to_string().contains("communication between ranks failed"));
        assert!(lane.run("test", |_| Ok(())).is_err());
    }
}
