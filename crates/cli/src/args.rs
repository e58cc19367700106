//! The flags, as typed. What they mean is decided in `commands`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use tessera_kernels::Precision;

/// Draws pictures from sentences, and trains the models that do: DALL·E of 2021, whole.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Args {
    /// Threads to compute with; as many as the processor has if not given. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make a data set of captioned pictures.
    #[command(subcommand)]
    Data(DataSource),
    /// Train one part of the model.
    #[command(subcommand)]
    Train(TrainTask),
    /// Turn pictures into tokens with a trained dVAE.
    Encode(Encode),
    /// Draw pictures of a sentence.
    Draw(Draw),
    /// Store a model in 8 bits, for shipping, with a reranker if one is named.
    Pack {
        /// The model file.
        model: PathBuf,
        /// A file of `train rerank` whose contrastive model goes into the new file.
        #[arg(long, value_name = "FILE")]
        rerank: Option<PathBuf>,
        /// The smaller model file.
        #[arg(long)]
        out: PathBuf,
    },
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

#[derive(Subcommand)]
pub enum Convert {
    /// OpenAI's released dVAE.
    OpenaiDvae {
        /// `encoder.pkl`, as published; it is read, not run.
        encoder: PathBuf,
        /// `decoder.pkl`
        decoder: PathBuf,
        /// The model file.
        #[arg(long)]
        out: PathBuf,
    },
    /// A contrastive model to rank with: OpenAI's CLIP, Hugging Face's copy, or open_clip's; vision transformers only.
    Clip {
        /// The weights, as published: .pt or .safetensors; nothing in them is run.
        weights: PathBuf,
        /// CLIP's vocabulary: OpenAI's bpe_simple_vocab_16e6.txt.gz, or Hugging Face's tokenizer.json.
        #[arg(long, value_name = "FILE")]
        vocab: PathBuf,
        /// Which GELU the weights were trained with; OpenAI's own archives need no telling.
        #[arg(long, value_enum)]
        gelu: Option<WhichGelu>,
        /// The model file.
        #[arg(long)]
        out: PathBuf,
    },
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
    pub image: PathBuf,
    /// A model file; the embedded model if absent.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// The original beside its reconstruction.
    #[arg(long, default_value = "reconstruction.png")]
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
    pub settings: Settings,
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
    /// Works to time; all but the long `grow-*` if none is named.
    #[arg(value_name = "WORK")]
    pub works: Vec<String>,
    /// One JSON object a work instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Numbers to multiply.
    #[arg(long, value_enum, default_value_t = Numbers::Auto)]
    pub precision: Numbers,
    /// Timed repetitions of a work.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Numbers {
    /// bf16 where the processor multiplies it, else f32.
    Auto,
    F32,
    Bf16,
}

impl From<Numbers> for Precision {
    fn from(numbers: Numbers) -> Precision {
        match numbers {
            Numbers::Auto => Precision::Auto,
            Numbers::F32 => Precision::F32,
            Numbers::Bf16 => Precision::Bf16,
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
        /// Combinations of thing and style to hold out, in percent.
        #[arg(long, default_value_t = 8)]
        holdout: u32,
        /// At most this many things.
        #[arg(long)]
        max_concepts: Option<usize>,
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
        /// Side of the stored pictures in pixels.
        #[arg(long, default_value_t = 72)]
        size: u32,
        /// Pictures to hold out, in percent.
        #[arg(long, default_value_t = 5)]
        holdout: u32,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum World {
    /// A few hundred everyday things.
    Small,
    /// Everything, with skin tones and genders.
    Full,
}

#[derive(Subcommand)]
pub enum TrainTask {
    /// The caption vocabulary, from a data set.
    Bpe {
        #[command(flatten)]
        settings: Settings,
        /// The data set.
        #[arg(long)]
        data: PathBuf,
        /// Folder for `tokenizer.json`.
        #[arg(long)]
        run: PathBuf,
    },
    /// Stage 1: the discrete VAE, from a data set.
    Dvae(Common),
    /// Stage 2: the transformer, from a folder of codes.
    Prior {
        #[command(flatten)]
        common: Common,
        /// The tokenizer that `train bpe` wrote.
        #[arg(long)]
        bpe: PathBuf,
    },
    /// The contrastive model that ranks drawings, from a data set.
    Rerank {
        #[command(flatten)]
        common: Common,
        /// The tokenizer that `train bpe` wrote.
        #[arg(long)]
        bpe: PathBuf,
        /// A model file with the dVAE through whose tokens a share of the pictures goes (`data.reconstructed`).
        #[arg(long)]
        dvae: Option<PathBuf>,
    },
}

/// Which settings.
#[derive(ClapArgs)]
pub struct Settings {
    /// A preset (tiny, emoji, 2.8b, 5.6b, paper) or a TOML file of differences to one.
    #[arg(long, default_value = "emoji")]
    pub config: String,
    /// Change one value, as in `--set prior.n_layers=12`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// Flags of every training command.
#[derive(ClapArgs)]
pub struct Common {
    #[command(flatten)]
    pub settings: Settings,
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
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(ClapArgs)]
pub struct Encode {
    #[command(flatten)]
    pub settings: Settings,
    /// The data set.
    #[arg(long)]
    pub data: PathBuf,
    /// A model file with a dVAE.
    #[arg(long)]
    pub dvae: PathBuf,
    /// Folder for the codes.
    #[arg(long)]
    pub out: PathBuf,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(ClapArgs)]
pub struct Draw {
    /// What to draw; each further prompt gets a row of its own.
    #[arg(required = true, value_name = "PROMPT")]
    pub prompts: Vec<String>,
    /// Draw N pictures of each prompt and show them as they come, instead of the best of more.
    #[arg(short, long = "number", value_name = "N", conflicts_with_all = ["best", "of"])]
    pub n: Option<usize>,
    /// Show the K pictures that fit the prompt best, best first; 9 if the model has a reranker.
    #[arg(long, value_name = "K")]
    pub best: Option<usize>,
    /// Choose them from N candidates; 4 K unless told otherwise.
    #[arg(long, value_name = "N")]
    pub of: Option<usize>,
    /// Write under each picture how well it fits: the cosine of the reranker's embeddings.
    #[arg(long)]
    pub scores: bool,
    /// A model file whose reranker chooses, instead of the model's own; `train rerank` and `convert clip` make one.
    #[arg(long, value_name = "FILE")]
    pub rerank: Option<PathBuf>,
    /// The same seed gives the same pictures; drawn at random if absent.
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub sampling: Sampling,
    /// The picture file.
    #[arg(long, default_value = "drawing.png")]
    pub out: PathBuf,
    /// Write each picture to a file of its own, `OUT-1.png` and so on, and no grid.
    #[arg(long)]
    pub separate: bool,
    /// Enlarge each picture this many times.
    #[arg(long, default_value_t = 4)]
    pub scale: u32,
    /// A model file; the embedded model if absent.
    #[arg(long)]
    pub model: Option<PathBuf>,
}

/// How tokens are picked.
#[derive(ClapArgs)]
pub struct Sampling {
    /// 1 is the model's own distribution, less is safer, 0 the likeliest tokens.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Choose among the K likeliest tokens only.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that hold this probability only; 1 is all of them.
    #[arg(long, value_name = "P", default_value_t = tessera_model::sample::DEFAULT_TOP_P)]
    pub top_p: f64,
    /// How strongly to follow the words; 1 is the model's own distribution.
    #[arg(long, value_name = "S", default_value_t = tessera_model::sample::DEFAULT_GUIDANCE)]
    pub guidance: f64,
}

#[derive(ClapArgs)]
pub struct Inspect {
    /// A PNG that `draw` wrote, or a model file.
    pub file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Eval {
    /// Reconstructions of held-out pictures: PSNR, ELBO, codebook usage.
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
        #[arg(long, value_name = "FILE.png")]
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
        /// The plot.
        #[arg(long, default_value = "blur.svg")]
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
        #[arg(long, default_value = "overlap.png")]
        out: PathBuf,
    },
    /// The best of 1, 2, 4 … N candidates of each held-out caption (the paper's figure 9c), drawn, measured and plotted.
    RerankCurve {
        /// A data set: its held-out captions are drawn, and its pictures are what drawings are measured against.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        drawn: Drawn,
        /// The plot.
        #[arg(long, default_value = "rerank-curve.svg")]
        out: PathBuf,
    },
    /// Drawings of MS-COCO's captions, as the paper is measured.
    Coco {
        /// Folder with captions_val2014.json (or annotations/…) and the pictures in val2014/.
        dir: PathBuf,
        #[command(flatten)]
        drawn: Drawn,
    },
    /// Drawings of the captions of CUB-200-2011's test pictures.
    Cub {
        /// Folder with images.txt, train_test_split.txt, images/ and the captions in text/ or text_c10/.
        dir: PathBuf,
        #[command(flatten)]
        drawn: Drawn,
    },
    /// Comparisons by people (the paper's figure 7).
    #[command(subcommand)]
    Human(Human),
    /// What a model and a data set tell, all of it, on one page.
    Report {
        /// A data set.
        #[arg(long)]
        data: PathBuf,
        #[command(flatten)]
        drawn: Drawn,
        /// The page.
        #[arg(long, default_value = "report.html")]
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
        #[arg(long, default_value = "curves.svg")]
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

/// Which network looks at pictures.
#[derive(ClapArgs)]
pub struct Network {
    /// Weights of an Inception v3: those of 2015 that FID is usually measured by, or torchvision's, as in the paper.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rerank", "classes"])]
    pub inception: Option<PathBuf>,
    /// How pictures are resized for the weights of 2015; torchvision's have a way of their own.
    #[arg(long, value_enum, default_value_t = Resizing::PytorchFid, requires = "inception")]
    pub resize: Resizing,
    /// A model file whose contrastive model looks; that of the embedded model if no network is named.
    #[arg(long, value_name = "FILE")]
    pub rerank: Option<PathBuf>,
    /// Captions that are the classes of a contrastive model's IS, a line each.
    #[arg(long, value_name = "FILE")]
    pub classes: Option<PathBuf>,
    /// Folder in which what was seen is kept, so that an interrupted measurement goes on, and the next need not look again.
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Numbers to multiply.
    #[arg(long, value_enum, default_value_t = Numbers::Auto)]
    pub precision: Numbers,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
pub struct Pair {
    /// A folder of real pictures, or a data set.
    pub real: PathBuf,
    /// A folder of pictures to measure, or a data set.
    pub fake: PathBuf,
    #[command(flatten)]
    pub network: Network,
}

/// What is drawn and how it is measured. Interrupted, it goes on where it was.
#[derive(ClapArgs)]
pub struct Drawn {
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
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// A model file whose contrastive model judges. It must be another than the one that ranks, which would praise itself.
    #[arg(long, value_name = "FILE")]
    pub judge: PathBuf,
    /// Weights of an Inception v3 for FID, KID and IS; the judge's own features if absent.
    #[arg(long, value_name = "FILE")]
    pub inception: Option<PathBuf>,
    /// How pictures are resized for the weights of 2015; torchvision's have a way of their own.
    #[arg(long, value_enum, default_value_t = Resizing::PytorchFid, requires = "inception")]
    pub resize: Resizing,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
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
        #[arg(long, default_value = "compare.html")]
        out: PathBuf,
    },
    /// What the people said whose CSV files the page saved.
    Votes {
        /// One file a person.
        #[arg(required = true, value_name = "CSV")]
        files: Vec<PathBuf>,
        /// Leave out who disagrees with the others and answers in a hurry, as the paper did.
        #[arg(long)]
        drop_hasty: bool,
        /// What the two models are called.
        #[arg(long, num_args = 2, value_names = ["A", "B"], default_values_t = ["A".to_string(), "B".to_string()])]
        names: Vec<String>,
        /// The plot.
        #[arg(long, default_value = "votes.svg")]
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
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Numbers to multiply.
    #[arg(long, value_enum, default_value_t = Numbers::Auto)]
    pub precision: Numbers,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
