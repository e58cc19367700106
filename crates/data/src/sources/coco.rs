//! The captions of two benchmarks for text-to-image models (paper §3): the MS-COCO validation set
//! of 2014, and CUB birds.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use tessera_text::{normalise, text_lines};

use crate::read_text;
use tessera_base::random::{Purpose, below, item_rng};

/// The number of captions that the paper samples from MS-COCO.
pub const COCO_CAPTIONS: usize = 30_000;

/// A caption to draw, with the picture that it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The path of the picture.
    pub image: PathBuf,
    /// The caption.
    pub caption: String,
}

/// Samples `n` captions of `dir/captions_val2014.json` (or of the same file in `dir/annotations`).
/// The pictures are in `dir/val2014` or in `dir` itself. The sample depends only on the captions'
/// ids and `seed`, so all models draw the same captions (paper §3).
///
/// # Errors
/// If a file is missing or damaged, or there are fewer than `n` captions.
pub fn coco_captions(dir: &Path, n: usize, seed: u64) -> Result<Vec<Described>> {
    let (file, text) = first_text(dir, &["captions_val2014.json", "annotations/captions_val2014.json"])?;
    let set: Coco = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged or not the caption file of MS-COCO", file.display()))?;
    let names: HashMap<u64, &str> =
        set.images.iter().map(|image| (image.id, image.file_name.as_str())).collect();
    let has_words = |caption: &&CocoCaption| !normalise(&caption.caption).is_empty();
    let mut captions: Vec<&CocoCaption> = set.annotations.iter().filter(has_words).collect();
    captions.sort_by_key(|caption| caption.id);
    let most = captions.len();
    ensure!(
        (1..=most).contains(&n),
        "--captions {n}: wanted 1 to {most}, since {} has only {most}",
        file.display()
    );
    let mut rng = item_rng(seed, Purpose::Subset, 0, 0);
    for i in 0..n {
        let left = (captions.len() - i) as u64;
        captions.swap(i, i + below(&mut rng, left) as usize);
    }
    let folder = if dir.join("val2014").is_dir() { dir.join("val2014") } else { dir.to_path_buf() };
    let described = |caption: &&CocoCaption| {
        let name = names.get(&caption.image_id);
        let name = name.with_context(|| {
            format!(
                "caption {} belongs to picture {}, which {} does not list",
                caption.id,
                caption.image_id,
                file.display()
            )
        })?;
        Described::new(folder.join(name), &caption.caption)
    };
    captions[..n].iter().map(described).collect()
}

#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    annotations: Vec<CocoCaption>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct CocoCaption {
    id: u64,
    image_id: u64,
    caption: String,
}

/// Returns the distinct captions of the test pictures in `dir` (CUB-200-2011: `images.txt`,
/// `train_test_split.txt`, `images/`). The captions are read from `dir/text/CLASS/NAME.txt` (or
/// `text_c10`), one per line. Each is returned with the first picture that has it.
///
/// # Errors
/// If a file is missing or damaged.
pub fn cub_captions(dir: &Path) -> Result<Vec<Described>> {
    let (names, text) = first_text(dir, &["images.txt"])?;
    let (splits, split) = first_text(dir, &["train_test_split.txt"])?;
    let is_train = pairs(&splits, &split)?;
    let texts = ["text_c10", "text"].map(|name| dir.join(name)).into_iter().find(|path| path.is_dir());
    let texts = texts.with_context(|| {
        format!("no captions in {}: wanted a folder text/ or text_c10/ of CLASS/NAME.txt", dir.display())
    })?;
    let (mut seen, mut described) = (BTreeSet::new(), Vec::new());
    for (id, name) in pairs_in_order(&names, &text)? {
        let train = is_train.get(id).with_context(|| format!("{} has no picture {id}", splits.display()))?;
        if *train != "0" {
            continue;
        }
        let file = texts.join(name).with_extension("txt");
        for caption in text_lines(&read_text(&file)?) {
            if seen.insert(caption.clone()) {
                described.push(Described::new(dir.join("images").join(name), &caption)?);
            }
        }
    }
    ensure!(!described.is_empty(), "{} has no test pictures with captions", dir.display());
    Ok(described)
}

impl Described {
    fn new(image: PathBuf, caption: &str) -> Result<Described> {
        ensure!(image.is_file(), "there is no picture {}, which a caption describes", image.display());
        Ok(Described { image, caption: caption.trim().to_string() })
    }
}

/// Reads the first of the files `names` that exists in `dir`.
fn first_text(dir: &Path, names: &[&str]) -> Result<(PathBuf, String)> {
    let found = names.iter().map(|name| dir.join(name)).find(|path| path.is_file());
    let path = found.with_context(|| format!("no {} in {}", names.join(" or "), dir.display()))?;
    let text = read_text(&path)?;
    Ok((path, text))
}

/// Parses lines of two words each into a map from the first word to the second.
fn pairs<'a>(file: &Path, text: &'a str) -> Result<HashMap<&'a str, &'a str>> {
    Ok(pairs_in_order(file, text)?.into_iter().collect())
}

fn pairs_in_order<'a>(file: &Path, text: &'a str) -> Result<Vec<(&'a str, &'a str)>> {
    let pair = |(number, line): (usize, &'a str)| {
        let pair = line.trim().split_once(' ');
        pair.with_context(|| format!("{}, line {}: {line:?}, wanted two words", file.display(), number + 1))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn coco(order: &[usize]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let caption =
            |i: &usize| format!(r#"{{"id":{},"image_id":{},"caption":" a thing {i} "}}"#, 10 + i, i / 2);
        let captions: Vec<String> = order.iter().map(caption).collect();
        let image = |i: usize| {
            write(dir.path().join(format!("val2014/{i}.jpg")), "");
            format!(r#"{{"id":{i},"file_name":"{i}.jpg","width":1}}"#)
        };
        let images: Vec<String> = (0..5).map(image).collect();
        let text = format!(
            r#"{{"info":{{}},"images":[{}],"annotations":[{}]}}"#,
            images.join(","),
            captions.join(",")
        );
        write(dir.path().join("annotations/captions_val2014.json"), &format!("\u{feff}{text}"));
        dir
    }

    #[test]
    fn coco_sample_depends_on_the_seed_but_not_on_the_file_order() {
        let rising: Vec<usize> = (0..10).collect();
        let falling: Vec<usize> = (0..10).rev().collect();
        let draw = |order: &[usize], n, seed| {
            let dir = coco(order);
            let found = coco_captions(dir.path(), n, seed).unwrap();
            found
                .into_iter()
                .map(|d| (d.image.file_name().unwrap().to_owned(), d.caption))
                .collect::<Vec<_>>()
        };
        let few = draw(&rising, 4, 1);
        assert_eq!((few.len(), &few), (4, &draw(&falling, 4, 1)));
        assert_ne!(few, draw(&rising, 4, 2));
        assert!(few.iter().collect::<BTreeSet<_>>().len() == 4 && few[0].1.starts_with("a thing"));
        let error = coco_captions(coco(&rising).path(), 11, 0).unwrap_err().to_string();
        assert!(error.contains("--captions 11: wanted 1 to 10") && error.contains("has only 10"), "{error}");
    }

    #[test]
    fn missing_parts_of_coco_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let error = |dir: &Path| format!("{:#}", coco_captions(dir, 1, 0).unwrap_err());
        assert!(
            error(dir.path()).contains("no captions_val2014.json or annotations/captions_val2014.json in")
        );
        write(dir.path().join("captions_val2014.json"), "{\"images\": [");
        assert!(error(dir.path()).contains("is damaged or not the caption file of MS-COCO"));
        let dir = coco(&[0]);
        fs::remove_file(dir.path().join("val2014/0.jpg")).unwrap();
        assert!(error(dir.path()).contains("there is no picture"), "{}", error(dir.path()));
    }

    #[test]
    fn cub_captions_are_distinct_and_from_test_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(at("images.txt"), "\u{feff}1 001.A/a.jpg\n2 001.A/b.jpg\n3 002.B/c.jpg\n");
        write(at("train_test_split.txt"), "1 1\n2 0\n3 0\n");
        for name in ["001.A/a", "001.A/b", "002.B/c"] {
            write(at(&format!("images/{name}.jpg")), "");
        }
        write(at("text/001.A/a.txt"), "a bird of training\n");
        write(at("text/001.A/b.txt"), "\u{feff}a red bird\na small bird\n");
        write(at("text/002.B/c.txt"), "a red bird\n\na blue bird \n");
        let captions: Vec<String> =
            cub_captions(dir.path()).unwrap().into_iter().map(|d| d.caption).collect();
        assert_eq!(captions, ["a red bird", "a small bird", "a blue bird"]);
        write(at("train_test_split.txt"), "1 1\n2\n");
        let error = cub_captions(dir.path()).unwrap_err().to_string();
        assert!(error.contains("train_test_split.txt, line 2: \"2\", wanted two words"), "{error}");
    }
}
