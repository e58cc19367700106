//! A pool of captions and their KV cache. All candidates with the same caption share its entry; an
//! unused entry is kept until its place is needed.

use anyhow::{Context, Result};

use super::{PrefixCache, Sampler};

/// Captions are prefetched only up to this number per pass; a larger pass saves no more time.
const TOGETHER: usize = 16;

/// The place of one caption in the pool.
#[derive(Default)]
struct Place {
    tokens: Vec<u32>,
    /// The number of rows that use the caption. A place without users may be overwritten.
    users: usize,
    /// The time of the last request for it, counted in requests; 0 if there is no valid caption.
    asked: u64,
}

/// The captions, found by their tokens.
pub(super) struct PrefixPool {
    pub(super) states: PrefixCache,
    places: Vec<Place>,
    /// The places whose captions must be read before the next step.
    unread: Vec<usize>,
    /// The number of requests so far: the current time.
    asked: u64,
}

impl PrefixPool {
    /// A pool with places for `n` captions.
    pub(super) fn new(sampler: &Sampler, n: usize) -> PrefixPool {
        let places = (0..n).map(|_| Place::default()).collect();
        PrefixPool { states: sampler.new_prefix_cache(n), places, unread: Vec::new(), asked: 0 }
    }

    /// Returns the place of a caption and counts one more user. A new caption replaces the least
    /// recently requested one that has no users.
    ///
    /// # Errors
    /// If all places are in use.
    pub(super) fn take(&mut self, tokens: &[u32]) -> Result<usize> {
        let at = self.place(tokens).context("no room for another caption")?;
        self.places[at].users += 1;
        Ok(at)
    }

    /// Prefetches a caption that will be needed soon, if others must be read now: in the same pass
    /// it takes a third of the time.
    pub(super) fn expect(&mut self, tokens: &[u32]) {
        if (1..TOGETHER).contains(&self.unread.len()) {
            self.place(tokens);
        }
    }

    /// Finds the place of a caption, or assigns one; `None` if all are in use.
    fn place(&mut self, tokens: &[u32]) -> Option<usize> {
        self.asked += 1;
        let known = self.places.iter().position(|place| place.asked > 0 && place.tokens == tokens);
        let at = known.or_else(|| {
            let free = |&at: &usize| self.places[at].users == 0 && !self.unread.contains(&at);
            let at = (0..self.places.len()).filter(free).min_by_key(|&at| self.places[at].asked)?;
            self.places[at] = Place { tokens: tokens.to_vec(), users: 0, asked: 0 };
            self.unread.push(at);
            Some(at)
        })?;
        self.places[at].asked = self.asked;
        Some(at)
    }

    /// Counts one user less of a place.
    pub(super) fn give_back(&mut self, at: usize) {
        self.places[at].users -= 1;
    }

    /// Reads all new captions in one pass.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub(super) fn read(&mut self, sampler: &Sampler) -> Result<()> {
        if self.unread.is_empty() {
            return Ok(());
        }
        let unread = std::mem::take(&mut self.unread);
        let captions: Vec<&[u32]> = unread.iter().map(|&at| self.places[at].tokens.as_slice()).collect();
        let read = sampler.read_into(&mut self.states, &unread, &captions);
        if read.is_err() {
            // These places hold no valid captions.
            unread.iter().for_each(|&at| self.places[at].asked = 0);
        }
        read
    }
}
