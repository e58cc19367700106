//! The flags of `draw`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::{Weights, input, output};

#[derive(ClapArgs)]
pub struct Draw {
    /// What to draw; each further prompt gets a row of its own.
    #[arg(value_name = "PROMPT", required_unless_present_any = ["prompts_file", "variations"])]
    pub prompts: Vec<String>,
    /// Draw the prompts of a file, too: one a line.
    #[arg(long = "prompts", value_name = "FILE", id = "prompts_file", value_parser = input())]
    pub prompts_file: Option<PathBuf>,
    /// What to steer away from.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub negative: String,
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
    /// Write each prompt above its pictures or, with --separate, below each picture.
    #[arg(long)]
    pub labels: bool,
    /// A model file whose reranker chooses, instead of the model's own; `train rerank` and `convert clip` make one.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub rerank: Option<PathBuf>,
    /// The same seed gives the same pictures; drawn at random if absent.
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub sampling: Sampling,
    /// The picture file.
    #[arg(long, default_value = "drawing.png", value_parser = output())]
    pub out: PathBuf,
    /// Write each picture to a file of its own, `OUT-1.png` and so on, and no grid.
    #[arg(long)]
    pub separate: bool,
    /// Also write an animation of the mosaics forming.
    #[arg(long, value_name = "FILE.gif", value_parser = output())]
    pub gif: Option<PathBuf>,
    /// Enlarge each picture this many times.
    #[arg(long, default_value_t = 4)]
    pub scale: u32,
    /// A model file; the embedded model if absent.
    #[arg(long, value_parser = input())]
    pub model: Option<PathBuf>,
    /// How the prior's weights are kept; 8 bits if the model file says what they change, else as the processor multiplies them.
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// Print JSON: files, parameters, and of each picture its score and tokens.
    #[arg(long)]
    pub json: bool,
    // Last, since what comes after it would be under its heading.
    #[command(flatten)]
    pub picture: PicturePrompt,
}

/// A picture to go on from, and what of it is kept. Cells are what a token covers; the embedded model has 12 x 12.
#[derive(ClapArgs)]
#[command(next_help_heading = "Picture prompts")]
pub struct PicturePrompt {
    /// A PNG, JPEG or WebP to go on from; one that `draw` wrote as a single picture is gone on with exactly.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub image: Option<PathBuf>,
    /// Keep the top N rows of cells and draw the rest.
    #[arg(long, value_name = "N", requires = "image", group = "kept")]
    pub keep_rows: Option<usize>,
    /// Keep a rectangle of cells, counted from the top left, and draw the rest.
    #[arg(long, value_name = "X,Y,WIDTH,HEIGHT", requires = "image", group = "kept", value_parser = rectangle)]
    pub keep: Option<[usize; 4]>,
    /// Draw the cells under the white of a mask as large as the picture, or under what is transparent if any of it is.
    #[arg(long, value_name = "FILE", requires = "image", group = "kept", value_parser = input())]
    pub mask: Option<PathBuf>,
    /// Draw pictures like it: each has other cells drawn anew.
    #[arg(long, requires = "image", group = "kept")]
    pub variations: bool,
    /// The share of cells that variations draw anew, 0 to 1.
    #[arg(long, value_name = "S", default_value_t = tessera_model::sample::DEFAULT_STRENGTH, requires = "variations")]
    pub strength: f64,
    /// How a picture that is no square is made one.
    #[arg(long, value_enum, default_value_t = Fit::Crop)]
    pub fit: Fit,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Fit {
    /// Its middle square.
    Crop,
    /// All of it, with white borders.
    Pad,
}

impl From<Fit> for tessera_data::prompt::Fit {
    fn from(fit: Fit) -> tessera_data::prompt::Fit {
        match fit {
            Fit::Crop => tessera_data::prompt::Fit::Crop,
            Fit::Pad => tessera_data::prompt::Fit::Pad,
        }
    }
}

fn rectangle(text: &str) -> Result<[usize; 4], String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    let wanted = || "wanted four whole numbers, X,Y,WIDTH,HEIGHT".to_string();
    numbers.map_err(|_| wanted())?.try_into().map_err(|_| wanted())
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
    /// How strongly to follow the words; 1 is the model's own distribution. 1.5 unless told otherwise, or 1 if captions were not dropped in
    /// the model's training, which guidance needs.
    #[arg(long, value_name = "S")]
    pub guidance: Option<f64>,
}
