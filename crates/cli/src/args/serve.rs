//! The flags of `serve`, as typed.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use tessera_serve::Origin;

use super::{ModelArgs, input};

/// The flags of `serve`.
#[derive(ClapArgs)]
pub struct Serve {
    /// The address to listen on. Use API keys if it is not a local address like 127.0.0.1, since
    /// other machines can then connect.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub bind: String,
    /// A file of API keys, one per line. Each request must then contain one of them.
    #[arg(long, value_name = "FILE", value_parser = input())]
    pub api_key_file: Option<PathBuf>,
    /// The URL at which clients reach the server, if it is behind a proxy. It is used for URLs in
    /// responses and may contain a path.
    #[arg(long, value_name = "URL", value_parser = tessera_serve::public_url)]
    pub public_url: Option<String>,
    /// A site whose pages may use this server, such as https://example.org, or * for all; may be
    /// repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<Origin>,
    #[command(flatten)]
    pub which: ModelArgs,
    /// A model file whose reranker is used instead of the model's own.
    #[arg(long, value_name = "FILE", value_parser = input(), env = "TESSERA_RERANK")]
    pub rerank: Option<PathBuf>,
    /// The maximum batch size of all requests together, in rows. A picture takes one row, or two
    /// with guidance.
    #[arg(long, value_name = "N", default_value_t = tessera_serve::Options::ROWS)]
    pub rows: usize,
    /// The format of the request log on standard error.
    #[arg(long, value_enum, default_value_t = Log::Auto)]
    pub log: Log,
}

/// The format of the request log.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// Text if standard error is a terminal, otherwise JSON.
    Auto,
    /// One line of text per request.
    Text,
    /// One JSON object per request.
    Json,
    /// No log.
    Off,
}
