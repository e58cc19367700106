//! `tessera serve`: serves a web page and an API for drawing.

use std::path::Path;

use anyhow::{Result, ensure};
use tessera_serve::{About, Keys, Options, Server};

use super::{model_name, say, tessera, warn_without_guidance};
use crate::args::{Log, Serve};
use crate::signals;
use crate::stderr::{self, Stderr, note};

/// The maximum of `--rows`. More rows use more memory without being faster.
const MAX_ROWS: usize = 1024;

/// Runs `tessera serve` until a signal stops it.
pub fn run(args: &Serve) -> Result<()> {
    ensure!((1..=MAX_ROWS).contains(&args.rows), "--rows {}: wanted 1 to {MAX_ROWS}", args.rows);
    log(args.log);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    signals::on_first(move || {
        let _ = stop.send(());
    })?;
    let keys = args.api_key_file.as_deref().map(Keys::read).transpose()?;
    let (tessera, id) = tessera(&args.which, args.rerank.as_deref())?;
    warn_without_guidance(&tessera);
    let options = Options {
        keys,
        rows: args.rows,
        public_url: args.public_url.clone(),
        origins: args.cors_origin.clone(),
        ..Options::new(tessera, about(args.which.model.as_deref(), id))
    };
    let open = options.keys.is_none();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::bind(&args.bind, options).await?;
        if open && !server.address()?.ip().is_loopback() {
            note!(
                "warning: everyone who can connect to {} can use this server; require a key with --api-key-file",
                args.bind
            );
        }
        // A server also works if its standard output is closed or full.
        let _ = say(format_args!("http://{} is ready; press Ctrl-C to stop", server.address()?));
        server.run(async { drop(stopped.await) }).await;
        Ok(())
    })
}

/// Returns the description of the model for the web page and the API.
fn about(path: Option<&Path>, id: String) -> About {
    let name = model_name(path);
    match path {
        None => About {
            name,
            id,
            text: tessera_pretrained::ABOUT.into(),
            examples: tessera_pretrained::EXAMPLES.map(str::to_string).into(),
        },
        Some(_) => About { name, id, text: String::new(), examples: Vec::new() },
    }
}

fn log(kind: Log) {
    let terminal = stderr::is_terminal();
    let lines =
        tracing_subscriber::fmt().with_writer(|| Stderr).with_target(false).log_internal_errors(false);
    match kind {
        Log::Off => {}
        Log::Text => lines.with_ansi(terminal).init(),
        Log::Auto if terminal => lines.init(),
        Log::Auto | Log::Json => lines.json().flatten_event(true).init(),
    }
}
