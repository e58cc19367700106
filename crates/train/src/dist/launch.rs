//! How a process finds the other ranks of its training.

use std::env;
use std::time::Duration;

use anyhow::{Result, ensure};

#[cfg(feature = "mpi")]
use super::mpi;
use super::world::World;

/// The ranks that one command started.
#[derive(Debug)]
pub enum Launch {
    /// This process alone.
    Solo,
    /// The processes that `mpirun` or `srun` started.
    #[cfg(feature = "mpi")]
    Processes(World, mpi::Processes),
}

/// The variables in which `mpirun` of OpenMPI and of MPICH tell a process how many were started.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Returns how many processes were started together with this one, if a launcher started it.
fn started() -> Option<usize> {
    let of_mpirun = SIZES.iter().find_map(|name| env::var(name).ok());
    // `srun` also starts programs that do not use MPI, with this variable alone.
    let of_srun = || env::var("PMIX_RANK").ok().and_then(|_| env::var("SLURM_NTASKS").ok());
    of_mpirun.or_else(of_srun)?.parse().ok()
}

impl Launch {
    /// Joins the other processes, and divides them into groups of `shards` neighbours that share the
    /// parameters: those of a machine if it is `None`. A rank waits for others for at most
    /// `patience`; if one does not answer, `report` gets the reason, and all are ended.
    ///
    /// # Errors
    /// If several processes were started and this program was built without MPI, or they cannot be
    /// divided.
    pub fn join(shards: Option<usize>, patience: Duration, report: fn(&str)) -> Result<Launch> {
        let Some(size) = started() else {
            ensure!(
                shards.is_none_or(|shards| shards == 1),
                "--node-size {}: there is one process; start several with mpirun or srun (docs/distributed.md)",
                shards.unwrap_or_default()
            );
            return Ok(Launch::Solo);
        };
        Launch::processes(size, shards, patience, report)
    }

    #[cfg(feature = "mpi")]
    fn processes(_: usize, shards: Option<usize>, patience: Duration, report: fn(&str)) -> Result<Launch> {
        let (ranks, processes) = mpi::Processes::join(patience, report)?;
        let world = World::new(ranks, shards.unwrap_or(processes.node_size))?;
        Ok(Launch::Processes(world, processes))
    }

    #[cfg(not(feature = "mpi"))]
    fn processes(size: usize, _: Option<usize>, _: Duration, _: fn(&str)) -> Result<Launch> {
        ensure!(
            size == 1,
            "{size} processes were started together, and this program was built without support for that: build it with \
             `--features mpi` (docs/distributed.md)"
        );
        Ok(Launch::Solo)
    }

    /// Returns all ranks.
    pub fn world(&self) -> &World {
        match self {
            Launch::Solo => World::solo(),
            #[cfg(feature = "mpi")]
            Launch::Processes(world, _) => world,
        }
    }

    /// Ends the communication after a training that has not failed. A process that fails does not call
    /// this: its launcher then ends the others.
    pub fn finish(self) {
        match self {
            Launch::Solo => {}
            #[cfg(feature = "mpi")]
            Launch::Processes(world, processes) => {
                drop(world);
                processes.finish();
            }
        }
    }
}
