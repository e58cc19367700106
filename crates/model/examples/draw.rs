//! Draws one picture of a sentence with the embedded model, and prints the progress after each row
//! of tokens.
//!
//! `cargo run --release -p tessera-model --example draw -- "a red apple" apple.png`

use std::error::Error;

use tessera_model::{Event, Request, Tessera};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(prompt), Some(file)) = (args.next(), args.next()) else {
        return Err("usage: draw PROMPT FILE.png".into());
    };
    let tessera = Tessera::embedded()?;
    let request = Request { n: 1, best: None, previews: true, ..tessera.request(&prompt) };
    for event in tessera.draw(request)? {
        match event? {
            Event::Tokens { .. } => {}
            Event::Preview(pictures) => println!("{} tokens so far", pictures[0].tokens.len()),
            Event::Picture(picture) => picture.image.save(&file)?,
        }
    }
    println!("{file}");
    Ok(())
}
