//! Samples random scenes.

use anyhow::{Context, Result, bail, ensure};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::held_out::{Combination, HeldOut};
use super::scene::{Background, Colour, Content, Extra, Look, Operation, Relation, Rendition, Scene};
use super::world::{Kind, World};
use crate::sources::emoji::style::Style;
use tessera_base::random::{below, chance, uniform};

/// The relative frequency of each kind of scene, as weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    /// The weight of one thing without a change.
    pub plain: f32,
    /// The weight of one thing that is recoloured, tiny, huge or upside down, or of two to four
    /// copies of it.
    pub attributes: f32,
    /// The weight of one thing as an x-ray, a sketch, a stamp and so on.
    pub renditions: f32,
    /// The weight of two things in a relative position.
    pub relations: f32,
    /// The weight of one thing that is made of another or shaped like another.
    pub blends: f32,
    /// The weight of characters that wear clothes, hold things or walk a dog.
    pub dressed: f32,
    /// The weight of two panels with the same thing.
    pub panels: f32,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            plain: 0.24,
            attributes: 0.15,
            renditions: 0.17,
            relations: 0.14,
            blends: 0.06,
            dressed: 0.12,
            panels: 0.12,
        }
    }
}

impl Shares {
    fn weights(&self) -> [f32; 7] {
        let Shares { plain, attributes, renditions, relations, blends, dressed, panels } = *self;
        [plain, attributes, renditions, relations, blends, dressed, panels]
    }

    /// Returns the weight of the kind with this name.
    ///
    /// # Errors
    /// If there is no kind with this name.
    pub fn of(&mut self, kind: &str) -> Result<&mut f32> {
        Ok(match kind {
            "plain" => &mut self.plain,
            "attributes" => &mut self.attributes,
            "renditions" => &mut self.renditions,
            "relations" => &mut self.relations,
            "blends" => &mut self.blends,
            "dressed" => &mut self.dressed,
            "panels" => &mut self.panels,
            other => bail!(
                "there is no kind of scene called {other:?}; wanted plain, attributes, renditions, relations, \
                 blends, dressed or panels"
            ),
        })
    }

    /// Checks that the weights are valid and at least one is positive.
    pub(super) fn check(&self) -> Result<()> {
        let weights = self.weights();
        let usable = weights.iter().all(|share| share.is_finite() && *share >= 0.0);
        ensure!(
            usable && weights.iter().sum::<f32>() > 0.0,
            "the shares of scenes are {weights:?}; wanted numbers of at least 0, not all 0"
        );
        Ok(())
    }
}

/// Samples random scenes.
pub(super) struct Lot<'a> {
    world: &'a World,
    shares: &'a Shares,
    characters: Vec<usize>,
    countable: Vec<usize>,
    /// Things that a character can hold: objects, food and plants.
    portable: Vec<usize>,
}

/// The maximum number of attempts to sample a scene without a held-out combination. More attempts
/// mean that the list is too long.
const MAX_TRIES: usize = 1000;

impl<'a> Lot<'a> {
    pub(super) fn new(world: &'a World, shares: &'a Shares) -> Self {
        Self {
            world,
            shares,
            characters: world.those(|thing| thing.kind.is_character()),
            countable: world.those(|thing| thing.plural.is_some()),
            portable: world.those(|thing| match thing.kind {
                Kind::Object | Kind::Food | Kind::Produce | Kind::Plant => true,
                Kind::Animal | Kind::Face | Kind::Place => false,
            }),
        }
    }

    /// Samples a scene without any combination of `held_out`.
    pub(super) fn draw(&self, held_out: &HeldOut, rng: &mut ChaCha8Rng) -> Result<Scene> {
        (0..MAX_TRIES)
            .map(|_| self.any(rng))
            .find(|scene| scene.combinations().iter().all(|one| !held_out.contains(one)))
            .context("nearly every scene is held out; shorten the list of held-out combinations")
    }

    /// Samples a scene that shows `combination`. Everything else in it is random.
    pub(super) fn showing(&self, combination: Combination, rng: &mut ChaCha8Rng) -> Scene {
        let mut style = None;
        let content = match combination {
            Combination::Style(thing, held_out_style) => {
                style = Some(held_out_style);
                Content::One { thing, look: Look::Plain }
            }
            Combination::Rendition(thing, rendition) => Content::Rendered { thing, rendition },
            Combination::Colour(thing, colour) => Content::One { thing, look: Look::Coloured(colour) },
            Combination::Extra(thing, extra) => Content::Dressed { thing, extras: vec![extra], held: None },
            Combination::Things(first, second) => {
                Content::Two { first, second, relation: one_of(&Relation::ALL, rng) }
            }
            Combination::MadeOf(whole, part) => Content::MadeOf { whole, part },
            Combination::ShapedLike(surface, shape) => Content::ShapedLike { surface, shape },
            Combination::Panel(thing, operation) => Content::Panels { thing, operation },
        };
        self.finish(content, style, rng)
    }

    /// Returns contents that together cover everything that sampled scenes can show: each thing in
    /// each of its roles, each look, each rendition and so on.
    pub(super) fn all_parts(&self) -> Vec<Content> {
        let drawn = self.shares.weights().into_iter().enumerate().filter(|(_, share)| *share > 0.0);
        drawn.flat_map(|(kind, _)| self.parts(kind)).collect()
    }

    /// Like [`Lot::all_parts`], for the kind with the same number as in [`Lot::any`].
    fn parts(&self, kind: usize) -> Vec<Content> {
        let n = self.world.things.len();
        let (things, next) = (0..n, |thing: usize| (thing + 1) % n);
        match kind {
            0 => things.map(|thing| Content::One { thing, look: Look::Plain }).collect(),
            1 => {
                let several = |&thing: &usize| [2, 3, 4].map(|count| Content::Several { thing, count });
                let colours = Colour::ALL.map(Look::Coloured);
                let looks = [&colours[..], &[Look::Tiny, Look::Huge, Look::UpsideDown]].concat();
                let one = |thing| looks.iter().map(move |&look| Content::One { thing, look });
                self.countable.iter().flat_map(several).chain(things.flat_map(one)).collect()
            }
            2 => {
                let rendered = |thing| Rendition::ALL.map(|rendition| Content::Rendered { thing, rendition });
                things.flat_map(rendered).collect()
            }
            3 => {
                let two = |first| {
                    Relation::ALL.map(|relation| Content::Two { first, second: next(first), relation })
                };
                things.flat_map(two).collect()
            }
            4 => {
                let blends = |thing| {
                    let other = next(thing);
                    let made_of = Content::MadeOf { whole: thing, part: other };
                    [made_of, Content::ShapedLike { surface: thing, shape: other }]
                };
                things.flat_map(blends).collect()
            }
            5 => {
                let wearing = |thing, extras| Content::Dressed { thing, extras, held: None };
                let worn = self.characters.iter().flat_map(|&thing| {
                    let each = Extra::ALL.into_iter().filter(move |&extra| self.can_be(thing, extra));
                    let two = wearing(thing, vec![Extra::Crown, Extra::Scarf]);
                    each.map(move |extra| wearing(thing, vec![extra])).chain([two])
                });
                let held =
                    self.portable.iter().zip(self.characters.iter().cycle()).map(|(&held, &thing)| {
                        Content::Dressed { thing, extras: Vec::new(), held: Some(held) }
                    });
                worn.chain(held).collect()
            }
            _ => {
                let panels = |thing| operations().map(move |operation| Content::Panels { thing, operation });
                things.flat_map(panels).collect()
            }
        }
    }

    fn any(&self, rng: &mut ChaCha8Rng) -> Scene {
        let content = match weighted(&self.shares.weights(), rng) {
            0 => Content::One { thing: self.thing(rng), look: Look::Plain },
            1 => self.attribute(rng),
            2 => Content::Rendered { thing: self.thing(rng), rendition: one_of(&Rendition::ALL, rng) },
            3 => {
                let (first, second) = self.two(rng);
                Content::Two { first, second, relation: one_of(&Relation::ALL, rng) }
            }
            4 => {
                let (first, second) = self.two(rng);
                match chance(rng, 0.5) {
                    true => Content::MadeOf { whole: first, part: second },
                    false => Content::ShapedLike { surface: first, shape: second },
                }
            }
            5 => self.dressed(rng),
            _ => Content::Panels { thing: self.thing(rng), operation: operation(rng) },
        };
        self.finish(content, None, rng)
    }

    /// Completes a scene: chooses a style that is available for the first thing, and a background.
    fn finish(&self, content: Content, style: Option<Style>, rng: &mut ChaCha8Rng) -> Scene {
        let styles: Vec<Style> = self.world.things[content.first()].drawings.keys().copied().collect();
        let style = style.unwrap_or_else(|| one_of(&styles, rng));
        let background = match content.takes_background() && chance(rng, 0.3) {
            true => Background::Named(one_of(&Colour::ALL, rng)),
            false => Background::White,
        };
        Scene { content, style, background }
    }

    fn thing(&self, rng: &mut ChaCha8Rng) -> usize {
        below(rng, self.world.things.len() as u64) as usize
    }

    fn two(&self, rng: &mut ChaCha8Rng) -> (usize, usize) {
        let first = self.thing(rng);
        let others = self.world.things.len() as u64 - 1;
        let second = (first as u64 + 1 + below(rng, others)) % (others + 1);
        (first, second as usize)
    }

    fn attribute(&self, rng: &mut ChaCha8Rng) -> Content {
        let u = uniform(rng);
        if u < 0.35 {
            return Content::Several {
                thing: one_of(&self.countable, rng),
                count: 2 + below(rng, 3) as usize,
            };
        }
        let look = match u {
            u if u < 0.7 => Look::Coloured(one_of(&Colour::ALL, rng)),
            u if u < 0.8 => Look::Tiny,
            u if u < 0.9 => Look::Huge,
            _ => Look::UpsideDown,
        };
        Content::One { thing: self.thing(rng), look }
    }

    /// Samples a character with one to three of these: clothes, a thing in the hand, a dog.
    fn dressed(&self, rng: &mut ChaCha8Rng) -> Content {
        let thing = one_of(&self.characters, rng);
        let target = match uniform(rng) {
            u if u < 0.6 => 1,
            u if u < 0.9 => 2,
            _ => 3,
        };
        let mut extras: Vec<Extra> = Vec::new();
        let mut held = None;
        while extras.len() + usize::from(held.is_some()) < target {
            if held.is_none() && !extras.contains(&Extra::WalkingDog) && chance(rng, 0.2) {
                held = Some(one_of(&self.portable, rng)).filter(|&other| other != thing);
                continue;
            }
            let extra = one_of(&Extra::ALL, rng);
            let has_hands = held.is_none() || extra != Extra::WalkingDog;
            if has_hands && extras.iter().all(|other| !extra.excludes(*other)) && self.can_be(thing, extra) {
                extras.push(extra);
            }
        }
        extras.sort_unstable();
        Content::Dressed { thing, extras, held }
    }

    /// Whether a thing can have an extra. Only fruit and vegetables can be babies, because a face
    /// is drawn on them; animals already have one.
    pub(super) fn can_be(&self, thing: usize, extra: Extra) -> bool {
        extra != Extra::Baby || self.world.things[thing].kind == Kind::Produce
    }
}

fn operation(rng: &mut ChaCha8Rng) -> Operation {
    match below(rng, 8) {
        0 => Operation::Sketch,
        1 => Operation::XRay,
        2 => Operation::Silhouette,
        3 => Operation::UpsideDown,
        4 => Operation::BlackAndWhite,
        5 => Operation::Coloured(one_of(&Colour::ALL, rng)),
        6 => Operation::Sunglasses,
        _ => Operation::Stamp,
    }
}

fn operations() -> impl Iterator<Item = Operation> {
    let plain = [
        Operation::Sketch,
        Operation::XRay,
        Operation::Silhouette,
        Operation::UpsideDown,
        Operation::BlackAndWhite,
        Operation::Sunglasses,
        Operation::Stamp,
    ];
    plain.into_iter().chain(Colour::ALL.map(Operation::Coloured))
}

/// Returns `all` in random order.
pub(super) fn shuffled<T>(mut all: Vec<T>, rng: &mut ChaCha8Rng) -> Vec<T> {
    for last in (1..all.len()).rev() {
        all.swap(last, below(rng, last as u64 + 1) as usize);
    }
    all
}

/// Chooses one item of `all` uniformly. `all` must not be empty.
pub(super) fn one_of<T: Copy>(all: &[T], rng: &mut ChaCha8Rng) -> T {
    all[below(rng, all.len() as u64) as usize]
}

/// Samples an index with a probability proportional to its weight.
fn weighted(weights: &[f32], rng: &mut ChaCha8Rng) -> usize {
    let mut rest = uniform(rng) * weights.iter().sum::<f32>();
    weights
        .iter()
        .position(|weight| {
            rest -= weight;
            rest < 0.0
        })
        .unwrap_or(weights.len() - 1)
}
