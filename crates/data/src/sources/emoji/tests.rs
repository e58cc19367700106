//! Tests of the complete source with very small packages.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::Dataset;

const CONCEPTS: [(&str, &str, u32); 5] = [
    ("red apple", "1F34E", 4),
    ("cat face", "1F431", 3),
    ("red heart", "2764-FE0F", 0),
    ("grapes", "1F347", 4),
    ("woman running", "1F3C3-200D-2640-FE0F", 1),
];
const TONES: [(u8, &str, &str); 5] = [
    (1, "light", "1F3FB"),
    (2, "medium-light", "1F3FC"),
    (3, "medium", "1F3FD"),
    (4, "medium-dark", "1F3FE"),
    (5, "dark", "1F3FF"),
];

fn emojibase() -> Value {
    let skin = |&(tone, name, code): &(u8, &str, &str)| {
        json!({"label": format!("woman running: {name} skin tone"), "hexcode": format!("1F3C3-{code}-200D-2640-FE0F"),
               "group": 1, "tone": tone})
    };
    let entry = |(label, hexcode, group): (&str, &str, u32)| {
        let skins: Vec<Value> = if group == 1 { TONES.iter().map(skin).collect() } else { Vec::new() };
        json!({"label": label, "hexcode": hexcode, "group": group, "tags": ["thing", "test"], "skins": skins})
    };
    CONCEPTS.into_iter().map(entry).collect()
}

/// Writes all packages. Each icon is a square in a different colour.
fn write_packages(dir: &Path) {
    let write_json = |folder: &str, file: &str, value: Value| {
        let path = dir.join(folder).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    };
    write_json("emojibase-data", "en/data.json", emojibase());
    write_json("emojibase-data", "package.json", json!({"version": "1.0.0"}));
    let data: Vec<Emoji> = serde_json::from_value(emojibase()).unwrap();
    let all: Vec<&Emoji> = data.iter().flat_map(|emoji| std::iter::once(emoji).chain(&emoji.skins)).collect();
    for style in Style::ALL {
        let separator = if style == Style::Firefox { "" } else { "-" };
        let name = |emoji: &Emoji| match (style, emoji.label.as_str()) {
            (Style::Firefox, "cat face") => "cat".to_string(),
            (_, label) => package::slug(label, separator),
        };
        let square = |n: usize| json!({"body": format!("<path fill=\"#{n}40\" d=\"M0 0h16v16H0z\"/>")});
        let mut icons: BTreeMap<String, Value> =
            all.iter().enumerate().map(|(n, e)| (name(e), square(n % 10))).collect();
        icons.insert("unheard-of".into(), square(1));
        let chars: BTreeMap<String, String> =
            all.iter().map(|emoji| (package::plain_hexcode(&emoji.hexcode), name(emoji))).collect();
        write_json(style.folder(), "icons.json", json!({"prefix": style.folder(), "icons": icons}));
        write_json(style.folder(), "chars.json", json!(chars));
        write_json(style.folder(), "package.json", json!({"version": "1.0.0"}));
    }
}

fn options(packages: &Path) -> EmojiOptions {
    EmojiOptions {
        world: World::Full,
        holdout: crate::Share::percent(20),
        seed: 4,
        ..EmojiOptions::new(packages, 16)
    }
}

#[test]
fn every_concept_is_drawn_in_every_style() {
    let dir = tempfile::tempdir().unwrap();
    write_packages(&dir.path().join("packages"));
    let out = dir.path().join("out");
    let counts = build_emoji(&options(&dir.path().join("packages")), &out, &|_, _| ()).unwrap();
    assert_eq!((counts.pictures(), counts.concepts), (10 * 6, 5));
    assert!(counts.styles.iter().all(|row| row.unmatched == 1 && row.blank == 0), "{counts}");

    let set = Dataset::open(&out).unwrap();
    assert_eq!(
        (set.train.len() as u64, set.val.len() as u64),
        (counts.in_split(Split::Train), counts.in_split(Split::Val))
    );
    assert!(!set.val.is_empty());
    let apple = set.train.iter().find(|sample| sample.meta.concept == "red apple").unwrap();
    assert_eq!(apple.captions[0], format!("a red apple, {} style", apple.meta.style));
    assert_eq!(apple.image.dimensions(), (16, 16));
}

#[test]
fn held_out_combinations_are_not_in_training() {
    let dir = tempfile::tempdir().unwrap();
    write_packages(dir.path());
    let catalog = Catalog::read(dir.path()).unwrap();
    let concepts = World::Full.pick(&catalog.emoji, None).unwrap();
    for seed in 0..20 {
        let drawings = list_drawings(&catalog, &concepts, &EmojiOptions { seed, ..options(dir.path()) });
        let in_split = |split| drawings.iter().filter(move |drawing| drawing.split == split);
        for concept in &concepts {
            assert!(in_split(Split::Train).any(|drawing| drawing.concept == concept.name));
        }
        // The first caption names concept, tone and style, so no caption may be in both splits.
        for held in in_split(Split::Val) {
            assert!(in_split(Split::Train).all(|drawing| drawing.captions[0] != held.captions[0]));
        }
        // If a picture without skin tone is held out, its style is completely held out for this
        // concept.
        for held in in_split(Split::Val).filter(|drawing| !drawing.captions[0].contains("skin tone")) {
            assert!(
                in_split(Split::Train)
                    .all(|drawing| (drawing.concept, drawing.style) != (held.concept, held.style))
            );
        }
    }
}

#[test]
fn same_options_give_the_same_bytes_and_are_not_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let packages = dir.path().join("packages");
    write_packages(&packages);
    let build = |name: &str| build_emoji(&options(&packages), &dir.path().join(name), &|_, _| ()).unwrap();
    assert_eq!(build("a"), build("b"));
    for file in ["train/00000.tar", "val/00000.tar", "dataset.json"] {
        let read = |name: &str| fs::read(dir.path().join(name).join(file)).unwrap();
        assert_eq!(read("a"), read("b"), "{file}");
    }
    let no_progress = |_, _| panic!("rendered again");
    build_emoji(&options(&packages), &dir.path().join("a"), &no_progress).unwrap();
}

#[test]
fn missing_packages_are_an_error_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let error = build_emoji(&options(dir.path()), &dir.path().join("out"), &|_, _| ()).unwrap_err();
    assert!(format!("{error:#}").contains("runs/fetch_emoji.sh"), "{error:#}");
    assert!(!dir.path().join("out").exists());
}
