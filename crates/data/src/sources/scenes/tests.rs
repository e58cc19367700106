//! Tests of scenes: held-out combinations never occur, captions describe the content, and pictures
//! are functions of (seed, index).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use tessera_text::caption_words;

use super::held_out::{Combination, HeldOut, LIST};
use super::lot::{Lot, Shares};
use super::paint::Painter;
use super::scene::{Background, Colour, Content, Extra, Look, Operation, Relation, Rendition, Scene};
use super::world::World;
use super::{ScenesOptions, captions, chinese, english, fingerprint};
use crate::sources::emoji::style::Style;
use tessera_base::random::{Purpose, item_rng};

fn rng(index: u64) -> rand_chacha::ChaCha8Rng {
    item_rng(0, Purpose::Scene, 0, index)
}

fn scene(content: Content) -> Scene {
    Scene { content, style: Style::Flat, background: Background::White }
}

fn canonical(world: &World, content: Content) -> String {
    captions::canonical(world, &scene(content))
}

#[test]
fn million_sampled_scenes_show_no_held_out_combination() {
    let (world, shares) = (World::of_shapes(), Shares::default());
    let held_out = HeldOut::parse(LIST, &world).unwrap();
    let lot = Lot::new(&world, &shares);
    let mut seen: HashSet<Combination> = HashSet::new();
    for index in 0..1_000_000 {
        let drawn = lot.draw(&held_out, &mut rng(index)).unwrap();
        seen.extend(drawn.combinations());
    }
    let shown: Vec<&Combination> = held_out.list.iter().filter(|one| seen.contains(one)).collect();
    assert!(shown.is_empty(), "{shown:?}");
    // Without the list they do occur, so the test can fail.
    let nothing = HeldOut::parse("", &world).unwrap();
    let free = |index| lot.draw(&nothing, &mut rng(index)).unwrap().combinations();
    assert!((0..20_000).flat_map(free).any(|one| held_out.contains(&one)));
}

#[test]
fn each_kind_occurs_as_often_as_its_share() {
    let world = World::of_shapes();
    let shares = Shares {
        plain: 3.0,
        panels: 1.0,
        attributes: 0.0,
        renditions: 0.0,
        relations: 0.0,
        blends: 0.0,
        dressed: 0.0,
    };
    let (lot, nothing) = (Lot::new(&world, &shares), HeldOut::parse("", &world).unwrap());
    let is_panel =
        |index: &u64| matches!(lot.draw(&nothing, &mut rng(*index)).unwrap().content, Content::Panels { .. });
    let panels = (0..4000).filter(is_panel).count();
    assert!((900..1100).contains(&panels), "{panels} of 4000");
    assert!(Shares { plain: -1.0, ..Shares::default() }.check().is_err());
    assert!(Shares { plain: f32::NAN, ..Shares::default() }.check().is_err());
}

#[test]
fn demonstration_combinations_are_held_out() {
    let world = World::of_shapes();
    let held_out = HeldOut::parse(LIST, &world).unwrap();
    let find = |name| world.find(name).unwrap();
    for combination in [
        Combination::Extra(find("radish"), Extra::Tutu),
        Combination::Extra(find("radish"), Extra::WalkingDog),
        Combination::Rendition(find("owl"), Rendition::XRay),
        Combination::Rendition(find("peacock"), Rendition::Eraser),
        Combination::Panel(find("cat"), Operation::Sketch),
    ] {
        assert!(held_out.contains(&combination), "{combination:?}");
    }
}

#[test]
fn invalid_list_is_an_error_that_names_the_line() {
    let world = World::of_shapes();
    for (list, expected) in [
        ("rendition: yeti | x-ray", "no thing called \"yeti\""),
        ("rendition: owl | oil painting", "unknown word \"oil painting\"; wanted one of x-ray"),
        ("mood: owl | sad", "unknown kind \"mood\""),
        ("owl, x-ray", "wanted KIND: THING | WITH"),
        ("rendition: owl | x-ray\nrendition: owl | x-ray", "line 2"),
    ] {
        let error = format!("{:#}", HeldOut::parse(list, &world).unwrap_err());
        assert!(error.contains(expected), "{list}: {error}");
    }
    let all: String = Style::ALL.iter().map(|style| format!("style: owl | {}\n", style.name())).collect();
    let error = HeldOut::parse(&all, &world).unwrap().check(&world).unwrap_err().to_string();
    assert!(error.contains("every style of \"owl\" is held out"), "{error}");
}

#[test]
fn captions_describe_the_content() {
    let world = World::of_shapes();
    let find = |name| world.find(name).unwrap();
    let (cat, pizza, snail, harp) = (find("cat"), find("pizza"), find("snail"), find("harp"));
    for (content, expected) in [
        (Content::One { thing: cat, look: Look::Plain }, "a cat, flat style"),
        (
            Content::One { thing: find("red apple"), look: Look::Coloured(Colour::Purple) },
            "a purple apple, flat style",
        ),
        (Content::Several { thing: cat, count: 3 }, "three cats, flat style"),
        (
            Content::Rendered { thing: find("owl"), rendition: Rendition::XRay },
            "an x-ray of an owl, flat style",
        ),
        (
            Content::Rendered { thing: find("peacock"), rendition: Rendition::Eraser },
            "a peacock eraser, flat style",
        ),
        (
            Content::Two { first: cat, second: pizza, relation: Relation::LeftOf },
            "a cat to the left of a pizza, flat style",
        ),
        (Content::MadeOf { whole: snail, part: harp }, "a snail made of harps, flat style"),
        (
            Content::ShapedLike { surface: find("armchair"), shape: find("avocado") },
            "an armchair in the shape of an avocado, flat style",
        ),
        (
            Content::Dressed {
                thing: find("radish"),
                extras: vec![Extra::Baby, Extra::Tutu, Extra::WalkingDog],
                held: None,
            },
            "a baby radish wearing a tutu walking a dog, flat style",
        ),
        (
            Content::Panels { thing: cat, operation: Operation::Sketch },
            "the exact same cat on the top as a sketch on the bottom, flat style",
        ),
    ] {
        assert_eq!(canonical(&world, content), expected);
    }
}

#[test]
fn every_kind_has_eight_english_phrasings_and_chinese_ones() {
    let (world, shares) = (World::of_shapes(), Shares::default());
    let (lot, nothing) = (Lot::new(&world, &shares), HeldOut::parse("", &world).unwrap());
    let mut fewest: HashMap<std::mem::Discriminant<Content>, usize> = HashMap::new();
    for index in 0..3000 {
        let scene = lot.draw(&nothing, &mut rng(index)).unwrap();
        let phrasings: HashSet<String> = english::phrasings(&world, &scene.content).into_iter().collect();
        let fewest = fewest.entry(std::mem::discriminant(&scene.content)).or_insert(usize::MAX);
        *fewest = (*fewest).min(phrasings.len());
        let all = captions::captions(&world, &scene, &mut rng(index));
        assert!(all.iter().all(|caption| !caption.contains("  ") && !caption.contains(" a a")), "{all:?}");
        assert!(chinese::phrasings(&world, &scene.content).iter().all(|phrasing| !phrasing.is_ascii()));
    }
    assert_eq!(fewest.len(), 8);
    assert!(fewest.values().all(|&n| n >= 8), "{fewest:?}");
}

#[test]
fn words_of_scenes_equal_the_words_of_their_captions() {
    let mut world = World::of_shapes();
    world.things[0].others = vec!["el mono".to_string(), "猿".to_string()];
    world.things[0].tags = ["primate", "banana", "jungle", "unsaid"].map(String::from).to_vec();
    let nothing = HeldOut::parse("", &world).unwrap();
    let none = Shares {
        plain: 0.0,
        attributes: 0.0,
        renditions: 0.0,
        relations: 0.0,
        blends: 0.0,
        dressed: 0.0,
        panels: 0.0,
    };
    let mut all = vec![Shares::default()];
    for kind in ["plain", "attributes", "renditions", "relations", "blends", "dressed", "panels"] {
        let mut shares = none.clone();
        *shares.of(kind).unwrap() = 1.0;
        all.push(shares);
    }
    for shares in all {
        let lot = Lot::new(&world, &shares);
        let drawn = (0..100_000).flat_map(|index| {
            let mut rng = rng(index);
            let scene = lot.draw(&nothing, &mut rng).unwrap();
            captions::captions(&world, &scene, &mut rng)
        });
        let listed = caption_words(captions::texts(&world, &lot.all_parts()));
        let drawn = caption_words(drawn);
        let differ: Vec<_> = drawn.symmetric_difference(&listed).collect();
        assert!(differ.is_empty(), "{differ:?} of {shares:?}");
    }
}

#[test]
fn picture_is_a_function_of_seed_and_index() {
    let (world, shares) = (World::of_shapes(), Shares::default());
    let (lot, nothing) = (Lot::new(&world, &shares), HeldOut::parse("", &world).unwrap());
    let painter = Painter::new(&world, 64).unwrap();
    let paint = |index| {
        let mut rng = rng(index);
        let scene = lot.draw(&nothing, &mut rng).unwrap();
        painter.paint(&world, &scene, &mut rng).unwrap().unwrap()
    };
    for index in 0..64 {
        let image = paint(index);
        assert_eq!(image.dimensions(), (64, 64));
        assert!(image.pixels().any(|pixel| pixel != image.get_pixel(0, 0)), "scene {index} is of one colour");
        assert_eq!(image, paint(index));
    }
}

#[test]
fn panels_show_the_same_thing_twice_and_renditions_change_it() {
    let world = World::of_shapes();
    let painter = Painter::new(&world, 64).unwrap();
    let cat = world.find("cat").unwrap();
    let paint = |content| painter.paint(&world, &scene(content), &mut rng(1)).unwrap().unwrap();
    let turned = paint(Content::Panels { thing: cat, operation: Operation::UpsideDown });
    for (x, y, pixel) in turned.enumerate_pixels() {
        assert_eq!(pixel, turned.get_pixel(x, 63 - y));
    }
    let pictures: HashSet<Vec<u8>> = Rendition::ALL
        .iter()
        .map(|&rendition| paint(Content::Rendered { thing: cat, rendition }).into_raw())
        .collect();
    assert_eq!(pictures.len(), Rendition::ALL.len());
    let black = paint(Content::Rendered { thing: cat, rendition: Rendition::Silhouette });
    assert!(black.pixels().all(|pixel| pixel.0[0] == pixel.0[1] || pixel.0[0].abs_diff(pixel.0[1]) < 4));
}

#[test]
fn relations_place_things_at_the_right_positions() {
    let world = World::of_shapes();
    let painter = Painter::new(&world, 64).unwrap();
    let (first, second) = (world.find("cat").unwrap(), world.find("pizza").unwrap());
    let columns = |relation| {
        let content = Content::Two { first, second, relation };
        let image = painter.paint(&world, &scene(content), &mut rng(3)).unwrap().unwrap();
        let seen = |from: [u32; 2]| {
            (0..32)
                .flat_map(|y| (0..32).map(move |x| (x, y)))
                .any(|(x, y)| image.get_pixel(x + from[0], y + from[1]).0[1] < 128)
        };
        [seen([0, 16]), seen([32, 16]), seen([16, 0]), seen([16, 32])]
    };
    assert_eq!(columns(Relation::LeftOf)[..2], [true, true]);
    assert_eq!(columns(Relation::Above)[2..], [true, true]);
}

#[test]
fn fingerprint_covers_everything_that_determines_scenes() {
    let versions = |noto: &str| BTreeMap::from([("noto".to_string(), noto.to_string())]);
    let options = |packages: &str| ScenesOptions::new(Path::new(packages), 128);
    let one = fingerprint(&options("here"), &versions("1.0"));
    assert_eq!(one, fingerprint(&options("there"), &versions("1.0")));
    let shares = Shares { plain: 0.5, ..Shares::default() };
    for (other, noto) in [
        (options("here"), "1.1"),
        (ScenesOptions { size: 64, ..options("here") }, "1.0"),
        (ScenesOptions { seed: 1, ..options("here") }, "1.0"),
        (ScenesOptions { shares, ..options("here") }, "1.0"),
        (ScenesOptions { held_out: Some(String::new()), ..options("here") }, "1.0"),
    ] {
        assert_ne!(one, fingerprint(&other, &versions(noto)), "{other:?}, {noto}");
    }
}
