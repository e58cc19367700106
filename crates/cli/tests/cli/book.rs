//! Tests of the documentation: all pages are in the book, and links lead to the right files.

use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Returns the paths of all pages, sorted.
fn pages() -> Vec<PathBuf> {
    let folders = [docs(), docs().join("log")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let mut pages: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .collect();
    pages.sort();
    pages
}

/// Returns the targets of a page's links: the address, and the title if there is one.
fn links(text: &str) -> Vec<(String, Option<String>)> {
    let inside = text.split("](").skip(1).filter_map(|rest| {
        // A title may contain parentheses.
        let plain = rest.split_once(')')?.0;
        match plain.split_once(" \"") {
            None => Some((plain.to_string(), None)),
            Some((address, _)) => {
                let title = rest.split_once(" \"")?.1.split_once("\")")?.0;
                Some((address.to_string(), Some(title.to_string())))
            }
        }
    });
    inside.collect()
}

#[test]
fn every_page_is_in_the_book_and_every_chapter_is_a_page() {
    let summary = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    let mut chapters: Vec<PathBuf> = links(&summary).into_iter().map(|(page, _)| docs().join(page)).collect();
    chapters.sort();
    let pages: Vec<PathBuf> = pages().into_iter().filter(|page| !page.ends_with("SUMMARY.md")).collect();
    assert_eq!(chapters, pages);
}

#[test]
fn links_lead_to_files_that_contain_their_titles() {
    let (mut wrong, mut named) = (Vec::new(), 0);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for (address, title) in links(&text).into_iter().filter(|(address, _)| !address.starts_with("http")) {
            let (file, _) = address.split_once('#').unwrap_or((&address, ""));
            let folder = page.parent().unwrap();
            let path = if file.is_empty() { page.clone() } else { folder.join(file) };
            let Ok(bytes) = fs::read(&path) else {
                wrong.push(format!("{}: there is no {file}", page.display()));
                continue;
            };
            let Some(title) = title else { continue };
            named += 1;
            if !String::from_utf8_lossy(&bytes).lines().any(|line| line.contains(&title)) {
                wrong.push(format!("{}: {file} has no {title:?}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(named > 40, "only {named} links have titles");
}

#[test]
fn every_config_key_is_explained_in_the_book() {
    let page = fs::read_to_string(docs().join("configs.md")).unwrap();
    let preset = fs::read_to_string(docs().join("../configs/emoji.toml")).unwrap();
    for (section, keys) in preset.parse::<toml::Table>().unwrap() {
        let part =
            page.split(&format!("## `[{section}]`")).nth(1).unwrap_or_else(|| panic!("no section {section}"));
        let part = part.split("\n## ").next().unwrap();
        for key in keys.as_table().unwrap().keys() {
            assert!(part.contains(&format!("| `{key}` |")), "{section}.{key} is not explained");
        }
    }
}
