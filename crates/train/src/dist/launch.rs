//! How a process finds the other ranks of its training.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::comm::Solo;
#[cfg(feature = "mpi")]
use super::mpi;
use super::trace::Trace;
use super::world::World;

/// The ranks that one command started.
#[derive(Debug)]
pub struct Launch {
    /// All ranks.
    pub world: World,
    /// The processes that `mpirun` or `srun` started.
    #[cfg(feature = "mpi")]
    processes: Option<mpi::Processes>,
}

/// How ranks find each other and work together.
#[derive(Debug, Clone, Copy)]
pub struct LaunchOptions {
    /// How many neighbours share the parameters; those of a machine if it is `None`.
    pub shards: Option<usize>,
    /// How long a rank waits for others.
    pub patience: Duration,
    /// Whether to record what a rank does.
    pub is_traced: bool,
    /// Gets the reason before all ranks are ended because one does not answer.
    pub report: fn(&str),
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
    /// Joins the other processes, and divides them into groups that share the parameters.
    ///
    /// # Errors
    /// If several processes were started and this program was built without MPI, or they cannot be
    /// divided.
    pub fn join(options: LaunchOptions) -> Result<Launch> {
        match started() {
            Some(size) => Launch::processes(size, options),
            None => Launch::solo(options),
        }
    }

    fn solo(LaunchOptions { shards, is_traced, .. }: LaunchOptions) -> Result<Launch> {
        ensure!(
            shards.is_none_or(|shards| shards == 1),
            "--node-size {}: there is one process; start several with mpirun or srun (docs/distributed.md)",
            shards.unwrap_or_default()
        );
        Ok(Launch {
            world: World::new(Arc::new(Solo), 1, is_traced.then(Trace::default))?,
            #[cfg(feature = "mpi")]
            processes: None,
        })
    }

    #[cfg(feature = "mpi")]
    fn processes(size: usize, options: LaunchOptions) -> Result<Launch> {
        let LaunchOptions { shards, patience, is_traced, report } = options;
        let (ranks, processes) = mpi::Processes::join(patience, report)?;
        ensure!(
            ranks.size() == size,
            "{size} processes were started, and this program's MPI library found {}: start it with the mpirun of that library",
            ranks.size()
        );
        let shards = shards.unwrap_or(processes.node_size);
        let world = World::new(ranks, shards, is_traced.then(Trace::default))?;
        let world = World { here: processes.node_size, ..world };
        Ok(Launch { world, processes: Some(processes) })
    }

    #[cfg(not(feature = "mpi"))]
    fn processes(size: usize, options: LaunchOptions) -> Result<Launch> {
        ensure!(
            size == 1,
            "{size} processes were started together, and this program was built without support for that: build it with \
             `--features mpi` (docs/distributed.md)"
        );
        Launch::solo(options)
    }

    /// Ends the communication after a training that has not failed. A process that fails does not call
    /// this: its launcher then ends the others.
    pub fn finish(self) {
        let (world, ending) = self.parts();
        world.end();
        ending.finish();
    }

    /// Returns the ranks, for a world that lasts until the process ends, and what ends the
    /// communication.
    pub fn parts(self) -> (World, Ending) {
        #[cfg(feature = "mpi")]
        return (self.world, Ending(self.processes));
        #[cfg(not(feature = "mpi"))]
        (self.world, Ending())
    }
}

/// Ends the communication.
#[derive(Debug)]
pub struct Ending(#[cfg(feature = "mpi")] Option<mpi::Processes>);

impl Ending {
    /// Ends it, when no rank has work under way.
    pub fn finish(self) {
        #[cfg(feature = "mpi")]
        if let Some(processes) = self.0 {
            processes.finish();
        }
    }
}
