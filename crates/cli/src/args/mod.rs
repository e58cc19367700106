//! The flags, as typed. What they mean is decided in `commands`.

mod draw;
mod eval;
mod serve;

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, StringValueParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use tessera_data::Share;
use tessera_kernels::Precision;
use tessera_train::DeviceChoice;

pub use draw::{Draw, PicturePrompt, Sampling};
pub use eval::{
    DrawnArgs, Eval, EvalArgs, Human, Network, Pair, PaperSampling, Protocol, Resizing, ZeroShot,
};
pub use serve::{Log, Serve};

/// Standard input as a file.
pub const STDIN: &str = "/dev/stdin";

/// The name of a file to read: `-` is standard input.
fn input() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| if path.as_os_str() == "-" { STDIN.into() } else { path })
}

/// A preset's name, or that of a file to read.
fn config() -> impl TypedValueParser<Value = String> {
    StringValueParser::new().map(|name| if name == "-" { STDIN.into() } else { name })
}

/// The name of a file to write: `-` is standard output.
fn output() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| if path.as_os_str() == "-" { "/dev/stdout".into() } else { path })
}

/// Draws pictures from sentences, and trains the models that do: the original DALL·E (2021).
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Args {
    /// Threads to compute with; as many as the processor has if not given. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", display_order = 900)]
    pub threads: Option<std::num::NonZeroUsize>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a data set of captioned pictures.
    #[command(subcommand)]
    Data(DataSource),
    /// Train a model: all of it on a folder of pictures, or one part.
    Train(Train),
    /// Turn pictures into tokens with a trained dVAE.
    Encode(Encode),
    /// Draw pictures of a sentence.
    Draw(Draw),
    /// Draw for browsers and programs: a page, and the image API that OpenAI's clients speak.
    Serve(Serve),
    /// Make a page of a folder of drawings, each with how it was made.
    Gallery {
        /// The folder; PNGs in it and below that `draw` wrote or the page saved.
        dir: PathBuf,
        /// The page: one file that needs nothing else.
        #[arg(long, default_value = "gallery.html", value_parser = output())]
        out: PathBuf,
        /// Its heading.
        #[arg(long, default_value = "Gallery")]
        title: String,
    },
    /// Store a model in 8 bits, for shipping, with a reranker if one is named, and measure what 8 bits change.
    Pack(Pack),
    /// Show what a drawing was made with, or what a model file holds.
    Inspect(Inspect),
    /// Measure a model on held-out data, or sets of pictures.
    #[command(subcommand)]
    Eval(Eval),
    /// Measure this machine: how fast it trains and draws.
    Bench(Bench),
    /// Make a model file of published weights.
    #[command(subcommand)]
    Convert(Convert),
    /// Put a picture through a dVAE's tokens and back.
    Reconstruct(Reconstruct),
    /// Work out what training a prior takes on many GPUs: memory, traffic, time.
    Plan(PlanArgs),
}

#[derive(ClapArgs)]
pub struct Pack {
    /// The model file.
    #[arg(value_parser = input())]
    pub model: PathBuf,
    /// A file of `train rerank` whose contrastive model goes into the new file.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub rerank: Option<PathBuf>,
    /// How weights are stored. The dVAE's are never in 8 bits.
    #[arg(long, value_enum, default_value_t = Packing::Int8)]
    pub dtype: Packing,
    /// Write down the share of captions that were dropped in the prior's training, of a file that does not say it; `data.caption_drop` of
    /// its config.
    #[arg(long, value_name = "SHARE")]
    pub caption_drop: Option<f32>,
    /// The smaller model file.
    #[arg(long, value_parser = output())]
    pub out: PathBuf,
}

#[derive(Subcommand)]
pub enum Convert {
    /// OpenAI's released dVAE.
    OpenaiDvae {
        /// `encoder.pkl`, as published; it is read, not run.
        #[arg(value_parser = input())]
        encoder: PathBuf,
        /// `decoder.pkl`
        #[arg(value_parser = input())]
        decoder: PathBuf,
        #[command(flatten)]
        stored: Stored,
        /// The model file.
        #[arg(long, value_parser = output())]
        out: PathBuf,
    },
    /// A contrastive model to rank with: OpenAI's CLIP, Hugging Face's copy, or open_clip's; vision transformers only.
    Clip {
        /// The weights, as published: .pt or .safetensors; nothing in them is run.
        #[arg(value_parser = input())]
        weights: PathBuf,
        /// CLIP's vocabulary: OpenAI's bpe_simple_vocab_16e6.txt.gz, or Hugging Face's tokenizer.json.
        #[arg(long, value_name = "FILE", value_parser = input())]
        vocab: PathBuf,
        /// Which GELU the weights were trained with; not needed if config.json or open_clip_config.json lies beside the weights, nor for
        /// OpenAI's own archives.
        #[arg(long, value_enum)]
        gelu: Option<WhichGelu>,
        /// Heads of the image tower, if nothing beside the weights says it and their shape is of no published model.
        #[arg(long, value_name = "N", requires = "text_heads")]
        image_heads: Option<usize>,
        /// Heads of the text tower.
        #[arg(long, value_name = "N", requires = "image_heads")]
        text_heads: Option<usize>,
        #[command(flatten)]
        stored: Stored,
        /// The model file.
        #[arg(long, value_parser = output())]
        out: PathBuf,
    },
}

/// How the weights of a file are stored.
#[derive(ClapArgs)]
pub struct Stored {
    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = Dtype::Exact)]
    pub dtype: Dtype,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    /// As they are: in f32, or in f16 where that loses nothing.
    Exact,
    F32,
    /// Rounded to half precision.
    F16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Packing {
    /// As they are: in f32, or in f16 where that loses nothing.
    Exact,
    /// Rounded to half precision.
    F16,
    /// Signed bytes, 32 of which share a scale.
    Int8,
}

/// How the prior's weights are kept while it draws.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// In 32 bits, in which everything is computed then.
    F32,
    /// In bf16.
    Bf16,
    /// In 8 bits; only of a model file that says what that changes.
    Int8,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum WhichGelu {
    /// OpenAI's.
    Quick,
    /// Most of open_clip's.
    Exact,
}

#[derive(ClapArgs)]
pub struct Reconstruct {
    /// A PNG, JPEG or WebP picture; its middle square is used.
    #[arg(value_parser = input())]
    pub image: PathBuf,
    /// A model file; the embedded model if absent.
    #[arg(long, value_parser = input())]
    pub model: Option<PathBuf>,
    /// The original beside its reconstruction.
    #[arg(long, default_value = "reconstruction.png", value_parser = output())]
    pub out: PathBuf,
    /// Enlarge each picture this many times.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub scale: u32,
    /// Print JSON, with the tokens.
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
pub struct PlanArgs {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// GPUs in all.
    #[arg(long)]
    pub gpus: usize,
    /// Memory of a GPU, as in 16GiB or 80GB.
    #[arg(long)]
    pub gpu_mem: String,
    /// GPUs of a machine, over which parameters are split.
    #[arg(long, default_value_t = 8)]
    pub gpus_per_machine: usize,
    /// Rank of PowerSGD over a machine's GPUs; the paper's for its widths, else a quarter of the width.
    #[arg(long)]
    pub rank: Option<usize>,
    /// Peak of a GPU in 16 bits, in 10¹² operations a second; 125 is that of the paper's V100.
    #[arg(long, default_value_t = 125.0)]
    pub peak_tflops: f64,
    /// Share of the peak that training reaches.
    #[arg(long, default_value_t = 0.3)]
    pub mfu: f64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
pub struct Bench {
    /// Benchmarks to run; all but the long ones if none is named.
    #[arg(value_name = "BENCHMARK")]
    pub benchmarks: Vec<String>,
    /// One JSON object for each benchmark, instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Numbers to multiply.
    #[arg(long, value_enum, default_value_t = PrecisionFlag::Auto)]
    pub precision: PrecisionFlag,
    /// Timed repetitions of a benchmark.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionFlag {
    /// bf16 where the processor multiplies it, else f32.
    Auto,
    F32,
    Bf16,
}

impl From<PrecisionFlag> for Precision {
    fn from(numbers: PrecisionFlag) -> Precision {
        match numbers {
            PrecisionFlag::Auto => Precision::Auto,
            PrecisionFlag::F32 => Precision::F32,
            PrecisionFlag::Bf16 => Precision::Bf16,
        }
    }
}

#[derive(Subcommand)]
pub enum DataSource {
    /// Render the emoji sets that `runs/fetch_emoji.sh` fetches.
    Emoji {
        /// Folder of fetched packages.
        #[arg(long)]
        packages: PathBuf,
        /// Folder for the shards.
        #[arg(long)]
        out: PathBuf,
        /// Side of the pictures in pixels.
        #[arg(long, default_value_t = 72)]
        size: u32,
        /// Which emoji.
        #[arg(long, value_enum, default_value_t = World::Small)]
        world: World,
        /// Background colour, `RRGGBB`.
        #[arg(long, default_value = "ffffff")]
        background: String,
        /// Combinations of thing and style to hold out: a percentage, or parts per million as in 2424ppm.
        #[arg(long, default_value = "8")]
        holdout: Share,
        /// At most this many things.
        #[arg(long)]
        max_concepts: Option<usize>,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Compose captioned scenes from the emoji sets that `runs/fetch_emoji.sh` fetches.
    Scenes {
        /// Folder of fetched packages.
        #[arg(long)]
        packages: PathBuf,
        /// Folder for the shards.
        #[arg(long)]
        out: PathBuf,
        /// Side of the pictures in pixels.
        #[arg(long, default_value_t = 128)]
        size: u32,
        /// Scenes to train on.
        #[arg(long, default_value_t = 20_000)]
        count: u64,
        /// Scenes to validate on; they show the held-out combinations in turn.
        #[arg(long, default_value_t = 500)]
        val: u64,
        /// Combinations to hold out, one a line, `KIND: THING | WITH`; the embedded model's list if absent.
        #[arg(long, value_name = "FILE", value_parser = input())]
        held_out: Option<PathBuf>,
        /// How often each kind of scene is drawn: plain, attributes, renditions, relations, blends, dressed, panels.
        #[arg(long, value_name = "KIND=WEIGHT", value_delimiter = ',')]
        shares: Vec<String>,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Use your own pictures: NAME.png, .jpg or .webp beside NAME.txt with one caption a line.
    Folder {
        /// The folder, searched recursively.
        dir: PathBuf,
        /// Folder for the shards.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        settings: ConfigArgs,
        /// What the set is for.
        #[arg(long, value_enum, default_value_t = Stage::First)]
        stage: Stage,
        /// Longest short side that is stored, in pixels; pictures stay whole. By default what the stage's crops need of the
        /// config: 72 for emoji, 384 (or 288 for stage 2) for paper.
        #[arg(long)]
        size: Option<u32>,
        /// Enlarge pictures whose short side is under the config's dvae.image_size instead of leaving them out.
        #[arg(long)]
        enlarge: bool,
        /// Pictures to hold out: a percentage, or parts per million as in 2424ppm, the paper's; of two or more at least one.
        #[arg(long, default_value = "5")]
        holdout: Share,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

/// The stage of training whose crops a set is for.
#[derive(Clone, Copy, ValueEnum)]
pub enum Stage {
    /// Both stages: listing 1 scales pictures to 12/8 of the model's at most.
    #[value(name = "1")]
    First,
    /// Codes for the prior alone: listing 2 scales them to 9/8 at most.
    #[value(name = "2")]
    Second,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum World {
    /// A few hundred everyday things.
    Small,
    /// Everything, with skin tones and genders.
    Full,
}

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
    /// A folder of pictures with captions: NAME.png, .jpg or .webp, and NAME.txt with one caption per line.
    #[arg(value_name = "PICTURES", requires = "run")]
    pub pictures: Option<PathBuf>,
    /// The folder for all results; run the same command again to continue.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// The time for training in minutes.
    #[arg(long, default_value_t = 15.0)]
    pub minutes: f64,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Subcommand)]
pub enum TrainTask {
    /// The caption vocabulary, from a data set.
    Bpe {
        #[command(flatten)]
        settings: ConfigArgs,
        /// The data set.
        #[arg(long)]
        data: PathBuf,
        /// Folder for `tokenizer.json`.
        #[arg(long)]
        run: PathBuf,
    },
    /// Stage 1: the discrete VAE, from a data set.
    Dvae(Common),
    /// Stage 2: the transformer, from a folder of codes or, with `data.encode = "online"`, from a data set and a dVAE.
    Prior {
        #[command(flatten)]
        common: Common,
        /// The tokenizer that `train bpe` wrote.
        #[arg(long, value_parser = input())]
        bpe: PathBuf,
        /// A model file with the dVAE that encodes the pictures (`data.encode = "online"`).
        #[arg(long, value_parser = input())]
        dvae: Option<PathBuf>,
    },
    /// The contrastive model that ranks drawings, from a data set.
    Rerank {
        #[command(flatten)]
        common: Common,
        /// The tokenizer that `train bpe` wrote.
        #[arg(long, value_parser = input())]
        bpe: PathBuf,
        /// A model file with the dVAE through whose tokens a share of the pictures goes (`data.reconstructed`).
        #[arg(long, value_parser = input())]
        dvae: Option<PathBuf>,
    },
}

/// Which settings.
#[derive(ClapArgs)]
pub struct ConfigArgs {
    /// A preset (tiny, emoji, embedded, 2.8b, 5.6b, paper) or a TOML file of differences to one.
    #[arg(long, default_value = "emoji", value_parser = config())]
    pub config: String,
    /// Change one value, as in `--set prior.n_layers=12`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Flags of every training command.
#[derive(ClapArgs)]
pub struct Common {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// What to train on.
    #[arg(long)]
    pub data: PathBuf,
    /// Folder of this run.
    #[arg(long)]
    pub run: PathBuf,
    /// Continue the run in the folder from its newest checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// Start from the weights in this model file instead of random ones, to train a model further or on other pictures.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub init: Option<PathBuf>,
    /// The number of updates; warm-up, decay and all other schedules are scaled to it.
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    pub steps: Option<u64>,
    /// The time for the run in minutes, from which the number of updates follows by this machine's speed.
    #[arg(long, value_name = "M")]
    pub minutes: Option<f64>,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where to compute: `cpu`, `gpu` or `gpu:N` (a CUDA device, in a build with `--features libtorch`), or `libtorch` (the same on the processor).
    #[arg(long, default_value_t = DeviceChoice::Cpu)]
    pub device: DeviceChoice,
}

#[derive(ClapArgs)]
pub struct Encode {
    #[command(flatten)]
    pub settings: ConfigArgs,
    /// The data set.
    #[arg(long)]
    pub data: PathBuf,
    /// A model file with a dVAE.
    #[arg(long, value_parser = input())]
    pub dvae: PathBuf,
    /// Folder for the codes.
    #[arg(long)]
    pub out: PathBuf,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(ClapArgs)]
pub struct Inspect {
    /// A PNG that `draw` wrote, or a model file.
    #[arg(value_parser = input())]
    pub file: PathBuf,
    /// List the words of the captions that a model file was trained on, one a line.
    #[arg(long)]
    pub words: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three flags took `-` for a file of that name.
    #[test]
    fn a_dash_is_a_file_wherever_one_file_is_read() {
        let parsed = |args: &str| Args::try_parse_from(args.split(' ')).unwrap().command;
        let prior = parsed("tessera train prior --data d --run r --bpe - --dvae -");
        let Command::Train(Train { task: Some(TrainTask::Prior { bpe, dvae, .. }), .. }) = prior else {
            panic!("another command")
        };
        assert_eq!((bpe, dvae), (STDIN.into(), Some(STDIN.into())));
        let scenes = parsed("tessera data scenes --packages p --out o --held-out -");
        let Command::Data(DataSource::Scenes { held_out, .. }) = scenes else { panic!("another command") };
        assert_eq!(held_out, Some(STDIN.into()));
        let fid = parsed("tessera eval fid - drawn");
        let Command::Eval(Eval::Fid(pair)) = fid else { panic!("another command") };
        assert_eq!(pair.real, PathBuf::from(STDIN));
    }
}
