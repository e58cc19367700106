//! Messages between the processes that train one model together (paper §2.5, §E). Each process is a
//! *rank*, as in MPI, and all ranks make the same calls in the same order.
//!
//! A [`Comm`] only moves bytes. Sums are computed here, in f32 and in the order of the ranks, so a
//! sum has the same bits on every rank, whatever carries the bytes; weights stay equal without being
//! sent. A sum of `n` values is divided among the ranks: each adds up a part and sends it to all
//! others. A rank therefore sends and receives about `2 n` values, however many ranks there are.
//!
//! Tensors of a device go through the memory of the host. One rank is not a special case: for
//! [`Solo`], each of these functions returns what it was given.

use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use bytemuck::{Pod, cast_slice, pod_collect_to_vec, try_cast_slice};
use tessera_kernels::SmallFloat;

/// Sums of at most this many values are gathered as a whole, which needs one message instead of two.
const SHORT: usize = 2048;

/// The format of values in messages: f32, or a 16-bit format that they are rounded to.
pub type Wire = Option<SmallFloat>;

/// A group of ranks, as one of them sees it.
pub trait Comm: Send + Sync + Debug {
    /// Returns the number of this rank in the group, counted from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks in the group.
    fn size(&self) -> usize;

    /// Sends `parts[r]` to rank `r` and returns what each rank sent to this one, by rank.
    ///
    /// # Errors
    /// If a rank is gone, or does not answer in time. The message names it.
    fn exchange(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>>;

    /// Divides the group: ranks that pass the same `color` form a new group, in the same order.
    ///
    /// # Errors
    /// As for [`Comm::exchange`].
    fn split(&self, color: usize) -> Result<Arc<dyn Comm>>;
}

impl dyn Comm + '_ {
    /// Returns the `part` of every rank, by rank.
    ///
    /// # Errors
    /// As for [`Comm::exchange`].
    pub fn all_gather<T: Pod>(&self, part: &[T]) -> Result<Vec<Vec<T>>> {
        let parts = vec![cast_slice(part); self.size()];
        Ok(self.exchange(&parts)?.iter().map(|bytes| pod_collect_to_vec(bytes)).collect())
    }

    /// Returns the sum over all ranks of what they pass for this one: `parts[r]` is for rank `r`.
    ///
    /// # Errors
    /// As for [`Comm::exchange`], and if ranks passed different numbers of values.
    pub fn reduce_scatter(&self, parts: &[&[f32]], wire: Wire) -> Result<Vec<f32>> {
        let encoded: Vec<Cow<[u8]>> = parts.iter().map(|part| to_bytes(part, wire)).collect();
        let received = self.exchange(&encoded.iter().map(|part| &**part).collect::<Vec<_>>())?;
        self.added(&received, wire, parts[self.rank()].len())
    }

    /// Replaces `values` by their sum over all ranks. The sum is rounded to `wire`, too.
    ///
    /// # Errors
    /// As for [`Comm::reduce_scatter`].
    pub fn all_reduce(&self, values: &mut [f32], wire: Wire) -> Result<()> {
        if values.len() <= SHORT {
            let bytes = to_bytes(values, wire);
            let received = self.exchange(&vec![&*bytes; self.size()])?;
            let sum = self.added(&received, wire, values.len())?;
            values.copy_from_slice(&of_bytes(&to_bytes(&sum, wire), wire));
            return Ok(());
        }
        let ranges: Vec<Range<usize>> =
            (0..self.size()).map(|rank| part(values.len(), rank, self.size())).collect();
        let parts: Vec<&[f32]> = ranges.iter().map(|range| &values[range.clone()]).collect();
        let own = self.reduce_scatter(&parts, wire)?;
        let sums = self.exchange(&vec![&*to_bytes(&own, wire); self.size()])?;
        for (range, sum) in ranges.into_iter().zip(sums) {
            values[range].copy_from_slice(&of_bytes(&sum, wire));
        }
        Ok(())
    }

    /// Returns the `part` of every rank, by rank, on rank 0. Other ranks get nothing.
    ///
    /// # Errors
    /// As for [`Comm::exchange`].
    pub fn gather<T: Pod>(&self, part: &[T]) -> Result<Option<Vec<Vec<T>>>> {
        let mut parts = vec![cast_slice(part)];
        parts.resize(self.size(), &[]);
        let received = self.exchange(&parts)?;
        let all = || received.iter().map(|bytes| pod_collect_to_vec(bytes)).collect();
        Ok((self.rank() == 0).then(all))
    }

    /// Returns the bytes of rank `root`, which the other ranks do not pass.
    ///
    /// # Errors
    /// As for [`Comm::exchange`].
    pub fn broadcast(&self, root: usize, bytes: &[u8]) -> Result<Vec<u8>> {
        let sent = if self.rank() == root { bytes } else { &[] };
        Ok(self.exchange(&vec![sent; self.size()])?.swap_remove(root))
    }

    /// Returns whether `flag` is set on any rank.
    ///
    /// # Errors
    /// As for [`Comm::exchange`].
    pub fn any(&self, flag: bool) -> Result<bool> {
        Ok(self.all_gather(&[u8::from(flag)])?.concat().contains(&1))
    }

    /// Adds up what each rank sent, in the order of the ranks.
    fn added(&self, received: &[Vec<u8>], wire: Wire, len: usize) -> Result<Vec<f32>> {
        let mut sum = vec![0.0; len];
        for (rank, bytes) in received.iter().enumerate() {
            let values = of_bytes(bytes, wire);
            ensure!(
                values.len() == len,
                "rank {} of {} sums {len} values, and rank {rank} sent {}; start all ranks with the same program and config",
                self.rank(),
                self.size(),
                values.len()
            );
            sum.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
        }
        Ok(sum)
    }
}

/// Returns the part of `len` values that belongs to `rank`. Parts differ by at most one value.
pub fn part(len: usize, rank: usize, size: usize) -> Range<usize> {
    len * rank / size..len * (rank + 1) / size
}

fn to_bytes(values: &[f32], wire: Wire) -> Cow<'_, [u8]> {
    match wire {
        None => Cow::Borrowed(cast_slice(values)),
        Some(format) => values.iter().flat_map(|&value| format.encode(value).to_ne_bytes()).collect(),
    }
}

fn of_bytes(bytes: &[u8], wire: Wire) -> Cow<'_, [f32]> {
    match wire {
        // Received bytes are usually aligned.
        None => try_cast_slice(bytes).map_or_else(|_| Cow::Owned(pod_collect_to_vec(bytes)), Cow::Borrowed),
        Some(format) => {
            bytes.chunks_exact(2).map(|code| format.decode(u16::from_ne_bytes([code[0], code[1]]))).collect()
        }
    }
}

/// A group of one rank.
#[derive(Debug, Clone, Copy)]
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        Ok(parts.iter().map(|part| part.to_vec()).collect())
    }

    fn split(&self, _: usize) -> Result<Arc<dyn Comm>> {
        Ok(Arc::new(Solo))
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_ranks;
    use super::*;

    #[test]
    fn one_rank_keeps_its_values() {
        let solo: &dyn Comm = &Solo;
        let mut values = [1.0, -2.0];
        solo.all_reduce(&mut values, None).unwrap();
        assert_eq!((values, solo.size()), ([1.0, -2.0], 1));
        assert_eq!(solo.all_gather(&[3_u16]).unwrap(), [[3]]);
        assert_eq!(solo.reduce_scatter(&[&[4.0]], None).unwrap(), [4.0]);
        assert_eq!(solo.broadcast(0, &[5]).unwrap(), [5]);
        assert!(solo.any(true).unwrap() && !solo.any(false).unwrap());
    }

    /// Rounding makes sums of these depend on their order.
    fn value(rank: usize, i: usize) -> f32 {
        [0.1_f32, 1e8, -1e8, 0.3][(rank + i) % 4]
    }

    #[test]
    fn sums_of_any_length_have_the_same_bits_on_all_ranks() {
        for len in [0, 1, 3, SHORT, SHORT + 3] {
            let sums = on_ranks(4, |comm| {
                let mut values: Vec<f32> = (0..len).map(|i| value(comm.rank(), i)).collect();
                comm.all_reduce(&mut values, None).unwrap();
                values.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>()
            });
            let in_order = |i| (0..4).map(|rank| value(rank, i)).fold(0.0, |sum, value| sum + value);
            let expected: Vec<u32> = (0..len).map(|i| in_order(i).to_bits()).collect();
            assert!(sums.iter().all(|sum| *sum == expected), "{len} values");
        }
    }

    #[test]
    fn sums_in_16_bits_are_rounded_and_overflow_to_infinity() {
        let wire = Some(SmallFloat::OneSixNine);
        for len in [1, SHORT + 1] {
            let sums = on_ranks(3, |comm| {
                let mut values = vec![1.0 + 2.0_f32.powi(-11); len];
                values[0] = 6.0;
                comm.all_reduce(&mut values, wire).unwrap();
                values
            });
            assert!(sums.iter().all(|sum| sum[0].is_infinite() && sum[1..].iter().all(|&sum| sum == 3.0)));
        }
    }

    #[test]
    fn parts_are_summed_where_they_belong() {
        let sums = on_ranks(3, |comm| {
            let own = comm.rank() as f32;
            let parts = [vec![own], vec![10.0 * own, 1.0], vec![]];
            comm.reduce_scatter(&parts.each_ref().map(Vec::as_slice), None).unwrap()
        });
        assert_eq!(sums, [vec![3.0], vec![30.0, 3.0], vec![]]);
    }

    #[test]
    fn flags_and_bytes_reach_all_ranks() {
        let flags = |set: usize| on_ranks(3, |comm| comm.any(comm.rank() == set).unwrap());
        assert_eq!((flags(2), flags(3)), (vec![true; 3], vec![false; 3]));
        let texts =
            on_ranks(3, |comm| comm.broadcast(1, format!("from {}", comm.rank()).as_bytes()).unwrap());
        assert!(texts.iter().all(|text| text == b"from 1"));
        let gathered = on_ranks(3, |comm| comm.gather(&[comm.rank() as u16]).unwrap());
        assert_eq!(gathered, [Some(vec![vec![0], vec![1], vec![2]]), None, None]);
    }

    #[test]
    fn different_lengths_are_an_error_that_names_a_rank() {
        let errors = on_ranks(2, |comm| {
            comm.all_reduce(&mut vec![0.0; 1 + comm.rank()], None).unwrap_err().to_string()
        });
        assert!(errors[0].contains("rank 0 of 2 sums 1 values, and rank 1 sent 2"), "{errors:?}");
    }

    #[test]
    fn groups_exchange_independently() {
        let sums = on_ranks(6, |comm| {
            let group = comm.split(comm.rank() % 2).unwrap();
            let mut values = [comm.rank() as f32];
            group.all_reduce(&mut values, None).unwrap();
            (group.rank(), group.size(), values[0])
        });
        assert_eq!(sums, [(0, 3, 6.0), (0, 3, 9.0), (1, 3, 6.0), (1, 3, 9.0), (2, 3, 6.0), (2, 3, 9.0)]);
    }

    #[test]
    fn parts_cover_all_values_once() {
        for (len, size) in [(10, 3), (2, 4), (0, 2), (8, 8)] {
            let all: Vec<usize> = (0..size).flat_map(|rank| part(len, rank, size)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }
}
