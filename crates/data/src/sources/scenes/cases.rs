//! Test cases for held-out combinations: a prompt, with examples of correct and wrong pictures.
//!
//! A case has a caption, several correct pictures (the same scene at other sizes and positions) and
//! wrong pictures. Some of the wrong pictures differ only in the operation, some only in the thing,
//! and the others are unrelated scenes. A case is a function of (seed, index in the list).

use anyhow::{Context, Result};
use image::RgbImage;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::effects::backdrop;
use super::held_out::{Combination, CombinationKind};
use super::lot::{Lot, shuffled};
use super::scene::{Background, Colour, Content, Extra, Look, Operation, Relation, Rendition, Scene};
use super::{MAX_BLANK, Scenes, captions};
use tessera_base::random::{Purpose, item_rng};

/// The number of wrong pictures of a case.
pub const WRONG: usize = 49;
/// The maximum number of wrong pictures that differ only in the operation, and of those that differ
/// only in the thing.
const HARD: usize = 12;

/// The maximum number of attempts to sample a scene that shows exactly one held-out combination.
const MAX_TRIES: u64 = 200;

/// The first random stream for the choice of the scene.
const SCENE: u64 = 0;
/// The first random stream for correct pictures.
const TRUE: u64 = 1 << 32;
/// The first random stream for wrong pictures with another operation.
const OPERATION: u64 = 2 << 32;
/// The first random stream for wrong pictures with another thing.
const THING: u64 = 3 << 32;
/// The first random stream for unrelated wrong pictures.
const UNRELATED: u64 = 4 << 32;

/// The difference between a wrong picture and the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// The same things with another operation: another style, rendition, colour, garment or
    /// position.
    Operation,
    /// The same operation with another thing.
    Thing,
    /// An unrelated scene.
    Unrelated,
}

/// The two halves of a picture that show different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halves {
    /// One thing on the left, another on the right.
    LeftRight,
    /// One thing above, another below.
    TopBottom,
}

/// The properties of a case's picture that image processing can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The colour of the background. Absent if the operation determines it.
    pub background: Option<[u8; 3]>,
    /// The halves whose order matters, if any.
    pub halves: Option<Halves>,
    /// Whether the lower half is the upper half turned upside down.
    pub is_inverted: bool,
}

/// A held-out combination with its caption and with pictures to compare a model's drawings with.
#[derive(Debug, Clone)]
pub struct HeldOutCase {
    /// The kind of the combination.
    pub kind: CombinationKind,
    /// The canonical English caption.
    pub caption: String,
    /// The properties of a drawing that can be checked.
    pub facts: Facts,
    /// The correct pictures: the same scene at other sizes and positions.
    pub real: Vec<RgbImage>,
    /// The [`WRONG`] wrong pictures.
    pub wrong: Vec<(Difference, RgbImage)>,
}

/// Returns the colours that a background can have.
pub fn background_colours() -> Vec<[u8; 3]> {
    [Background::White].into_iter().chain(Colour::ALL.map(Background::Named)).map(background_colour).collect()
}

fn background_colour(background: Background) -> [u8; 3] {
    let colour = match background {
        Background::White => [1.0; 3],
        Background::Named(colour) => backdrop(colour),
    };
    colour.map(|value| (value * 255.0).round() as u8)
}

impl Scenes {
    /// Returns the kind of each held-out combination, in the order of the list.
    pub fn held_out_kinds(&self) -> Vec<CombinationKind> {
        self.held_out.list.iter().map(|combination| combination.kind()).collect()
    }

    /// Returns the case of the held-out combination with number `index` in the list, with `n_real`
    /// correct pictures. The same seed gives the same case.
    ///
    /// # Errors
    /// If the list is too short, or a picture cannot be painted.
    pub fn held_out_case(&self, index: usize, seed: u64, n_real: usize) -> Result<HeldOutCase> {
        let combination = *self.held_out.list.get(index).with_context(|| {
            format!("there is no held-out combination {index}; the list has {}", self.held_out.list.len())
        })?;
        Case { scenes: self, lot: Lot::new(&self.world, &self.options.shares), combination, index, seed }
            .build(n_real)
    }
}

/// A case that is being built.
struct Case<'a> {
    scenes: &'a Scenes,
    lot: Lot<'a>,
    combination: Combination,
    index: usize,
    seed: u64,
}

impl Case<'_> {
    fn build(&self, n_real: usize) -> Result<HeldOutCase> {
        let scene = self.scene()?;
        let real = (0..n_real as u64).into_par_iter().map(|n| {
            self.paint(&scene, TRUE + n)?.with_context(|| format!("held-out scene {} is blank", self.index))
        });
        Ok(HeldOutCase {
            kind: self.combination.kind(),
            caption: captions::canonical(&self.scenes.world, &scene),
            facts: facts(&scene),
            real: real.collect::<Result<_>>()?,
            wrong: self.wrong(&scene)?,
        })
    }

    fn rng(&self, step: u64) -> ChaCha8Rng {
        item_rng(self.seed, Purpose::HeldOutCase, step, self.index as u64)
    }

    fn paint(&self, scene: &Scene, step: u64) -> Result<Option<RgbImage>> {
        self.scenes.painter.paint(&self.scenes.world, scene, &mut self.rng(step))
    }

    /// Samples a scene that shows this held-out combination and no other one, and that is not
    /// blank.
    fn scene(&self) -> Result<Scene> {
        for attempt in 0..MAX_TRIES {
            let scene = self.lot.showing(self.combination, &mut self.rng(SCENE + attempt));
            let others = scene.combinations().into_iter().filter(|one| *one != self.combination);
            let is_only = others.into_iter().all(|one| !self.scenes.held_out.contains(&one));
            if is_only && self.paint(&scene, TRUE)?.is_some() {
                return Ok(scene);
            }
        }
        None.with_context(|| {
            format!(
                "held-out combination {}: every scene is blank or shows another held-out combination; shorten the list",
                self.index
            )
        })
    }

    /// Returns the wrong pictures: first those that differ in one aspect, then unrelated scenes up
    /// to [`WRONG`].
    fn wrong(&self, scene: &Scene) -> Result<Vec<(Difference, RgbImage)>> {
        let hard = [
            (Difference::Operation, OPERATION, self.other_operations(scene)),
            (Difference::Thing, THING, self.other_things(scene)),
        ];
        let mut wrong = Vec::new();
        for (difference, first, scenes) in hard {
            let painted = scenes.par_iter().enumerate();
            let painted = painted.map(|(n, scene)| self.paint(scene, first + 1 + n as u64));
            let painted = painted.collect::<Result<Vec<_>>>()?;
            wrong.extend(painted.into_iter().flatten().take(HARD).map(|picture| (difference, picture)));
        }
        let missing = (WRONG - wrong.len()) as u64;
        let unrelated =
            (0..missing).into_par_iter().map(|n| self.unrelated(n)).collect::<Result<Vec<_>>>()?;
        wrong.extend(unrelated.into_iter().map(|picture| (Difference::Unrelated, picture)));
        Ok(wrong)
    }

    fn unrelated(&self, n: u64) -> Result<RgbImage> {
        for attempt in 0..MAX_BLANK {
            let mut rng = self.rng(UNRELATED + n * MAX_BLANK + attempt);
            let scene = self.lot.draw(&self.scenes.held_out, &mut rng)?;
            if let Some(picture) = self.scenes.painter.paint(&self.scenes.world, &scene, &mut rng)? {
                return Ok(picture);
            }
        }
        None.with_context(|| format!("an unrelated scene was blank {MAX_BLANK} times"))
    }

    /// Returns scenes of the same things on the same background with another operation, in random
    /// order.
    fn other_operations(&self, scene: &Scene) -> Vec<Scene> {
        let content = |content| Scene { content, ..scene.clone() };
        let scenes = match self.combination {
            Combination::Style(thing, style) => {
                let drawings = &self.scenes.world.things[thing].drawings;
                // The same drawing can be used for several styles; it would be a correct picture as
                // well.
                let others = drawings.iter().filter(|(_, svg)| Some(*svg) != drawings.get(&style));
                others.map(|(&style, _)| Scene { style, ..scene.clone() }).collect()
            }
            Combination::Rendition(thing, rendition) => other_than(rendition, Rendition::ALL)
                .map(|rendition| content(Content::Rendered { thing, rendition }))
                .collect(),
            Combination::Colour(thing, colour) => other_than(colour, Colour::ALL)
                .map(|colour| content(Content::One { thing, look: Look::Coloured(colour) }))
                .collect(),
            Combination::Extra(thing, extra) => other_than(extra, Extra::ALL)
                .filter(|&extra| self.lot.can_be(thing, extra))
                .map(|extra| content(Content::Dressed { thing, extras: vec![extra], held: None }))
                .collect(),
            Combination::Things(..) => other_relations(scene),
            Combination::MadeOf(a, b) | Combination::ShapedLike(a, b) => {
                let merged = [
                    Content::MadeOf { whole: a, part: b },
                    Content::MadeOf { whole: b, part: a },
                    Content::ShapedLike { surface: a, shape: b },
                    Content::ShapedLike { surface: b, shape: a },
                    Content::One { thing: a, look: Look::Plain },
                    Content::One { thing: b, look: Look::Plain },
                ];
                merged.into_iter().filter(|other| *other != scene.content).map(content).collect()
            }
            Combination::Panel(thing, operation) => other_than(operation, Operation::all())
                .map(|operation| content(Content::Panels { thing, operation }))
                .collect(),
        };
        shuffled(scenes, &mut self.rng(OPERATION))
    }

    /// Returns scenes with the same operation, style and background in which one thing is replaced.
    fn other_things(&self, scene: &Scene) -> Vec<Scene> {
        let own = scene.content.things();
        let is_dressed = matches!(scene.content, Content::Dressed { .. });
        let others = self.scenes.world.those(|thing| {
            thing.drawings.contains_key(&scene.style) && (thing.kind.is_character() || !is_dressed)
        });
        let others = others.into_iter().filter(|other| !own.contains(other)).collect();
        let others = shuffled(others, &mut self.rng(THING)).into_iter().take(2 * HARD).enumerate();
        let replaced = |(n, other)| scene.content.with_thing(own[n % own.len()], other);
        others.map(|one| Scene { content: replaced(one), ..scene.clone() }).collect()
    }
}

/// Returns all items of `all` except `own`.
fn other_than<T: PartialEq>(own: T, all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
    all.into_iter().filter(move |other| *other != own)
}

/// Returns scenes of the same two things in relations that the scene's caption excludes.
fn other_relations(scene: &Scene) -> Vec<Scene> {
    let Content::Two { first, second, relation } = scene.content else { return Vec::new() };
    // "Side by side" is painted like "left of", but its caption does not specify the order.
    let is_excluded = |other: Relation| match relation {
        Relation::SideBySide => !matches!(other, Relation::SideBySide | Relation::LeftOf | Relation::RightOf),
        Relation::LeftOf => !matches!(other, Relation::SideBySide | Relation::LeftOf),
        Relation::RightOf | Relation::Above | Relation::Below | Relation::InFrontOf => other != relation,
    };
    let others = Relation::ALL.into_iter().filter(|&other| is_excluded(other));
    others
        .map(|relation| Scene { content: Content::Two { first, second, relation }, ..scene.clone() })
        .collect()
}

fn facts(scene: &Scene) -> Facts {
    let content = &scene.content;
    let halves = match *content {
        Content::Two { relation: Relation::LeftOf | Relation::RightOf, .. } => Some(Halves::LeftRight),
        Content::Two { relation: Relation::Above | Relation::Below, .. } => Some(Halves::TopBottom),
        Content::Panels { operation, .. } => {
            (operation != Operation::UpsideDown).then_some(Halves::TopBottom)
        }
        Content::Two { relation: Relation::SideBySide | Relation::InFrontOf, .. }
        | Content::One { .. }
        | Content::Several { .. }
        | Content::Rendered { .. }
        | Content::MadeOf { .. }
        | Content::ShapedLike { .. }
        | Content::Dressed { .. } => None,
    };
    Facts {
        background: content.takes_background().then(|| background_colour(scene.background)),
        halves,
        is_inverted: matches!(content, Content::Panels { operation: Operation::UpsideDown, .. }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::sources::emoji::style::Style;
    use crate::sources::scenes::{ScenesOptions, write_placeholder_packages};

    /// Returns scenes of 64 pixels from placeholder packages, whose folder is deleted after
    /// reading.
    fn scenes(list: Option<&str>) -> Scenes {
        let dir = tempfile::tempdir().unwrap();
        write_placeholder_packages(dir.path()).unwrap();
        let held_out = list.map(str::to_string);
        Scenes::open(ScenesOptions { held_out, ..ScenesOptions::new(dir.path(), 64) }).unwrap()
    }

    #[test]
    fn every_kind_has_correct_and_wrong_pictures() {
        let scenes = scenes(None);
        let kinds = scenes.held_out_kinds();
        assert_eq!(kinds.len(), 320);
        for kind in CombinationKind::ALL {
            let index = kinds.iter().position(|other| *other == kind).unwrap();
            let case = scenes.held_out_case(index, 7, 3).unwrap();
            assert_eq!((case.kind, case.real.len(), case.wrong.len()), (kind, 3, WRONG));
            assert!(case.caption.is_ascii() && case.caption.ends_with(" style"), "{}", case.caption);
            let count = |difference| case.wrong.iter().filter(|(other, _)| *other == difference).count();
            // Placeholders look the same in every style, so another style is never a wrong picture.
            let operations = count(Difference::Operation);
            assert!((operations == 0) == (kind == CombinationKind::Style) && operations <= HARD, "{kind:?}");
            assert_eq!(count(Difference::Thing), HARD, "{kind:?}");
            assert!(case.wrong.iter().all(|(_, picture)| !case.real.contains(picture)), "{kind:?}");
            assert!(case.real.iter().any(|picture| *picture != case.real[0]), "{kind:?}");
        }
    }

    #[test]
    fn case_is_a_function_of_seed_and_index() {
        let scenes = scenes(None);
        let pictures = |seed, index| {
            let case = scenes.held_out_case(index, seed, 2).unwrap();
            (case.caption, case.real, case.wrong.into_iter().map(|(_, picture)| picture).collect::<Vec<_>>())
        };
        assert!(pictures(1, 70) == pictures(1, 70));
        assert!(pictures(1, 70) != pictures(2, 70) && pictures(1, 70) != pictures(1, 71));
        let error = scenes.held_out_case(320, 0, 1).unwrap_err().to_string();
        assert!(error.contains("no held-out combination 320; the list has 320"), "{error}");
    }

    /// Only one combination of a scene is held out, so a failure shows which combination the model
    /// has not learnt.
    #[test]
    fn case_shows_no_second_held_out_combination() {
        let list = "rendition: owl | x-ray\nstyle: owl | flat\nstyle: owl | noto\nstyle: owl | twemoji";
        let scenes = scenes(Some(list));
        let captions: HashSet<String> =
            (0..20).map(|seed| scenes.held_out_case(0, seed, 1).unwrap().caption).collect();
        assert_eq!(captions, HashSet::from(["an x-ray of an owl, glossy style".to_string()]));
    }

    #[test]
    fn relations_that_the_caption_allows_are_not_wrong() {
        let scene = |relation| Scene {
            content: Content::Two { first: 0, second: 1, relation },
            style: Style::Flat,
            background: Background::White,
        };
        let others = |relation| {
            let others = other_relations(&scene(relation)).into_iter();
            let relation = |scene: Scene| match scene.content {
                Content::Two { relation, .. } => relation,
                other => panic!("{other:?}"),
            };
            others.map(relation).collect::<Vec<_>>()
        };
        use Relation::{Above, Below, InFrontOf, LeftOf, RightOf, SideBySide};
        assert_eq!(others(SideBySide), [Above, Below, InFrontOf]);
        assert_eq!(others(LeftOf), [RightOf, Above, Below, InFrontOf]);
        assert_eq!(others(RightOf), [SideBySide, LeftOf, Above, Below, InFrontOf]);
    }
}
