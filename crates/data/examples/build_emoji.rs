//! Builds an emoji set without the command line program.
//!
//! ```text
//! runs/fetch_emoji.sh packages
//! cargo run --release -p tessera-data --example build_emoji -- \
//!     packages out 72 small [MAX_CONCEPTS]
//! ```

use std::path::Path;

use anyhow::{Context, Result, bail};
use tessera_data::sources::{EmojiOptions, World, build_emoji};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (required, limit) = args.split_at(args.len().min(4));
    let [packages, out, size, world] = required else {
        bail!("wanted: PACKAGES OUT SIZE small|full [MAX_CONCEPTS]");
    };
    let world = match world.as_str() {
        "small" => World::Small,
        "full" => World::Full,
        other => bail!("the world is {other:?}, wanted small or full"),
    };
    let max_concepts =
        limit.first().map(|limit| limit.parse()).transpose().context("MAX_CONCEPTS is not a number")?;
    let size = size.parse().context("SIZE is not a number")?;
    let options = EmojiOptions { world, max_concepts, ..EmojiOptions::new(Path::new(packages), size) };
    let counts = build_emoji(&options, Path::new(out), &|done, total| eprint!("\r{done}/{total}"))?;
    println!("\n{counts}");
    for name in &counts.blank_names {
        println!("blank: {name}");
    }
    Ok(())
}
