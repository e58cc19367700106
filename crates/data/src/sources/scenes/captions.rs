//! The captions of a scene: five in English, one in Chinese, and a single thing's name in one more language.

use rand_chacha::ChaCha8Rng;

use super::lot::one_of;
use super::scene::{Background, Content, Look, Scene};
use super::world::World;
use super::{chinese, english};
use crate::loader::{below, chance};

/// English captions of a scene.
const ENGLISH: usize = 5;
/// How often a caption names the style.
const STYLED: f32 = 0.4;
/// How often a caption names a white background.
const WHITE_NAMED: f32 = 0.08;

/// The scene's captions, the canonical one first: content, background and style in English.
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

/// The form in which samples and tests ask for the scene.
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
        Background::White if chance(rng, WHITE_NAMED) => " on a white background".to_string(),
        Background::White => String::new(),
        Background::Named(colour) => {
            let colour = english::colour_name(colour);
            match one_of(&[0, 1, 2], rng) {
                0 => format!(" on {} background", a_colour(colour)),
                1 => format!(" with {} background", a_colour(colour)),
                _ => format!(", {colour} background"),
            }
        }
    };
    let style = match chance(rng, STYLED) {
        true if chance(rng, 0.5) => format!(" in {} style", scene.style.name()),
        true => format!(", {} style", scene.style.name()),
        false => String::new(),
    };
    format!("{phrasing}{background}{style}")
}

fn a_colour(colour: &str) -> String {
    let article = if colour.starts_with('o') { "an" } else { "a" };
    format!("{article} {colour}")
}
