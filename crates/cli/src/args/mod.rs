//! The flags, as typed. The modules of `commands` give them their meaning.

mod bench;
mod draw;
mod eval;
mod examples;
mod model;
mod pair_metric;
mod serve;
mod train;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, StringValueParser, TypedValueParser};
use clap::{Arg, Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tessera_data::Share;
use tessera_model::DeviceChoice;

pub use bench::{Bench, PlanArgs, PrecisionFlag};
pub use draw::{Draw, PicturePrompt, Sampling};
pub use eval::{
    DrawnArgs, Eval, EvalArgs, HeldOutDrawn, Human, Network, Pair, PaperSampling, Protocol, Resizing,
    ZeroShot,
};
pub use model::{Convert, Dtype, Inspect, Pack, Packing, Reconstruct, Weights, WhichGelu};
pub use pair_metric::MeasurePair;
pub use serve::{Log, Serve};
pub use train::{Common, ConfigArgs, Encode, StageInputs, Train, TrainPictures, TrainTask};

/// Standard input as a file.
pub const STDIN: &str = "/dev/stdin";

/// Parses the name of a file to read: `-` is standard input.
fn input() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| if path.as_os_str() == "-" { STDIN.into() } else { path })
}

/// Parses the name of a preset, or of a file to read.
fn config() -> impl TypedValueParser<Value = String> {
    StringValueParser::new().map(|name| if name == "-" { STDIN.into() } else { name })
}

/// Parses the name of a file to write: `-` is standard output.
fn output() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| if path.as_os_str() == "-" { "/dev/stdout".into() } else { path })
}

/// Parses a seed.
fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("wanted a whole number from 0 to {}", u64::MAX))
}

/// Parses a number of threads.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "wanted a whole number of at least 1".to_string())
}

/// Draws pictures from sentences, and trains the models that do: the original DALL·E (2021).
#[derive(Parser)]
#[command(name = "tessera", version, about, max_term_width = 100)]
pub struct Args {
    /// The number of threads [default: one per processor core]. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", display_order = 900, value_parser = threads, env = "TESSERA_THREADS")]
    pub threads: Option<NonZeroUsize>,
    /// Write nothing to standard error except errors: no notes, warnings or progress bars.
    #[arg(short, long, global = true, display_order = 901)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands, with their flags.
#[derive(Subcommand)]
pub enum Command {
    /// Make a data set of captioned pictures.
    #[command(subcommand)]
    Data(DataSource),
    /// Train a model: all of it on a folder of pictures, or one part.
    Train(Train),
    /// Encode pictures into tokens with a trained dVAE.
    Encode(Encode),
    /// Draw pictures of a caption.
    Draw(Draw),
    /// Serve a web page for drawing, and an API that is compatible with OpenAI's image API.
    Serve(Serve),
    /// Make a web page of a folder of drawings, with the settings that made each.
    Gallery {
        /// A folder of PNGs that `draw` wrote or the page saved. It is searched recursively.
        dir: PathBuf,
        /// The page: one file that needs no other files.
        #[arg(long, default_value = "gallery.html", value_parser = output())]
        out: PathBuf,
        /// The heading of the page.
        #[arg(long, default_value = "Gallery")]
        title: String,
    },
    /// Store a model in 8 bits, optionally with a reranker, and measure how much 8 bits change.
    Pack(Pack),
    /// Show how a drawing was made, or what a model file or a folder contains.
    Inspect(Inspect),
    /// Evaluate a model on held-out data, or compare sets of pictures.
    #[command(subcommand)]
    Eval(Eval),
    /// Measure how fast this machine trains and draws.
    Bench(Bench),
    /// Convert published weights, or the checkpoint of a run, to a model file.
    #[command(subcommand)]
    Convert(Convert),
    /// Encode a picture into tokens and decode it again.
    Reconstruct(Reconstruct),
    /// Estimate memory, traffic and time for training a prior on many GPUs.
    Plan(PlanArgs),
    /// Print a script that completes commands and flags in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages of all commands.
    #[command(hide = true)]
    Man {
        /// The folder for the man pages.
        dir: PathBuf,
    },
}

/// The command line, with examples in the help of each command.
pub fn command() -> clap::Command {
    examples::with_examples(with_lenient_flags(Args::command()))
}

/// Changes all flags of a command and its subcommands: they accept negative numbers, so that the
/// error is about the number, and ignore environment variables that are empty.
fn with_lenient_flags(command: clap::Command) -> clap::Command {
    let lenient = |arg: Arg| {
        let is_number = arg.get_action().takes_values() && !arg.is_positional();
        let arg = arg.allow_negative_numbers(is_number);
        let value = arg.get_env().and_then(std::env::var_os);
        if value.is_some_and(|value| value.is_empty()) { arg.env(None::<&str>) } else { arg }
    };
    command.mut_args(lenient).mut_subcommands(with_lenient_flags)
}

/// The sources of data sets, with their flags.
#[derive(Subcommand)]
pub enum DataSource {
    /// Render the emoji sets that `runs/fetch_emoji.sh` fetches.
    Emoji {
        /// The folder of the packages that `runs/fetch_emoji.sh` fetches.
        #[arg(long)]
        packages: PathBuf,
        /// The folder for the data set.
        #[arg(long)]
        out: PathBuf,
        /// The height and width of the pictures in pixels.
        #[arg(long, default_value_t = 72)]
        size: u32,
        /// The set of emoji to render.
        #[arg(long, value_enum, default_value_t = World::Small)]
        world: World,
        /// The background colour, as `RRGGBB`.
        #[arg(long, default_value = "ffffff")]
        background: String,
        /// The fraction of combinations of thing and style to hold out: a percentage, or parts per
        /// million as in 2424ppm.
        #[arg(long, default_value = "8")]
        holdout: Share,
        /// The maximum number of different things [default: no limit]
        #[arg(long)]
        max_concepts: Option<usize>,
        /// The seed of all random numbers.
        #[arg(long, default_value_t = 0, value_parser = seed)]
        seed: u64,
    },
    /// Compose captioned scenes from the emoji sets that `runs/fetch_emoji.sh` fetches.
    Scenes {
        /// The folder of the packages that `runs/fetch_emoji.sh` fetches.
        #[arg(long)]
        packages: PathBuf,
        /// The folder for the data set.
        #[arg(long)]
        out: PathBuf,
        /// The height and width of the pictures in pixels.
        #[arg(long, default_value_t = 128)]
        size: u32,
        /// The number of training scenes.
        #[arg(long, default_value_t = 20_000)]
        count: u64,
        /// The number of validation scenes. They show the held-out combinations in turn.
        #[arg(long, default_value_t = 500)]
        val: u64,
        /// A list of combinations to hold out, one per line, as `KIND: THING | WITH` [default: the
        /// embedded model's list]
        #[arg(long, value_name = "FILE", value_parser = input())]
        held_out: Option<PathBuf>,
        /// The relative frequencies of kinds of scenes: plain, attributes, renditions, relations,
        /// blends, dressed, panels. Kinds that are not named keep their default.
        #[arg(long, value_name = "KIND=WEIGHT", value_delimiter = ',')]
        shares: Vec<String>,
        /// The seed of all random numbers.
        #[arg(long, default_value_t = 0, value_parser = seed)]
        seed: u64,
    },
    /// Use your own pictures: .png, .jpg or .webp files, or tars of them, with captions.
    ///
    /// The captions of a picture are in a table (--captions, or a metadata.jsonl, metadata.csv or
    /// metadata.tsv in the folder), in NAME.txt or NAME.caption with one caption per line, or in
    /// NAME.json of img2dataset.
    Folder {
        /// The folder of pictures. It is searched recursively.
        dir: PathBuf,
        #[command(flatten)]
        captions: CaptionArgs,
        /// The folder for the data set.
        #[arg(long)]
        out: PathBuf,
        #[command(flatten)]
        settings: ConfigArgs,
        /// The stage of training for which pictures are stored in a sufficient size.
        #[arg(long, value_enum, default_value_t = Stage::First)]
        stage: Stage,
        /// The maximum length of a picture's shorter side, in pixels. Larger pictures are scaled
        /// down and not cropped [default: what the crops of the stage need under the config: 72 for
        /// emoji, 384 (or 288 for stage 2) for paper]
        #[arg(long)]
        size: Option<u32>,
        /// Enlarge pictures whose shorter side is smaller than the config's dvae.image_size,
        /// instead of leaving them out.
        #[arg(long)]
        enlarge: bool,
        /// The fraction of pictures to hold out: a percentage, or parts per million as in 2424ppm
        /// (the paper's). Of two or more pictures, at least one is held out.
        #[arg(long, default_value = "5")]
        holdout: Share,
        /// The seed of all random numbers.
        #[arg(long, default_value_t = 0, value_parser = seed)]
        seed: u64,
    },
}

/// The device of a command that computes.
#[derive(ClapArgs, Clone, Copy)]
pub struct OnDevice {
    /// Where to compute: `cpu`, `gpu`, or `gpu:N` for the adapter with that number (`inspect
    /// --devices` lists them). GPUs need a build with `--features vulkan` (docs/devices.md).
    #[arg(long, default_value_t = DeviceChoice::Cpu, env = "TESSERA_DEVICE")]
    pub device: DeviceChoice,
}

/// The model of a command that draws.
#[derive(ClapArgs)]
pub struct ModelArgs {
    /// The model file [default: the embedded model]
    #[arg(long, value_parser = input(), env = "TESSERA_MODEL")]
    pub model: Option<PathBuf>,
    /// How the prior's weights are kept in memory [default: for drawing, int8 if the model file
    /// contains how much this changes predictions; otherwise bf16 or f32, depending on the processor]
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    #[command(flatten)]
    pub on: OnDevice,
}

/// Where the captions of a folder of pictures come from, besides the files next to them.
#[derive(ClapArgs)]
pub struct CaptionArgs {
    /// A table of captions: CSV or TSV with the names of the columns in the first line, or JSON
    /// Lines. Its captions replace those in files next to the pictures.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub captions: Option<PathBuf>,
    /// The column with the pictures' file names [default: file_name, filename, file, image, ...].
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,
    /// The column with the captions [default: text, caption, captions, prompt, ...].
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// Use the name of its folder as the caption of a picture without another caption.
    #[arg(long)]
    pub folder_names: bool,
}

/// The stage of training whose crops a set is for.
#[derive(Clone, Copy, ValueEnum)]
pub enum Stage {
    /// Both stages. Listing 1 of the paper scales pictures to at most 12/8 of the model's size.
    #[value(name = "1")]
    First,
    /// Only codes for the prior. Listing 2 scales pictures to at most 9/8 of the model's size.
    #[value(name = "2")]
    Second,
}

/// The emoji that `data emoji` renders.
#[derive(Clone, Copy, ValueEnum)]
pub enum World {
    /// A few hundred everyday things.
    Small,
    /// All emoji, with skin tones and genders.
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_a_file_wherever_one_file_is_read() {
        let parsed = |args: &str| Args::try_parse_from(args.split(' ')).unwrap().command;
        let prior = parsed("tessera train prior --data d --run r --bpe - --dvae -");
        let Command::Train(Train {
            task: Some(TrainTask::Prior { models: StageInputs { bpe, dvae }, .. }),
            ..
        }) = prior
        else {
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
    #[test]
    fn negative_numbers_are_values() {
        let parse = |args: &str| command().try_get_matches_from(args.split(' '));
        assert!(parse("tessera draw cat --temperature -1").is_ok());
        assert!(parse("tessera eval drawing --data d --top-p -0.5").is_ok());
        for (args, wanted) in [
            ("tessera draw cat --seed -1", "'-1' for '--seed <SEED>': wanted a whole number from 0"),
            ("tessera draw cat --threads 0", "'0' for '--threads <N>': wanted a whole number of at least 1"),
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(wanted), "{args}: {error}");
        }
    }
}
