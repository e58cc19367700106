//! All ranks of a training, and the two groups that each of them belongs to (paper §2.5).
//!
//! The ranks of a machine share one copy of the parameters: each holds a *shard* of every parameter.
//! The machines hold *replicas* of each other. So a rank sends parameters and gradients to the ranks
//! of its machine, the shard group, and sums of gradients to the ranks of other machines that hold
//! the same shard, the replica group.

use std::sync::{Arc, LazyLock};

use anyhow::{Result, ensure};

use super::comm::{Comm, Solo};
use super::lane::Lane;
use super::trace::{COMPUTE, Trace};

/// All ranks, as one of them sees them.
#[derive(Debug)]
pub struct World {
    /// All ranks. The ranks of a shard group are neighbours.
    pub all: Lane,
    /// The ranks that share a copy of the parameters with this one.
    pub shards: Lane,
    /// The ranks that hold the same shard as this one.
    pub replicas: Lane,
    /// The number of ranks on this machine.
    pub here: usize,
    /// The record of what this rank does, if one is kept.
    pub trace: Option<Trace>,
}

impl World {
    /// The world of a single process.
    pub fn solo() -> &'static World {
        static SOLO: LazyLock<World> = LazyLock::new(|| {
            let solo = || Lane::new(Arc::new(Solo));
            World { all: solo(), shards: solo(), replicas: solo(), here: 1, trace: None }
        });
        &SOLO
    }

    /// Divides all ranks into shard groups of `shards` neighbours. Their work is recorded in `trace`.
    ///
    /// # Errors
    /// If the ranks cannot be divided evenly, or one of them is gone.
    pub fn new(all: Arc<dyn Comm>, shards: usize, trace: Option<Trace>) -> Result<World> {
        let (rank, size) = (all.rank(), all.size());
        ensure!(
            shards > 0 && size.is_multiple_of(shards),
            "{size} ranks cannot form groups of {shards}: wanted a divisor of {size}"
        );
        let shard_group = all.split(rank / shards)?;
        let replica_group = all.split(rank % shards)?;
        let lane = |group, track| Lane::new(group).recorded(trace.as_ref(), track);
        Ok(World {
            all: lane(all, "all ranks"),
            shards: lane(shard_group, "shard group"),
            replicas: lane(replica_group, "replica group"),
            here: 1,
            trace,
        })
    }

    /// Ends the communication after a training that has not failed.
    pub fn end(self) {
        [self.shards, self.replicas, self.all].into_iter().for_each(Lane::end);
    }

    /// Returns whether this rank writes what one rank writes for all.
    pub fn is_first(&self) -> bool {
        self.all.rank() == 0
    }

    /// Runs `work` and records it as computation.
    pub fn recorded<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        match &self.trace {
            Some(trace) => trace.record(COMPUTE, name, work),
            None => work(),
        }
    }

    /// Waits until all ranks have called this. Returns whether `flag` was set on any of them.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn any(&self, flag: bool) -> Result<bool> {
        self.all.run("flags", move |comm| comm.any(flag))
    }

    /// Returns an error if `what` differs between ranks. `what` names it; `value` is this rank's.
    ///
    /// # Errors
    /// If it differs. Each rank's error names the first rank that differs from rank 0.
    pub fn ensure_same(&self, what: &str, value: &str) -> Result<()> {
        let own = value.as_bytes().to_vec();
        let values = self.all.run("settings", move |comm| comm.all_gather(&own))?;
        if let Some(other) = values.iter().position(|value| *value != values[0]) {
            let [first, theirs] = [0, other].map(|rank| String::from_utf8_lossy(&values[rank]));
            let line = first.lines().zip(theirs.lines()).find(|(a, b)| a != b);
            let (first, theirs) = line.unwrap_or((&first, &theirs));
            anyhow::bail!(
                "{what} differs: rank {other} has {theirs:?}, rank 0 has {first:?}; start all ranks with the same program, \
                 flags and files"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_ranks;
    use super::*;

    #[test]
    fn neighbours_share_parameters_and_equal_places_are_replicas() {
        let groups = on_ranks(6, |comm| {
            let world = World::new(comm, 2, None).unwrap();
            let place = world.all.rank() as u64;
            let members =
                |lane: &Lane| lane.run("places", move |comm| comm.all_gather(&[place])).unwrap().concat();
            (members(&world.shards), members(&world.replicas))
        });
        assert_eq!(groups[0], (vec![0, 1], vec![0, 2, 4]));
        assert_eq!(groups[3], (vec![2, 3], vec![1, 3, 5]));
        let errors = on_ranks(3, |comm| World::new(comm, 2, None).unwrap_err().to_string());
        assert!(errors[0].contains("3 ranks cannot form groups of 2"), "{errors:?}");
    }

    #[test]
    fn different_settings_are_an_error_that_names_the_rank_and_the_line() {
        let errors = on_ranks(3, |comm| {
            let text = if comm.rank() == 2 { "a = 1\nlr = 3" } else { "a = 1\nlr = 4" };
            World::new(comm, 1, None).unwrap().ensure_same("the config", text).unwrap_err().to_string()
        });
        for error in errors {
            assert!(
                error.contains("the config differs: rank 2 has \"lr = 3\", rank 0 has \"lr = 4\""),
                "{error}"
            );
        }
        let solo = World::solo();
        assert!(solo.is_first() && solo.ensure_same("the config", "x").is_ok());
    }
}
