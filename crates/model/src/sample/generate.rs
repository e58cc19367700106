//! The drawing loop of one request, as an iterator of events.

use std::collections::VecDeque;

use super::{Batch, Event, Job, Picture, Request, Sampler};
use crate::dvae::Dvae;
use crate::error::Error;

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
    ) -> Result<Drawing<'a>, Error> {
        Drawing::of(sampler, dvae, Job::new(caption, request))
    }

    /// Starts to draw `job`.
    ///
    /// # Errors
    /// As for [`Drawing::new`].
    pub fn of(sampler: &'a Sampler, dvae: &'a Dvae, job: Job<'a>) -> Result<Drawing<'a>, Error> {
        let mut batch = Batch::new(sampler, dvae, job.rows().min(Batch::ROWS));
        batch.add(job).map_err(Error::request)?;
        Ok(Drawing { batch, queue: VecDeque::new() })
    }

    /// Draws the request to the end and returns its pictures: if they are ranked, the best first,
    /// else in the order of their numbers.
    ///
    /// # Errors
    /// If drawing fails.
    pub fn pictures(self) -> Result<Vec<Picture>, Error> {
        let picture = |event| match event {
            Ok(Event::Picture(picture)) => Some(Ok(picture)),
            Ok(Event::Tokens { .. } | Event::Preview(_)) => None,
            Err(error) => Some(Err(error)),
        };
        self.filter_map(picture).collect()
    }
}

impl Iterator for Drawing<'_> {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Result<Event, Error>> {
        while self.queue.is_empty() && !self.batch.is_empty() {
            match self.batch.step() {
                Ok(events) => self.queue.extend(events.into_iter().map(|(_, event)| event)),
                Err(error) => {
                    self.batch.clear();
                    return Some(Err(Error::internal(error)));
                }
            }
        }
        self.queue.pop_front().map(Ok)
    }
}
