//! Checks rules about the source code: which crate may use which, and how a file begins.
//!
//! The table of crates is the one in `ARCHITECTURE.md`. A new dependency between crates is a design
//! decision and needs a note in `docs/log.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// A crate of this workspace and its allowed dependencies.
struct Rule {
    folder: &'static str,
    /// The crates of this workspace that it may use.
    may_use: &'static [&'static str],
    /// The prefixes of third-party crates that it must not use.
    forbidden: &'static [&'static [&'static str]],
}

const TENSORS: &[&str] = &["burn", "candle", "cubecl", "tch", "ndarray"];
const PICTURES: &[&str] = &["image", "fast_image_resize", "resvg", "png"];
const HTTP: &[&str] = &["axum", "hyper", "reqwest", "ureq", "hf-hub", "tokio"];
const COMMAND_LINE: &[&str] = &["clap", "viuer"];
const EVERYTHING: &[&str] = &[""];

const RULES: [Rule; 13] = [
    Rule { folder: "prompt", may_use: &["data", "model"], forbidden: &[TENSORS, HTTP, COMMAND_LINE] },
    Rule { folder: "base", may_use: &[], forbidden: &[TENSORS, HTTP, COMMAND_LINE] },
    Rule { folder: "container", may_use: &[], forbidden: &[TENSORS, PICTURES, HTTP, COMMAND_LINE] },
    Rule { folder: "text", may_use: &[], forbidden: &[TENSORS, PICTURES, HTTP, COMMAND_LINE] },
    Rule { folder: "data", may_use: &["base", "text", "container"], forbidden: &[TENSORS, COMMAND_LINE] },
    Rule { folder: "pretrained", may_use: &["pretrained-tail"], forbidden: &[EVERYTHING] },
    Rule { folder: "pretrained-tail", may_use: &[], forbidden: &[EVERYTHING] },
    Rule { folder: "kernels", may_use: &[], forbidden: &[PICTURES, HTTP, COMMAND_LINE] },
    Rule {
        folder: "model",
        may_use: &["base", "text", "container", "kernels", "pretrained"],
        forbidden: &[HTTP, COMMAND_LINE],
    },
    Rule { folder: "eval", may_use: &["base", "text", "data", "model"], forbidden: &[HTTP, COMMAND_LINE] },
    Rule {
        folder: "train",
        may_use: &["base", "text", "container", "kernels", "data", "model", "eval"],
        forbidden: &[HTTP, COMMAND_LINE],
    },
    Rule {
        folder: "serve",
        may_use: &["base", "data", "model", "prompt"],
        forbidden: &[TENSORS, COMMAND_LINE],
    },
    Rule {
        folder: "cli",
        may_use: &[
            "base",
            "text",
            "container",
            "kernels",
            "data",
            "pretrained",
            "prompt",
            "model",
            "eval",
            "train",
            "serve",
        ],
        forbidden: &[],
    },
];

/// The modules of `model`, and the modules that each may use. The paper's stages do not use each
/// other; only `sample`, `tessera` and `weights` combine them.
const MODULES: [(&str, &[&str]); 11] = [
    ("error", &[]),
    ("nn", &[]),
    ("device", &["nn"]),
    ("pil", &[]),
    ("dvae", &["nn"]),
    ("prior", &["nn"]),
    ("rerank", &["nn", "pil"]),
    ("weights", &["nn", "dvae", "prior", "rerank"]),
    ("sample", &["error", "nn", "dvae", "prior", "rerank"]),
    ("tessera", &["error", "nn", "dvae", "prior", "rerank", "weights", "sample"]),
    ("finite_differences", &["nn"]),
];

/// The module that tests of all modules of `model` may use.
const FOR_TESTS: &str = "finite_differences";

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the names in all tables of dependencies except dev-dependencies.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = targets.filter_map(Value::as_table).chain([manifest]);
    let lists = tables.flat_map(|table| ["dependencies", "build-dependencies"].map(|kind| table.get(kind)));
    lists.flatten().filter_map(Value::as_table).flat_map(Table::keys).cloned().collect()
}

/// Returns all files under `dir` with the extension `rs`.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_crate_has_a_rule() {
    let folders = fs::read_dir(crates()).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().join("Cargo.toml").exists());
    let folders: BTreeSet<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    let ruled: BTreeSet<String> = RULES.iter().map(|rule| rule.folder.to_string()).collect();
    assert_eq!(folders, ruled, "crates and rules differ; see the table in ARCHITECTURE.md");
}

#[test]
fn crates_use_only_allowed_crates() {
    let mut broken = Vec::new();
    for rule in &RULES {
        let manifest = fs::read_to_string(crates().join(rule.folder).join("Cargo.toml")).unwrap();
        for name in dependencies(&manifest.parse().unwrap()) {
            let allowed = match name.strip_prefix("tessera-") {
                Some(ours) => rule.may_use.contains(&ours),
                None => !rule.forbidden.concat().iter().any(|forbidden| name.starts_with(forbidden)),
            };
            if !allowed {
                broken.push(format!("{} may not use {name}", rule.folder));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Returns the module of `model` that a path below its `src` belongs to.
fn module_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

/// Returns the modules of its own crate that a file names as `crate::NAME`. Modules in braces, as
/// in `crate::{a, b}`, are not found.
fn named_modules(text: &str) -> BTreeSet<&str> {
    let names = text.split("crate::").skip(1);
    names.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()).collect()
}

#[test]
fn model_modules_use_only_allowed_modules() {
    let model = crates().join("model/src");
    let mut broken = Vec::new();
    for path in sources(&model) {
        let module = module_of(path.strip_prefix(&model).unwrap());
        if module == "lib" {
            continue;
        }
        let (_, allowed) = MODULES.iter().find(|(known, _)| *known == module).unwrap_or_else(|| {
            panic!("model's module {module} has no rule; see ARCHITECTURE.md");
        });
        for named in named_modules(&fs::read_to_string(&path).unwrap()) {
            if named != module && named != FOR_TESTS && !allowed.contains(&named) {
                broken.push(format!("{}: {module} may not use {named:?}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn module_rules_have_no_cycle() {
    for (at, (module, allowed)) in MODULES.iter().enumerate() {
        let before: Vec<&str> = MODULES[..at].iter().map(|(name, _)| *name).collect();
        assert!(
            allowed.iter().all(|name| before.contains(name)),
            "{module} may use a module that comes after it"
        );
    }
}

/// Each parameter gets its role when it is created, so only `Init` creates parameters.
#[test]
fn only_init_creates_parameters() {
    for path in sources(&crates()) {
        let text = fs::read_to_string(&path).unwrap();
        let makes = ["from_tensor(", "initialized(", "uninitialized(", "from_data("];
        let makes = makes.iter().any(|made| text.contains(&format!("Param::{made}")));
        assert!(!makes || path.ends_with("nn/init.rs"), "{} creates a parameter", path.display());
    }
}

#[test]
fn every_file_begins_with_a_doc_comment() {
    for path in sources(&crates()) {
        let text = fs::read_to_string(&path).unwrap();
        let head = text.lines().next().unwrap_or_default();
        assert!(
            head.starts_with("//! ") && head.len() > 12,
            "{}: the first line must be a //! comment",
            path.display()
        );
    }
}

/// Whether a line declares a public item that needs a doc comment.
fn is_public_item(line: &str) -> bool {
    let kinds =
        ["fn ", "async fn ", "unsafe fn ", "const ", "static ", "struct ", "enum ", "trait ", "type "];
    line.strip_prefix("pub ").is_some_and(|item| kinds.iter().any(|kind| item.starts_with(kind)))
}

/// The lint `missing_docs` checks only what other crates can use. This test checks all public
/// items.
#[test]
fn every_public_item_has_a_doc_comment() {
    let mut undocumented = Vec::new();
    for path in sources(&crates()) {
        let text = fs::read_to_string(&path).unwrap();
        let (mut has_doc, mut is_in_attribute) = (false, false);
        for (index, line) in text.lines().map(str::trim).enumerate() {
            // An attribute between the comment and the item may have several lines.
            if is_in_attribute || line.starts_with("#[") {
                is_in_attribute = !line.ends_with(']');
                continue;
            }
            if is_public_item(line) && !has_doc {
                undocumented.push(format!("{}:{}: {line}", path.display(), index + 1));
            }
            has_doc = line.starts_with("///");
        }
    }
    assert!(undocumented.is_empty(), "no doc comment:\n{}", undocumented.join("\n"));
}

#[test]
fn no_source_contains_debugging_leftovers() {
    // Each is split into two parts, so that this file does not contain it.
    let leftovers = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("db", "g!(")];
    for path in sources(&crates()) {
        let text = fs::read_to_string(&path).unwrap();
        for leftover in leftovers {
            assert!(!text.contains(leftover), "{} contains {leftover})", path.display());
        }
    }
}

/// `eprintln!` panics if standard error is closed or full. Therefore libraries report to a
/// `Reporter`, and the program writes through `stderr.rs` and `say`.
#[test]
fn no_source_prints_directly() {
    let prints = ["println!(", "print!(", "io::stderr()"];
    // The other files print only in tests, which capture the output.
    let exempt = ["cli/src/stderr.rs", "kernels/src/testing.rs", "train/src/golden.rs"];
    for folder in fs::read_dir(crates()).unwrap().map(|entry| entry.unwrap().path().join("src")) {
        for path in
            sources(&folder).into_iter().filter(|path| !exempt.iter().any(|file| path.ends_with(file)))
        {
            let text = fs::read_to_string(&path).unwrap();
            for print in prints {
                assert!(!text.contains(print), "{} contains {print})", path.display());
            }
        }
    }
}

/// Settings are arguments or parts of a model. Only working memory may be thread-local.
#[test]
fn settings_are_not_thread_local() {
    for folder in fs::read_dir(crates()).unwrap().map(|entry| entry.unwrap().path().join("src")) {
        for path in sources(&folder).into_iter().filter(|path| !path.ends_with("kernels/src/scratch.rs")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("thread_local!"), "{} contains a thread-local variable", path.display());
        }
    }
}

/// Returns the numbered rows of `ARCHITECTURE.md`'s table of tests: the number, and the names in
/// backticks.
fn checklist() -> Vec<(usize, Vec<String>)> {
    let page = fs::read_to_string(crates().join("../ARCHITECTURE.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let number = cells.next()?.split_once(". ")?.0.parse().ok()?;
        let names = cells.next()?.split('`').skip(1).step_by(2).map(str::to_string).collect();
        Some((number, names))
    });
    rows.collect()
}

#[test]
fn every_named_test_exists() {
    let texts: Vec<String> =
        sources(&crates()).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let rows = checklist();
    assert_eq!(rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (1..=13).collect::<Vec<_>>());
    for (number, names) in rows {
        assert!(!names.is_empty(), "line {number} names no test");
        for name in names {
            let test = format!("#[test]\n    fn {name}(");
            let outer = format!("#[test]\nfn {name}(");
            let exists = texts.iter().any(|text| text.contains(&test) || text.contains(&outer));
            assert!(exists, "line {number}: there is no test {name}");
        }
    }
}
