//! The flags of `serve`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use tessera_serve::Origin;

use super::{Weights, input};

#[derive(ClapArgs)]
pub struct Serve {
    /// Where to listen. Any address but this machine's own, such as 127.0.0.1 or localhost, lets others in: then name keys, too.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub bind: String,
    /// A file of keys, one a line, one of which requests must send.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub api_key_file: Option<PathBuf>,
    /// The address at which clients reach the server, behind a proxy and perhaps below a path; for addresses in answers.
    #[arg(long, value_name = "URL", value_parser = tessera_serve::public_url)]
    pub public_url: Option<String>,
    /// A site whose pages may have this server draw, such as https://example.org, or * for any; may be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<Origin>,
    /// A model file; the embedded model if absent.
    #[arg(long, value_parser = input())]
    pub model: Option<PathBuf>,
    /// How the prior's weights are kept; 8 bits if the model file says what they change, else as the processor multiplies them.
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// A model file whose reranker chooses, instead of the model's own.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub rerank: Option<PathBuf>,
    /// Rows that are drawn in a step, over all requests: a picture takes one, or two with guidance.
    #[arg(long, value_name = "N", default_value_t = tessera_serve::Options::ROWS)]
    pub rows: usize,
    /// How requests are logged, to standard error.
    #[arg(long, value_enum, default_value_t = Log::Auto)]
    pub log: Log,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// Text for people at a terminal, else JSON.
    Auto,
    /// A line of text a request.
    Text,
    /// A JSON object a request.
    Json,
    /// Not at all.
    Off,
}
