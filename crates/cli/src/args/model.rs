//! The flags of commands about model files, as typed: `pack`, `convert`, `reconstruct`, `inspect`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::{OnDevice, input, output};

/// The flags of `pack`.
#[derive(ClapArgs)]
pub struct Pack {
    /// The model file, or `embedded`.
    #[arg(value_parser = input())]
    pub model: PathBuf,
    /// A file of `train rerank`, whose contrastive model is added to the new file.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub rerank: Option<PathBuf>,
    /// How weights are stored. Those of the dVAE are never stored in 8 bits.
    #[arg(long, value_enum, default_value_t = Packing::Int8)]
    pub dtype: Packing,
    /// The fraction of captions that were dropped when the prior was trained (`data.caption_drop`
    /// of its config), for a file that does not contain it.
    #[arg(long, value_name = "SHARE")]
    pub caption_drop: Option<f32>,
    /// The new model file.
    #[arg(long, value_parser = output())]
    pub out: PathBuf,
}

/// What can be converted, with its flags.
#[derive(Subcommand)]
pub enum Convert {
    /// Make the model file of a training run from its newest checkpoint, whatever number of ranks
    /// wrote it.
    Run {
        /// The folder of the run.
        run: PathBuf,
        /// The tokenizer of the run, for a prior or a contrastive model.
        #[arg(long, value_name = "FILE", value_parser = input())]
        bpe: Option<PathBuf>,
        /// A model file with the dVAE of the run, for a prior.
        #[arg(long, value_name = "FILE", value_parser = input())]
        dvae: Option<PathBuf>,
        /// The model file.
        #[arg(long, value_parser = output())]
        out: PathBuf,
    },
    /// Convert OpenAI's released dVAE.
    OpenaiDvae {
        /// `encoder.pkl` as published. It is only read; no code in it runs.
        #[arg(value_parser = input())]
        encoder: PathBuf,
        /// `decoder.pkl` as published.
        #[arg(value_parser = input())]
        decoder: PathBuf,
        #[command(flatten)]
        stored: Stored,
        /// The model file.
        #[arg(long, value_parser = output())]
        out: PathBuf,
    },
    /// Convert a contrastive model for ranking: CLIP with a vision transformer, from OpenAI,
    /// Hugging Face or open_clip.
    Clip {
        /// The weights as published: .pt or .safetensors. They are only read; no code in them runs.
        #[arg(value_parser = input())]
        weights: PathBuf,
        /// CLIP's vocabulary: OpenAI's bpe_simple_vocab_16e6.txt.gz, or Hugging Face's
        /// tokenizer.json.
        #[arg(long, value_name = "FILE", value_parser = input())]
        vocab: PathBuf,
        /// The GELU that the weights were trained with. It is read from config.json or
        /// open_clip_config.json in the folder of the weights, and known for OpenAI's own archives.
        #[arg(long, value_enum)]
        gelu: Option<WhichGelu>,
        /// The number of attention heads of the image tower, if no config file in the folder of the
        /// weights contains it and no published model has weights of this shape.
        #[arg(long, value_name = "N", requires = "text_heads")]
        image_heads: Option<usize>,
        /// The number of attention heads of the text tower.
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

/// The dtype of the weights in a converted file.
#[derive(Clone, Copy, ValueEnum)]
pub enum Dtype {
    /// Without loss: in f32, or in f16 where the values are the same.
    Exact,
    F32,
    /// Rounded to half precision.
    F16,
}

/// The dtype of the weights in a packed file.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Packing {
    /// Without loss: in f32, or in f16 where the values are the same.
    Exact,
    /// Rounded to half precision.
    F16,
    /// In signed 8-bit integers; 32 of them share a scale.
    Int8,
}

/// How the prior's weights are kept in memory while it draws.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// In f32; all computations are then in f32.
    F32,
    /// In bf16.
    Bf16,
    /// In 8 bits; only for a model file that contains how much this changes predictions.
    Int8,
}

/// The variants of the GELU in CLIP models.
#[derive(Clone, Copy, ValueEnum)]
pub enum WhichGelu {
    /// QuickGELU, of OpenAI's models.
    Quick,
    /// The exact GELU, of most models of open_clip.
    Exact,
}

/// The flags of `reconstruct`.
#[derive(ClapArgs)]
pub struct Reconstruct {
    /// A PNG, JPEG or WebP picture. Its middle square is used.
    #[arg(value_parser = input())]
    pub image: PathBuf,
    /// The model file [default: the embedded model]
    #[arg(long, value_parser = input(), env = "TESSERA_MODEL")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub on: OnDevice,
    /// The picture file: the original and its reconstruction, side by side.
    #[arg(long, default_value = "reconstruction.png", value_parser = output())]
    pub out: PathBuf,
    /// Enlarge each picture this many times.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub scale: u32,
    /// Print JSON, with the tokens.
    #[arg(long)]
    pub json: bool,
}

/// The flags of `inspect`.
#[derive(ClapArgs)]
pub struct Inspect {
    /// A PNG that `draw` wrote, a model file, `embedded`, or a folder: a data set, codes, or a
    /// training run.
    #[arg(value_parser = input(), required_unless_present = "devices")]
    pub file: Option<PathBuf>,
    /// List the GPUs that `--device gpu:N` can name, and what they can do.
    #[arg(long, conflicts_with_all = ["file", "words"])]
    pub devices: bool,
    /// List the words of the captions that a model was trained on, one per line.
    #[arg(long)]
    pub words: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
