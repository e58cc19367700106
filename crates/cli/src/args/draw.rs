//! The flags of `draw`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::{ModelArgs, input, output, seed};

/// The flags of `draw`.
#[derive(ClapArgs)]
pub struct Draw {
    /// The captions to draw. With several, each gets its own row.
    #[arg(value_name = "PROMPT", required_unless_present_any = ["prompts_file", "variations"])]
    pub prompts: Vec<String>,
    /// A file with more prompts, one per line.
    #[arg(long = "prompts", value_name = "FILE", id = "prompts_file", value_parser = input())]
    pub prompts_file: Option<PathBuf>,
    /// A negative prompt: what the pictures should not show.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub negative: String,
    /// Draw N pictures of each prompt without ranking, instead of the best of more candidates.
    #[arg(short, long = "number", value_name = "N", conflicts_with_all = ["best", "of"])]
    pub n: Option<usize>,
    /// Keep the K candidates that fit the prompt best, sorted by their score [default: 9, if the
    /// model has a reranker]
    #[arg(long, value_name = "K")]
    pub best: Option<usize>,
    /// The number of candidates from which the best are kept [default: 4 K]
    #[arg(long, value_name = "N")]
    pub of: Option<usize>,
    /// Write below each picture its score: the cosine of the reranker's embeddings of picture and
    /// prompt.
    #[arg(long)]
    pub scores: bool,
    /// Write each prompt above its pictures or, with --separate, below each picture.
    #[arg(long)]
    pub labels: bool,
    /// A model file whose reranker is used instead of the model's own. `train rerank` and `convert
    /// clip` make one.
    #[arg(long, value_name = "FILE", value_parser = input(), env = "TESSERA_RERANK")]
    pub rerank: Option<PathBuf>,
    /// The seed of all random numbers; the same seed gives the same pictures [default: random]
    #[arg(long, value_parser = seed)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub sampling: Sampling,
    /// The picture file.
    #[arg(long, default_value = "drawing.png", value_parser = output())]
    pub out: PathBuf,
    /// Write each picture to a separate file, `OUT-1.png` and so on, instead of one grid.
    #[arg(long)]
    pub separate: bool,
    /// Also write an animation that shows the pictures token by token.
    #[arg(long, value_name = "FILE.gif", value_parser = output())]
    pub gif: Option<PathBuf>,
    /// Draw each picture as a mosaic, in which each token shows the tile of its code, without
    /// smoothing.
    #[arg(long)]
    pub mosaic: bool,
    /// Enlarge each picture this many times.
    #[arg(long, default_value_t = 4)]
    pub scale: u32,
    #[command(flatten)]
    pub which: ModelArgs,
    /// Print JSON with the files, the parameters, and the score and tokens of each picture.
    #[arg(long)]
    pub json: bool,
    // This is last, because flags after it would be listed under its heading.
    #[command(flatten)]
    pub picture: PicturePrompt,
}

/// The picture to continue, and which cells of it are kept. A cell is the area of one token. The
/// embedded model has 12 x 12 cells.
#[derive(ClapArgs)]
#[command(next_help_heading = "Picture prompts")]
pub struct PicturePrompt {
    /// The picture to continue: a PNG, JPEG or WebP. If it is a single picture that `draw` wrote,
    /// its own tokens are used.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub image: Option<PathBuf>,
    /// Keep the top N rows of cells and draw the rest.
    #[arg(long, value_name = "N", requires = "image", group = "kept")]
    pub keep_rows: Option<usize>,
    /// Keep a rectangle of cells and draw the rest. Cells are counted from the top left.
    #[arg(long, value_name = "X,Y,WIDTH,HEIGHT", requires = "image", group = "kept", value_parser = rectangle)]
    pub keep: Option<[usize; 4]>,
    /// Draw only the cells under white pixels of this mask or, if it has transparency, under its
    /// transparent pixels. The mask must have the size of the picture.
    #[arg(long, value_name = "FILE", requires = "image", group = "kept", value_parser = input())]
    pub mask: Option<PathBuf>,
    /// Draw variations of the picture, by redrawing random cells.
    #[arg(long, requires = "image", group = "kept")]
    pub variations: bool,
    /// The fraction of cells that variations redraw, from 0 to 1.
    #[arg(long, value_name = "S", default_value_t = tessera_model::sample::DEFAULT_STRENGTH, requires = "variations")]
    pub strength: f64,
    /// How a picture is made square.
    #[arg(long, value_enum, default_value_t = Fit::Crop)]
    pub fit: Fit,
}

/// How a picture is made square.
#[derive(Clone, Copy, ValueEnum)]
pub enum Fit {
    /// Use the middle square.
    Crop,
    /// Use the complete picture and add white borders.
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

/// Parses `X,Y,WIDTH,HEIGHT`.
fn rectangle(text: &str) -> Result<[usize; 4], String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    let wanted = || "wanted four whole numbers, X,Y,WIDTH,HEIGHT".to_string();
    numbers.map_err(|_| wanted())?.try_into().map_err(|_| wanted())
}

/// How tokens are sampled.
#[derive(ClapArgs)]
pub struct Sampling {
    /// The sampling temperature: 1 keeps the model's distribution, 0 always takes the most probable
    /// token.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub temperature: f64,
    /// Sample only from the K most probable tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Sample only from the most probable tokens that together have this probability; 1 means all
    /// tokens.
    #[arg(long, value_name = "P", default_value_t = tessera_model::sample::DEFAULT_TOP_P)]
    pub top_p: f64,
    /// The strength of classifier-free guidance by the caption; 1 means no guidance [default: 1.5,
    /// or 1 if no captions were dropped in the model's training, which guidance requires]
    #[arg(long, value_name = "S")]
    pub guidance: Option<f64>,
}
