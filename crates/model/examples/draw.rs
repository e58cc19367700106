//! Draws one picture of a sentence with the embedded model, and prints the progress after each row
//! of tokens.
//!
//! `cargo run --release -p tessera-model --example draw -- "a red apple" apple.png`

use anyhow::{Context, Result};
use tessera_model::{Event, Request, Tessera};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let prompt = args.next().context("usage: draw PROMPT FILE.png")?;
    let file = args.next().context("usage: draw PROMPT FILE.png")?;
    let tessera = Tessera::embedded()?;
    for event in tessera.draw(Request { prompt, ..Request::default() })? {
        match event? {
            Event::Tokens { .. } => {}
            Event::Preview(pictures) => println!("{} tokens so far", pictures[0].tokens.len()),
            Event::Picture(picture) => picture.image.save(&file)?,
        }
    }
    println!("{file}");
    Ok(())
}
