//! Captions that have been read, shared by all candidates that have the same one, and kept until their room is needed.

use anyhow::{Context, Result};

use super::{PrefixCache, Sampler};

/// Captions beyond which reading more of them together is no faster.
const TOGETHER: usize = 16;

/// A caption's place.
#[derive(Default)]
struct Place {
    tokens: Vec<u32>,
    /// Candidates that look at it; one that has none may be overwritten.
    users: usize,
    /// When it was last asked for; 0 if never.
    asked: u64,
}

/// Read captions by their tokens.
pub(super) struct PrefixPool {
    pub(super) states: PrefixCache,
    places: Vec<Place>,
    /// Places whose caption is to be read before the next step.
    unread: Vec<usize>,
    asked: u64,
}

impl PrefixPool {
    /// Room for `n` captions at once.
    pub(super) fn new(sampler: &Sampler, n: usize) -> PrefixPool {
        let places = (0..n).map(|_| Place::default()).collect();
        PrefixPool { states: sampler.new_prefix_cache(n), places, unread: Vec::new(), asked: 0 }
    }

    /// The place of a caption, for one more user; what nobody uses makes room for it, the longest unused first.
    ///
    /// # Errors
    /// If all places are in use.
    pub(super) fn take(&mut self, tokens: &[u32]) -> Result<usize> {
        let at = self.place(tokens).context("no room for another caption")?;
        self.places[at].users += 1;
        Ok(at)
    }

    /// Has a caption that will be needed soon read with those that are needed now, if there are any: together it takes a third of the time.
    pub(super) fn expect(&mut self, tokens: &[u32]) {
        if (1..TOGETHER).contains(&self.unread.len()) {
            self.place(tokens);
        }
    }

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

    /// One user less.
    pub(super) fn give_back(&mut self, at: usize) {
        self.places[at].users -= 1;
    }

    /// Reads what was taken since, all together.
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
            // Nobody may take them for read.
            unread.iter().for_each(|&at| self.places[at].asked = 0);
        }
        read
    }
}
