//! The drawing loop of one request, as an iterator of events.

use std::collections::VecDeque;

use anyhow::Result;

use super::{Batch, Event, Job, Request, Sampler};
use crate::dvae::Dvae;

/// An iterator over the events of a request.
pub struct Drawing<'a> {
    batch: Batch<'a>,
    queue: VecDeque<Event>,
}

impl<'a> Drawing<'a> {
    /// Starts to draw `request.n` pictures of the caption whose BPE tokens are `caption`.
    ///
    /// # Errors
    /// If a sampling parameter is out of range, `n` is 0, or the given tokens do not fit the model.
    pub fn new(
        sampler: &'a Sampler,
        dvae: &'a Dvae,
        caption: &[u32],
        request: Request,
    ) -> Result<Drawing<'a>> {
        Drawing::of(sampler, dvae, Job::new(caption, request))
    }

    /// Starts to draw `job`.
    ///
    /// # Errors
    /// As for [`Drawing::new`].
    pub fn of(sampler: &'a Sampler, dvae: &'a Dvae, job: Job<'a>) -> Result<Drawing<'a>> {
        let mut batch = Batch::new(sampler, dvae, job.rows().min(Batch::ROWS));
        batch.add(job)?;
        Ok(Drawing { batch, queue: VecDeque::new() })
    }
}

impl Iterator for Drawing<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        while self.queue.is_empty() && !self.batch.is_empty() {
            match self.batch.step() {
                Ok(events) => self.queue.extend(events.into_iter().map(|(_, event)| event)),
                Err(error) => {
                    self.batch.clear();
                    return Some(Err(error));
                }
            }
        }
        self.queue.pop_front().map(Ok)
    }
}
