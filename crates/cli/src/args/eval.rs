//! The flags of `eval`, as typed.

use std::path::PathBuf;

use clap::{Arg, Args as ClapArgs, Subcommand, ValueEnum};

use super::pair_metric::MeasurePair;
use super::{ModelArgs, OnDevice, PrecisionFlag, Sampling, input, output, seed};

/// The evaluations, with their flags.
#[derive(Subcommand)]
pub enum Eval {
    /// Measure reconstructions of held-out pictures: PSNR, likelihood and codebook usage.
    Recon(EvalArgs),
    /// Measure how much captions matter: the image loss under the true caption and under others.
    Conditioning(EvalArgs),
    /// Measure how often drawings of held-out captions are nearest to the right one of eight real
    /// pictures (chance: 12.5 %).
    Drawing {
        #[command(flatten)]
        common: EvalArgs,
        /// The number of drawings of each caption.
        #[arg(short, long = "number", default_value_t = 4)]
        n: usize,
        /// The seed of all random numbers.
        #[arg(long, default_value_t = 0, value_parser = seed)]
        seed: u64,
        #[command(flatten)]
        sampling: Sampling,
        /// Also write a sheet with a row for each of 20 captions: the real picture, then drawings.
        #[arg(long, value_name = "FILE.png", value_parser = output())]
        sheet: Option<PathBuf>,
        /// Draw the captions of training pictures instead of held-out ones. This measures how well
        /// the model draws what it was trained on.
        #[arg(long)]
        trained: bool,
    },
    /// Measure how often the contrastive model retrieves the picture of a held-out caption, and the
    /// caption of a picture.
    #[command(mut_args(hide_if_only_for_fid_and_is))]
    Retrieval {
        /// The data set. Only its held-out part is used.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        network: Network,
    },
    /// Compute FID, the Fréchet distance between two sets of pictures.
    #[command(mut_args(with_statistics))]
    Fid(Pair),
    #[command(flatten)]
    Pair(MeasurePair),
    /// Compute the Inception score (IS): how certain a network is of each picture's class, and how
    /// many classes occur.
    Is {
        /// A folder of pictures or a data set.
        dir: PathBuf,
        #[command(flatten)]
        network: Network,
    },
    /// Compute the CLIP score: how well pictures fit their captions.
    #[command(mut_args(hide_if_only_for_fid_and_is))]
    ClipScore {
        /// A data set, or a folder in which each NAME.png has its caption in the first line of
        /// NAME.txt.
        dir: PathBuf,
        #[command(flatten)]
        network: Network,
    },
    /// Plot FID and IS when both sets of pictures are blurred more and more (the paper's figure 9).
    Blur {
        #[command(flatten)]
        pair: Pair,
        /// The standard deviations of the blur in pixels.
        #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.0, 2.0, 4.0, 8.0])]
        radii: Vec<f32>,
        /// The height and width to which all pictures are resized before they are blurred.
        #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
        size: u32,
        /// The plot.
        #[arg(long, default_value = "blur.svg", value_parser = output())]
        out: PathBuf,
    },
    /// Find the training picture nearest to each held-out picture, and write a sheet of the closest
    /// pairs.
    #[command(mut_args(hide_if_only_for_fid_and_is))]
    Overlap {
        /// The data set.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        network: Network,
        /// The cosine from which two pictures count as the same.
        #[arg(long, default_value_t = 0.95)]
        threshold: f32,
        /// Also compute FID and KID between these pictures and the held-out ones, with and without
        /// those that overlap.
        #[arg(long, value_name = "DIR")]
        fake: Option<PathBuf>,
        /// The sheet.
        #[arg(long, default_value = "overlap.png", value_parser = output())]
        out: PathBuf,
    },
    /// Plot how drawings of held-out captions improve when the best of 1, 2, 4 … N candidates is
    /// kept (the paper's figure 9c).
    RerankCurve {
        #[command(flatten)]
        drawn: HeldOutDrawn,
        /// The plot.
        #[arg(long, default_value = "rerank-curve.svg", value_parser = output())]
        out: PathBuf,
    },
    /// Draw MS-COCO's captions and evaluate the drawings, as in the paper unless flags change that.
    Coco {
        /// The folder with captions_val2014.json (or annotations/…) and the pictures in val2014/.
        dir: PathBuf,
        #[command(flatten)]
        drawn: DrawnArgs,
        #[command(flatten)]
        sampling: PaperSampling,
    },
    /// Draw the captions of CUB-200-2011's test pictures and evaluate the drawings, as in the paper
    /// unless flags change that.
    Cub {
        /// The folder with images.txt, train_test_split.txt, images/ and the captions in text/ or
        /// text_c10/.
        dir: PathBuf,
        #[command(flatten)]
        drawn: DrawnArgs,
        #[command(flatten)]
        sampling: PaperSampling,
    },
    /// Draw combinations that no training scene shows, and measure how often a second contrastive
    /// model recognizes them.
    ZeroShot(ZeroShot),
    /// Compare two models by human votes (the paper's figure 7).
    #[command(subcommand)]
    Human(Human),
    /// Run all evaluations of a model on a data set, and write one web page with the results.
    Report {
        #[command(flatten)]
        drawn: HeldOutDrawn,
        /// The page.
        #[arg(long, default_value = "report.html", value_parser = output())]
        out: PathBuf,
    },
    /// Plot the training curves of one run, or of several runs to compare them.
    Curves {
        /// The folders of the runs.
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// Plot only this metric; may be repeated. Metrics with one value per resblock are plotted
        /// only if they are named.
        #[arg(long = "metric", value_name = "NAME")]
        metrics: Vec<String>,
        /// The plot (SVG).
        #[arg(long, default_value = "curves.svg", value_parser = output())]
        out: PathBuf,
    },
}

/// How pictures are resized for an Inception network.
#[derive(Clone, Copy, ValueEnum)]
pub enum Resizing {
    /// As in pytorch-fid.
    PytorchFid,
    /// As in torch-fidelity and in the original TensorFlow code.
    TorchFidelity,
}

/// The published code with which FID and IS are comparable.
#[derive(Clone, Copy, ValueEnum)]
pub enum Protocol {
    /// DM-GAN's code, which the paper used: FID by torchvision's Inception, IS by the Inception of
    /// 2015.
    DmGan,
}

/// The feature extractor of an evaluation.
#[derive(ClapArgs)]
pub struct Network {
    /// The weights of an Inception v3: those of 2015, which are usual for FID, or torchvision's, as
    /// in the paper. With --protocol, both files may be given.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rerank", "classes"], value_parser = input())]
    pub inception: Vec<PathBuf>,
    /// How pictures are resized for the weights of 2015. For those of torchvision this is fixed.
    #[arg(long, value_enum, default_value_t = Resizing::PytorchFid, requires = "inception")]
    pub resize: Resizing,
    /// Compute FID and IS exactly as this published code does.
    #[arg(long, value_enum, requires = "inception", conflicts_with = "resize")]
    pub protocol: Option<Protocol>,
    /// A model file whose contrastive model extracts the features [default: the embedded model,
    /// unless --inception is given]
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub rerank: Option<PathBuf>,
    /// A file with one caption per line: the classes for the IS of a contrastive model.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub classes: Option<PathBuf>,
    /// A folder that stores the features, so that an interrupted or repeated measurement does not
    /// extract them again.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// The precision of matrix products.
    #[arg(long, value_enum, default_value_t = PrecisionFlag::Auto)]
    pub precision: PrecisionFlag,
    #[command(flatten)]
    pub on: OnDevice,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Hides a flag of [`Network`] that only FID and IS use.
pub fn hide_if_only_for_fid_and_is(arg: Arg) -> Arg {
    if ["protocol", "classes"].iter().any(|id| arg.get_id() == id) { arg.hide(true) } else { arg }
}

/// Says in the help of [`Pair::real`] that it may be statistics, which only FID reads. `mut_arg` would
/// move the argument behind [`Pair::fake`].
fn with_statistics(arg: Arg) -> Arg {
    match arg.get_id() == "real" {
        true => arg.help("The real pictures: a folder, a data set or a .npz file of statistics"),
        false => arg,
    }
}

/// The flags of evaluations that compare two sets of pictures.
#[derive(ClapArgs)]
pub struct Pair {
    /// The real pictures: a folder or a data set.
    #[arg(value_parser = input())]
    pub real: PathBuf,
    /// The generated pictures: a folder or a data set.
    pub fake: PathBuf,
    #[command(flatten)]
    pub network: Network,
}

/// The flags of evaluations that draw the held-out captions of a data set.
#[derive(ClapArgs)]
pub struct HeldOutDrawn {
    /// The data set. Its held-out captions are drawn, and its pictures are the real ones that
    /// drawings are compared with.
    #[arg(long)]
    pub data: PathBuf,
    #[command(flatten)]
    pub common: DrawnArgs,
    #[command(flatten)]
    pub sampling: Sampling,
}

/// The flags of evaluations that draw many captions. An interrupted one continues where it stopped.
#[derive(ClapArgs)]
pub struct DrawnArgs {
    /// The folder for the drawings. The same command continues an interrupted run.
    #[arg(long)]
    pub drawings: PathBuf,
    /// The number of candidates per caption, of which the best is kept [default: 512 for `coco` and
    /// `cub`, as in the paper; up to 32 otherwise]
    #[arg(long)]
    pub of: Option<usize>,
    /// The number of captions to draw, chosen evenly, or at random for `coco` [default: 30000 for
    /// `coco`; all otherwise]
    #[arg(long)]
    pub captions: Option<usize>,
    #[command(flatten)]
    pub which: ModelArgs,
    /// A model file whose contrastive model judges the drawings. It must differ from the one that
    /// ranks, which would favour its own choices. Only `eval report` works without it, and then
    /// leaves the judged sections out.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub judge: Option<PathBuf>,
    /// The weights of an Inception v3 for FID, KID and IS [default: the judge's features are used].
    /// With --protocol, two files may be given.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub inception: Vec<PathBuf>,
    /// How pictures are resized for the weights of 2015. For those of torchvision this is fixed.
    #[arg(long, value_enum, default_value_t = Resizing::PytorchFid, requires = "inception")]
    pub resize: Resizing,
    /// Compute FID and IS exactly as this published code does.
    #[arg(long, value_enum, requires = "inception", conflicts_with = "resize")]
    pub protocol: Option<Protocol>,
    /// The statistics of the real pictures' features for FID: `mu` and `sigma`, as pytorch-fid and
    /// DM-GAN's code save them.
    #[arg(long, value_name = "FILE.npz", requires = "inception", value_parser = input())]
    pub reference: Option<PathBuf>,
    /// The seed of all random numbers.
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// The flags of `eval zero-shot`: which combinations are drawn, and how drawings are evaluated.
#[derive(ClapArgs)]
pub struct ZeroShot {
    #[command(flatten)]
    pub which: ModelArgs,
    /// A model file whose contrastive model judges the drawings. It must differ from the one that
    /// ranks, which would favour its own choices.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub judge: PathBuf,
    /// The folder of the packages that `runs/fetch_emoji.sh` fetches.
    #[arg(long, value_name = "DIR")]
    pub packages: PathBuf,
    /// The list of combinations that were held out in training, one per line [default: the embedded
    /// model's list]
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub held_out: Option<PathBuf>,
    /// The kinds of combinations, separated by commas: style, rendition, colour, extra, things,
    /// made-of, shaped-like, panel [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// The number of combinations to draw, chosen evenly [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// The number of candidates per caption, of which the best is evaluated.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub candidates: u32,
    /// The seed of the captions' styles and backgrounds, of the pictures that drawings are compared
    /// with, and of the drawings.
    #[arg(long, default_value_t = 0, value_parser = seed)]
    pub seed: u64,
    #[command(flatten)]
    pub sampling: PaperSampling,
    /// Print JSON, with the result of each combination.
    #[arg(long)]
    pub json: bool,
    /// Also write a sheet with the two best and two worst drawings of each kind, each between the
    /// true picture and the most similar wrong one.
    #[arg(long, value_name = "FILE.png", value_parser = output())]
    pub sheet: Option<PathBuf>,
}

/// How tokens are sampled. The default is the model's unchanged distribution, as in the paper.
#[derive(ClapArgs)]
pub struct PaperSampling {
    /// The sampling temperature: 1 keeps the model's distribution, 0 always takes the most probable
    /// token.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Sample only from the K most probable tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample only from the most probable tokens that together have this probability.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// The strength of classifier-free guidance by the caption; 1 means no guidance.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub guidance: f64,
}

/// The commands of `eval human`, with their flags.
#[derive(Subcommand)]
pub enum Human {
    /// Write a web page that shows people two pictures of each caption and saves their votes.
    Page {
        /// The pictures of one model: NAME.png with the caption in NAME.txt.
        a: PathBuf,
        /// The pictures of the other model, with the same captions in the same order.
        b: PathBuf,
        /// The number of comparisons, chosen evenly [default: all]
        #[arg(long)]
        tasks: Option<usize>,
        /// The page.
        #[arg(long, default_value = "compare.html", value_parser = output())]
        out: PathBuf,
    },
    /// Evaluate the CSV files of votes that the page saved.
    Votes {
        /// The files, one per person.
        #[arg(required = true, value_name = "CSV", value_parser = input())]
        files: Vec<PathBuf>,
        /// Leave out people who answer in a hurry and disagree with the others, as the paper did.
        #[arg(long)]
        drop_hasty: bool,
        /// The names of the two models.
        #[arg(long, num_args = 2, value_names = ["A", "B"], default_values_t = ["A".to_string(), "B".to_string()])]
        names: Vec<String>,
        /// The plot.
        #[arg(long, default_value = "votes.svg", value_parser = output())]
        out: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The flags of evaluations on the held-out part of a data set.
#[derive(ClapArgs)]
pub struct EvalArgs {
    /// The data set. Its held-out part is used.
    #[arg(long)]
    pub data: PathBuf,
    #[command(flatten)]
    pub which: ModelArgs,
    /// The precision of matrix products.
    #[arg(long, value_enum, default_value_t = PrecisionFlag::Auto, conflicts_with = "weights")]
    pub precision: PrecisionFlag,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
