//! The flags of `train` and `encode`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::{CaptionArgs, OnDevice, config, input, seed};

/// The flags of `train`, or one of its subcommands.
#[derive(ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Train {
    #[command(flatten)]
    pub pictures: TrainPictures,
    #[command(subcommand)]
    pub task: Option<TrainTask>,
}

/// Training of all parts on a folder of pictures, starting from the embedded model.
#[derive(ClapArgs)]
pub struct TrainPictures {
    /// A folder of pictures with captions, in one of the forms that `data folder` reads.
    #[arg(value_name = "PICTURES", requires = "run")]
    pub pictures: Option<PathBuf>,
    #[command(flatten)]
    pub captions: CaptionArgs,
    /// The folder for all results; run the same command again to continue.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// The time for training in minutes.
    #[arg(long, default_value_t = 15.0)]
    pub minutes: f64,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub seed: u64,
}

/// The parts of a model that can be trained, with their flags.
#[derive(Subcommand)]
pub enum TrainTask {
    /// Train the caption tokenizer on a data set.
    Bpe {
        #[command(flatten)]
        settings: ConfigArgs,
        /// The data set.
        #[arg(long)]
        data: PathBuf,
        /// The folder for `tokenizer.json`.
        #[arg(long)]
        run: PathBuf,
    },
    /// Stage 1: train the discrete VAE on a data set.
    Dvae(Common),
    /// Stage 2: train the transformer on a folder of codes or, with `data.encode = "online"`, on a
    /// data set.
    Prior {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        models: StageInputs,
    },
    /// Train the contrastive model that ranks drawings on a data set.
    Rerank {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        models: StageInputs,
    },
}

/// What earlier stages trained.
#[derive(ClapArgs)]
pub struct StageInputs {
    /// The tokenizer: a file that `train bpe` wrote, a model file, or `embedded`.
    #[arg(long, value_parser = input())]
    pub bpe: PathBuf,
    /// A model file with a dVAE. For the prior, it encodes the pictures (`data.encode = "online"`);
    /// for the contrastive model, it reconstructs a fraction of them (`data.reconstructed`).
    #[arg(long, value_parser = input())]
    pub dvae: Option<PathBuf>,
}

/// The config.
#[derive(Clone, ClapArgs)]
pub struct ConfigArgs {
    /// A preset (tiny, small, emoji, embedded, 2.8b, 5.6b, paper), or a TOML file with changes to
    /// one.
    #[arg(long, default_value = "emoji", value_parser = config(), env = "TESSERA_CONFIG")]
    pub config: String,
    /// Change one value, as in `--set prior.n_layers=12`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Flags of every training command.
#[derive(Clone, ClapArgs)]
pub struct Common {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// The data set or, for the prior, the folder of codes.
    #[arg(long)]
    pub data: PathBuf,
    /// The folder of this run.
    #[arg(long)]
    pub run: PathBuf,
    /// Continue the run in the folder from its newest checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// Continue the run in the folder if it has a checkpoint, else start it.
    #[arg(long, conflicts_with = "resume")]
    pub auto_resume: bool,
    /// With mpirun or srun: how many neighbouring ranks share the parameters [default: those of a
    /// machine].
    #[arg(long, value_name = "N")]
    pub node_size: Option<usize>,
    /// With mpirun or srun: how many seconds a rank waits for the others.
    #[arg(long, value_name = "SECONDS", default_value_t = 900,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub patience: u64,
    /// Record what each rank does, and when, in a file that Perfetto opens.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Start from the weights in this model file (or `embedded`) instead of random ones.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub init: Option<PathBuf>,
    /// The number of updates; warm-up, decay and all other schedules are scaled to it. With --resume,
    /// the schedules stay as they are.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    pub steps: Option<u64>,
    /// The time for the run in minutes. The number of updates is computed from it and the speed of
    /// this machine.
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// Write the last weights to the model file even if earlier ones are better on held-out data.
    #[arg(long)]
    pub last: bool,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub seed: u64,
    #[command(flatten)]
    pub on: OnDevice,
}

/// The flags of `encode`.
#[derive(ClapArgs)]
pub struct Encode {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// The data set.
    #[arg(long)]
    pub data: PathBuf,
    /// A model file with a dVAE, or `embedded`.
    #[arg(long, value_parser = input())]
    pub dvae: PathBuf,
    /// The folder for the codes.
    #[arg(long)]
    pub out: PathBuf,
    /// The seed of the random crops.
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub seed: u64,
    #[command(flatten)]
    pub on: OnDevice,
}
