//! Sums over workers (paper §2.5, §E.2), which replicas of a model need after each backward pass.
//!
//! Training needs only sums, and does not depend on the number of workers or on where they run. One
//! worker is not a special case. A sum has the same bits on all workers, so that their weights stay
//! equal without being sent.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};

/// The communication of one worker with the others. Each worker has one replica of the model, and
/// all workers make the same calls in the same order.
pub trait Comm: Sync {
    /// Returns the number of workers (the world size).
    fn size(&self) -> usize;

    /// Replaces `values` by their element-wise sum over all workers, with the same bits on each.
    ///
    /// # Errors
    /// If another worker is gone, or passed a different number of values.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// Returns whether `flag` is set on any worker.
    ///
    /// # Errors
    /// As for [`Comm::sum`].
    fn any(&self, flag: bool) -> Result<bool> {
        let mut count = [f32::from(flag)];
        self.sum(&mut count)?;
        Ok(count[0] > 0.0)
    }
}

/// A single worker, for which each sum is its own values.
#[derive(Debug, Clone, Copy)]
pub struct Solo;

impl Comm for Solo {
    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }
}

/// One of several workers in this process, each on its own thread. When one is dropped, the calls
/// of the others fail instead of waiting for it.
#[derive(Debug)]
pub struct Member {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// What the members of a group share.
#[derive(Debug)]
struct Meeting {
    state: Mutex<Exchange>,
    changed: Condvar,
}

/// The state of the current sum.
#[derive(Debug)]
struct Exchange {
    /// The values of each member, by rank, if it has called [`Comm::sum`] in this round.
    parts: Vec<Option<Vec<f32>>>,
    /// The sum of the last round. It stays until all members have called again, so that each has
    /// read it.
    sum: Vec<f32>,
    /// The number of finished sums.
    round: u64,
    /// Whether a member was dropped, or passed a different number of values.
    ended: bool,
}

impl Member {
    /// Makes a group of `size` members.
    pub fn group(size: usize) -> Vec<Member> {
        let state = Exchange { parts: vec![None; size], sum: Vec::new(), round: 0, ended: false };
        let meeting = Arc::new(Meeting { state: Mutex::new(state), changed: Condvar::new() });
        (0..size).map(|rank| Member { rank, meeting: Arc::clone(&meeting) }).collect()
    }
}

impl Comm for Member {
    fn size(&self) -> usize {
        self.meeting.lock().parts.len()
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let mut state = self.meeting.lock();
        let round = state.round;
        let added = state.add(self.rank, values);
        if state.ended || state.round != round {
            self.meeting.changed.notify_all();
        }
        added?;
        let waiting = |state: &mut Exchange| state.round == round && !state.ended;
        let wait = self.meeting.changed.wait_while(state, waiting);
        let state = wait.unwrap_or_else(PoisonError::into_inner);
        ensure!(state.round != round, "worker {}: another worker is gone", self.rank);
        values.copy_from_slice(&state.sum);
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.meeting.lock().ended = true;
        self.meeting.changed.notify_all();
    }
}

impl Meeting {
    /// Ignores poisoning: a panic of another thread leaves the state consistent, and ends the group
    /// in any case.
    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exchange {
    /// Stores the values of the member `rank`. The last member completes the round.
    fn add(&mut self, rank: usize, values: &[f32]) -> Result<()> {
        if let Some(other) = self.parts.iter().flatten().find(|part| part.len() != values.len()) {
            let other = other.len();
            self.ended = true;
            bail!("worker {rank}: {} values to sum, and another worker has {other}", values.len());
        }
        self.parts[rank] = Some(values.to_vec());
        if !self.ended && self.parts.iter().all(Option::is_some) {
            self.sum = vec![0.0; values.len()];
            // In the order of ranks, not of arrival: sums of floats depend on their order.
            for part in self.parts.iter_mut().filter_map(Option::take) {
                self.sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
            }
            self.round += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `body` on a thread for each of `size` members. Returns the results by rank.
    pub(crate) fn on_workers<T: Send>(size: usize, body: impl Fn(usize, &Member) -> T + Sync) -> Vec<T> {
        let body = &body;
        std::thread::scope(|scope| {
            let start = |member: Member| scope.spawn(move || body(member.rank, &member));
            let threads: Vec<_> = Member::group(size).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sum_of_one_worker_is_its_values() {
        let mut values = [1.0, -2.0];
        Solo.sum(&mut values).unwrap();
        assert_eq!((values, Solo.size()), ([1.0, -2.0], 1));
        assert!(Solo.any(true).unwrap() && !Solo.any(false).unwrap());
    }

    #[test]
    fn all_members_get_the_same_bits_in_every_round() {
        let part = |rank: usize, round: usize| [0.1_f32, 1e8, -1e8, 0.3][(rank + round) % 4];
        let sums = on_workers(4, |rank, member| {
            let round = |round| {
                let mut values = [part(rank, round), rank as f32];
                member.sum(&mut values).unwrap();
                values.map(f32::to_bits)
            };
            (0..200).map(round).collect::<Vec<_>>()
        });
        assert!(sums.iter().all(|other| *other == sums[0]));
        for (round, sum) in sums[0].iter().enumerate() {
            let by_rank = (0..4).map(|rank| part(rank, round)).fold(0.0, |sum, part| sum + part);
            assert_eq!(*sum, [by_rank, 6.0].map(f32::to_bits));
        }
    }

    #[test]
    fn flag_of_one_member_is_known_to_all() {
        let flags = |set: Option<usize>| on_workers(3, |rank, member| member.any(Some(rank) == set).unwrap());
        assert_eq!(flags(Some(2)), [true; 3]);
        assert_eq!(flags(None), [false; 3]);
    }

    #[test]
    fn dropped_member_makes_the_others_fail() {
        let mut members = Member::group(3);
        let gone = members.pop();
        std::thread::scope(|scope| {
            let sum = |member: &Member| member.sum(&mut [1.0]).unwrap_err().to_string();
            let threads: Vec<_> = members.iter().map(|member| scope.spawn(move || sum(member))).collect();
            drop(gone);
            for thread in threads {
                assert!(thread.join().unwrap().contains("another worker is gone"));
            }
        });
    }

    #[test]
    fn members_with_different_lengths_all_fail() {
        let errors =
            on_workers(2, |rank, member| member.sum(&mut vec![0.0; 1 + rank]).unwrap_err().to_string());
        assert!(
            errors.iter().any(|error| error.contains("values to sum, and another worker has")),
            "{errors:?}"
        );
    }
}
