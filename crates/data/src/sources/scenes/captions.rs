//! Writes the captions of a scene: five in English, one in Chinese, and for a single thing its name
//! in another language.

use rand_chacha::ChaCha8Rng;

use super::scene::{Background, Colour, Content, Look, Scene};
use super::world::World;
use super::{chinese, english};
use crate::sources::emoji::style::Style;
use tessera_base::random::{below, chance};

/// The number of English captions of a scene.
const ENGLISH: usize = 5;
/// The probability that a caption names the style.
const STYLED: f32 = 0.4;
/// The probability that a caption names a white background.
const WHITE_NAMED: f32 = 0.08;
/// The phrase for a white background.
const WHITE: &str = " on a white background";

/// Returns the scene's captions. The first one is the canonical caption: content, background and
/// style in English.
pub(super) fn captions(world: &World, scene: &Scene, rng: &mut ChaCha8Rng) -> Vec<String> {
    let phrasings = english::phrasings(world, &scene.content);
    let mut captions = vec![canonical(world, scene)];
    for _ in 1..ENGLISH {
        let phrasing = &phrasings[below(rng, phrasings.len() as u64) as usize];
        captions.push(english_caption(phrasing, scene, rng));
    }
    let phrasings = chinese::phrasings(world, &scene.content);
    let phrasing = &phrasings[below(rng, phrasings.len() as u64) as usize];
    let style = if chance(rng, STYLED) { chinese::style(scene.style) } else { String::new() };
    captions.push(format!("{phrasing}{}{style}", chinese::background(scene.background)));
    if let Content::One { thing, look: Look::Plain } = scene.content
        && scene.background == Background::White
        && let others = &world.things[thing].others
        && !others.is_empty()
    {
        captions.push(others[below(rng, others.len() as u64) as usize].clone());
    }
    captions
}

/// Returns the canonical caption, which samples and tests use as prompt.
pub(super) fn canonical(world: &World, scene: &Scene) -> String {
    let phrasing = english::phrasings(world, &scene.content).swap_remove(0);
    let background = match scene.background {
        Background::White => String::new(),
        Background::Named(colour) => format!(" on {} background", a_colour(english::colour_name(colour))),
    };
    format!("{phrasing}{background}, {} style", scene.style.name())
}

fn english_caption(phrasing: &str, scene: &Scene, rng: &mut ChaCha8Rng) -> String {
    let background = match scene.background {
        Background::White if chance(rng, WHITE_NAMED) => WHITE.to_string(),
        Background::White => String::new(),
        Background::Named(colour) => {
            let ways = backgrounds(colour);
            ways[below(rng, ways.len() as u64) as usize].clone()
        }
    };
    let [within, behind] = styles(scene.style);
    let style = match chance(rng, STYLED) {
        true if chance(rng, 0.5) => within,
        true => behind,
        false => String::new(),
    };
    format!("{phrasing}{background}{style}")
}

/// Returns the phrases for a coloured background.
fn backgrounds(colour: Colour) -> [String; 3] {
    let colour = english::colour_name(colour);
    [
        format!(" on {} background", a_colour(colour)),
        format!(" with {} background", a_colour(colour)),
        format!(", {colour} background"),
    ]
}

/// Returns the two phrases for a style.
fn styles(style: Style) -> [String; 2] {
    [format!(" in {} style", style.name()), format!(", {} style", style.name())]
}

/// Returns texts that together contain all words that can occur in captions of scenes with these
/// contents.
pub(super) fn texts<'a>(world: &'a World, contents: &'a [Content]) -> impl Iterator<Item = String> + 'a {
    let phrasings = contents.iter().flat_map(move |content| {
        let others = match *content {
            Content::One { thing, look: Look::Plain } => world.things[thing].others.clone(),
            _ => Vec::new(),
        };
        let english = english::phrasings(world, content);
        english.into_iter().chain(chinese::phrasings(world, content)).chain(others)
    });
    let takes_background = contents.iter().any(Content::takes_background);
    let coloured = Colour::ALL.into_iter().filter(move |_| takes_background).flat_map(|colour| {
        let chinese = chinese::background(Background::Named(colour));
        backgrounds(colour).into_iter().chain([chinese])
    });
    let styled =
        Style::ALL.into_iter().flat_map(|style| styles(style).into_iter().chain([chinese::style(style)]));
    phrasings.chain([WHITE.to_string()]).chain(coloured).chain(styled)
}

fn a_colour(colour: &str) -> String {
    let article = if colour.starts_with('o') { "an" } else { "a" };
    format!("{article} {colour}")
}
