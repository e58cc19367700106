//! The flags of `eval`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::{PrecisionFlag, Sampling, Weights, input, output};

#[derive(Subcommand)]
pub enum Eval {
    /// Reconstructions of held-out pictures: PSNR, likelihood, codebook usage.
    Recon(EvalArgs),
    /// How much the words matter: the image loss under the true and other captions.
    Conditioning(EvalArgs),
    /// Whether drawings of held-out captions look right: nearest of eight real pictures, chance 1 in 8.
    Drawing {
        #[command(flatten)]
        common: EvalArgs,
        /// Number of drawings of each caption.
        #[arg(short, long = "number", default_value_t = 4)]
        n: usize,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[command(flatten)]
        sampling: Sampling,
        /// Also write a sheet: a row for each of 20 captions, the real picture first.
        #[arg(long, value_name = "FILE.png", value_parser = output())]
        sheet: Option<PathBuf>,
    },
    /// How often a held-out caption finds its picture among 100, and the other way round, by the contrastive model.
    Retrieval {
        /// A data set; only its held-out part is used.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        network: Network,
    },
    /// FID: the Fréchet distance of two sets of pictures.
    Fid(Pair),
    /// KID: a distance that small sets do not bias.
    Kid(Pair),
    /// CMMD: another such distance, of embeddings of unit length.
    Cmmd(Pair),
    /// Precision and recall: how many pictures of each set lie among those of the other.
    PrecisionRecall(Pair),
    /// IS: how sure a network is of each picture's class, and how many classes there are.
    Is {
        /// A folder of pictures or a data set.
        dir: PathBuf,
        #[command(flatten)]
        network: Network,
    },
    /// CLIP-score: how well pictures fit their captions. Each NAME.png has a NAME.txt beside it with the caption in its first line.
    ClipScore {
        /// A folder of pictures with captions, or a data set.
        dir: PathBuf,
        #[command(flatten)]
        network: Network,
    },
    /// FID and IS of ever more blurred pictures, both sets blurred (the paper's figure 9), with a plot.
    Blur {
        #[command(flatten)]
        pair: Pair,
        /// Standard deviations of the blur in pixels.
        #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.0, 2.0, 4.0, 8.0])]
        radii: Vec<f32>,
        /// Height and width that all pictures are brought to before they are blurred.
        #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
        size: u32,
        /// The plot.
        #[arg(long, default_value = "blur.svg", value_parser = output())]
        out: PathBuf,
    },
    /// The training pictures that held-out ones are nearest to, by the contrastive model: the closest pairs as a sheet.
    Overlap {
        /// A data set.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        network: Network,
        /// Pairs at least as close as this cosine count as the same picture.
        #[arg(long, default_value_t = 0.95)]
        threshold: f32,
        /// Also FID and KID of these pictures to the held-out ones, with and without those that overlap.
        #[arg(long, value_name = "DIR")]
        fake: Option<PathBuf>,
        /// The sheet.
        #[arg(long, default_value = "overlap.png", value_parser = output())]
        out: PathBuf,
    },
    /// The best of 1, 2, 4 … N candidates of each held-out caption (the paper's figure 9c), drawn, measured and plotted.
    RerankCurve {
        /// A data set: its held-out captions are drawn, and its pictures are what drawings are measured against.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        drawn: DrawnArgs,
        #[command(flatten)]
        sampling: Sampling,
        /// The plot.
        #[arg(long, default_value = "rerank-curve.svg", value_parser = output())]
        out: PathBuf,
    },
    /// Drawings of MS-COCO's captions, sampled and measured as in the paper unless flags say otherwise.
    Coco {
        /// Folder with captions_val2014.json (or annotations/…) and the pictures in val2014/.
        dir: PathBuf,
        #[command(flatten)]
        drawn: DrawnArgs,
        #[command(flatten)]
        sampling: PaperSampling,
    },
    /// Drawings of the captions of CUB-200-2011's test pictures, sampled as in the paper unless flags say otherwise.
    Cub {
        /// Folder with images.txt, train_test_split.txt, images/ and the captions in text/ or text_c10/.
        dir: PathBuf,
        #[command(flatten)]
        drawn: DrawnArgs,
        #[command(flatten)]
        sampling: PaperSampling,
    },
    /// Drawings of combinations that the scenes of training never show: found by a judge among 50 pictures, probed, continued, compared.
    ZeroShot(ZeroShot),
    /// Comparisons by people (the paper's figure 7).
    #[command(subcommand)]
    Human(Human),
    /// What a model and a data set tell, all of it, on one page.
    Report {
        /// A data set.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        drawn: DrawnArgs,
        #[command(flatten)]
        sampling: Sampling,
        /// The page.
        #[arg(long, default_value = "report.html", value_parser = output())]
        out: PathBuf,
    },
    /// The training curves of a run, or of several to compare, as an SVG picture.
    Curves {
        /// Folders of runs.
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// Draw only this metric; may be repeated. What each resblock has its own of is drawn only if it is named.
        #[arg(long = "metric", value_name = "NAME")]
        metrics: Vec<String>,
        /// The picture file.
        #[arg(long, default_value = "curves.svg", value_parser = output())]
        out: PathBuf,
    },
}

/// How pictures are resized for an Inception.
#[derive(Clone, Copy, ValueEnum)]
pub enum Resizing {
    /// As pytorch-fid does.
    PytorchFid,
    /// As torch-fidelity does, and TensorFlow did.
    TorchFidelity,
}

/// Whose code FID and IS are to be comparable with.
#[derive(Clone, Copy, ValueEnum)]
pub enum Protocol {
    /// DM-GAN's, which the paper's figures are by: FID by torchvision's Inception, IS by that of 2015.
    DmGan,
}

/// Which network looks at pictures.
#[derive(ClapArgs)]
pub struct Network {
    /// Weights of an Inception v3: those of 2015 that FID is usually measured by, or torchvision's, as in the paper.
    /// With --protocol it may be given twice.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rerank", "classes"], value_parser = input())]
    pub inception: Vec<PathBuf>,
    /// How pictures are resized for the weights of 2015; torchvision's have a way of their own.
    #[arg(long, value_enum, default_value_t = Resizing::PytorchFid, requires = "inception")]
    pub resize: Resizing,
    /// Measure FID and IS as another's code does.
    #[arg(long, value_enum, requires = "inception", conflicts_with = "resize")]
    pub protocol: Option<Protocol>,
    /// A model file whose contrastive model looks; that of the embedded model if no network is named.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub rerank: Option<PathBuf>,
    /// Captions that are the classes of a contrastive model's IS, a line each.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub classes: Option<PathBuf>,
    /// Folder in which what was seen is kept, so that an interrupted measurement goes on, and the next need not look again.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Numbers to multiply.
    #[arg(long, value_enum, default_value_t = PrecisionFlag::Auto)]
    pub precision: PrecisionFlag,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
pub struct Pair {
    /// A folder of real pictures, or a data set; for `fid` also a .npz file of statistics.
    #[arg(value_parser = input())]
    pub real: PathBuf,
    /// A folder of pictures to measure, or a data set.
    pub fake: PathBuf,
    #[command(flatten)]
    pub network: Network,
}

/// What is drawn and how it is measured. Interrupted, it goes on where it was.
#[derive(ClapArgs)]
pub struct DrawnArgs {
    /// Folder for the drawings.
    #[arg(long)]
    pub drawings: PathBuf,
    /// Candidates of a caption, of which the best is kept; 512 of MS-COCO and CUB as in the paper, else 32 and all halves of it.
    #[arg(long)]
    pub of: Option<usize>,
    /// Captions that are drawn, evenly chosen (of MS-COCO at random); 30,000 of MS-COCO, all of others.
    #[arg(long)]
    pub captions: Option<usize>,
    /// The model file that draws and ranks; the embedded model if absent.
    #[arg(long, value_parser = input())]
    pub model: Option<PathBuf>,
    /// How the prior's weights are kept while it draws; as the processor multiplies them, bf16 or f32, if absent.
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// A model file whose contrastive model judges. It must be another than the one that ranks, which would praise itself.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub judge: PathBuf,
    /// Weights of an Inception v3 for FID, KID and IS; the judge's own features if absent. With --protocol it may be given twice.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub inception: Vec<PathBuf>,
    /// How pictures are resized for the weights of 2015; torchvision's have a way of their own.
    #[arg(long, value_enum, default_value_t = Resizing::PytorchFid, requires = "inception")]
    pub resize: Resizing,
    /// Measure FID and IS as another's code does.
    #[arg(long, value_enum, requires = "inception", conflicts_with = "resize")]
    pub protocol: Option<Protocol>,
    /// Statistics of the real pictures' features for FID, `mu` and `sigma` as pytorch-fid and DM-GAN's code save them.
    #[arg(long, value_name = "FILE.npz", requires = "inception", value_parser = input())]
    pub reference: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which held-out combinations are drawn, and how drawings are measured.
#[derive(ClapArgs)]
pub struct ZeroShot {
    /// The model file that draws and ranks; the embedded model if absent.
    #[arg(long, value_parser = input())]
    pub model: Option<PathBuf>,
    /// How the prior's weights are kept while it draws; as the processor multiplies them, bf16 or f32, if absent.
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// A model file whose contrastive model judges. It must be another than the one that ranks, which would praise itself.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub judge: PathBuf,
    /// Folder of the packages that `runs/fetch_emoji.sh` fetches.
    #[arg(long, value_name = "DIR")]
    pub packages: PathBuf,
    /// The list of held-out combinations that the model was trained without, one a line; the embedded model's if absent.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub held_out: Option<PathBuf>,
    /// Kinds of combinations, separated by commas: style, rendition, colour, extra, things, made-of, shaped-like, panel; all if absent.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// Combinations that are drawn, evenly chosen; all if absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Candidates of each caption, of which the best is measured.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub candidates: u32,
    /// Decides the captions' styles and backgrounds, the pictures that drawings are compared with, and the drawings.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub sampling: PaperSampling,
    /// Print JSON: also the result of each combination.
    #[arg(long)]
    pub json: bool,
    /// Also write a sheet: a row for each kind, its two best and two worst drawings, each between the true picture and the wrong one
    /// that the judge finds nearest.
    #[arg(long, value_name = "FILE.png", value_parser = output())]
    pub sheet: Option<PathBuf>,
}

/// How tokens are picked: each from the model's whole distribution, as in the paper, unless told otherwise.
#[derive(ClapArgs)]
pub struct PaperSampling {
    /// 1 is the model's own distribution, less is safer, 0 the likeliest tokens.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Choose among the K likeliest tokens only.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that hold this probability only.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// How strongly to follow the words; 1 is the model's own distribution.
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub guidance: f64,
}

#[derive(Subcommand)]
pub enum Human {
    /// A page that shows people two pictures of each caption and saves what they say.
    Page {
        /// Pictures of one model: NAME.png beside NAME.txt with the caption.
        a: PathBuf,
        /// Pictures of the other, of the same captions in the same order.
        b: PathBuf,
        /// Comparisons, evenly chosen; all if absent.
        #[arg(long)]
        tasks: Option<usize>,
        /// The page.
        #[arg(long, default_value = "compare.html", value_parser = output())]
        out: PathBuf,
    },
    /// What the people said whose CSV files the page saved.
    Votes {
        /// One file a person.
        #[arg(required = true, value_name = "CSV", value_parser = input())]
        files: Vec<PathBuf>,
        /// Leave out who disagrees with the others and answers in a hurry, as the paper did.
        #[arg(long)]
        drop_hasty: bool,
        /// What the two models are called.
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

#[derive(ClapArgs)]
pub struct EvalArgs {
    /// A data set; only its held-out part is used.
    #[arg(long)]
    pub data: PathBuf,
    /// A model file; the embedded model if absent.
    #[arg(long, value_parser = input())]
    pub model: Option<PathBuf>,
    /// How the prior's weights are kept while it draws; as the processor multiplies them, bf16 or f32, if absent.
    #[arg(long, value_enum, conflicts_with = "precision")]
    pub weights: Option<Weights>,
    /// Numbers to multiply.
    #[arg(long, value_enum, default_value_t = PrecisionFlag::Auto)]
    pub precision: PrecisionFlag,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
