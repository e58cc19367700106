//! Tests of `tessera eval zero-shot` with a small model and placeholder packages.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tessera_data::sources::scenes::write_placeholder_packages;

use super::eval::ranking_and_judging;
use super::pipeline::pipeline;
use super::program::{folder, mistake, picture, succeed};

const JUDGE: &str = "judge/rerank.tessera.safetensors";

/// Returns the arguments with a model that ranks, another one that judges, and the packages.
fn zero_shot<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let common = ["eval", "zero-shot", "--packages", "packages", "--model", "model.safetensors", "--judge"];
    [&common[..], &[JUDGE], flags].concat()
}

/// Makes the models and packages in `dir`.
fn prepare(dir: &Path) {
    ranking_and_judging(dir);
    write_placeholder_packages(&dir.join("packages")).unwrap();
}

fn figure<'a>(kind: &'a Value, name: &str) -> &'a Value {
    let figures = kind["figures"].as_array().unwrap();
    figures.iter().find(|figure| figure["name"] == name).unwrap_or_else(|| panic!("no {name} in {kind}"))
}

#[test]
fn zero_shot_evaluates_each_kind_of_combination() {
    let dir = folder();
    prepare(dir.path());
    let flags = ["--limit", "20", "--candidates", "3", "--json", "--sheet", "sheet.png"];
    let output = succeed(dir.path(), &zero_shot(&flags));
    let found: Value = serde_json::from_str(&output.stdout).unwrap();
    let kinds = found["kinds"].as_array().unwrap();
    let names: Vec<&str> = kinds.iter().map(|kind| kind["kind"].as_str().unwrap()).collect();
    assert_eq!(
        (names[0], *names.last().unwrap(), found["cases"].as_array().unwrap().len()),
        ("style", "all", 20)
    );
    let all = kinds.last().unwrap();
    let retrieval = figure(all, "retrieval@1");
    assert_eq!((&retrieval["n"], &retrieval["chance"]), (&20.into(), &2.0.into()));
    let ends = ["low", "value", "high"].map(|end| retrieval["drawn"][end].as_f64().unwrap());
    assert!(ends.is_sorted() && ends[0] < ends[2], "{retrieval}");
    let background = figure(all, "background colour");
    assert!(background["real"]["value"].as_f64().unwrap() > 90.0, "{background}");
    assert!(figure(all, "variety, distance")["drawn"]["value"].as_f64().unwrap() > 0.0, "{all}");
    let panel = kinds.iter().find(|kind| kind["kind"] == "panel").unwrap();
    for name in ["lower panel, PSNR", "lower panel, retrieval@1"] {
        assert_eq!(figure(panel, name)["n"], panel["cases"], "{panel}");
    }
    assert!(found["judge"].as_str().unwrap().starts_with("rerank.tessera.safetensors ("), "{found}");
    assert_eq!(found["sampling"]["top_p"], Value::Null);
    // The sheet has a row for each kind, and standard error a line for each drawing.
    let rows = names.len() as u32 - 1;
    assert_eq!(picture(dir.path(), "sheet.png").dimensions(), (12 * 98 - 2, rows * 98 - 2));
    assert!(output.stderr.contains("panel, best: the exact same"), "{}", output.stderr);
}

#[test]
fn zero_shot_table_is_the_same_for_the_same_seed() {
    let dir = folder();
    prepare(dir.path());
    let flags = ["--kinds", "panel, made-of", "--limit", "4", "--candidates", "2"];
    let table = succeed(dir.path(), &zero_shot(&flags)).stdout;
    assert_eq!(succeed(dir.path(), &zero_shot(&flags)).stdout, table);
    assert!(table.starts_with("best of 2 candidates, sampled as in the paper: temperature 1"), "{table}");
    for text in [
        "which did not rank\n",
        "\nmade of, 1 combinations ",
        "\npanel, 3 combinations ",
        "  lower panel, PSNR, dB",
    ] {
        assert!(table.contains(text), "{text:?}: {table}");
    }
    let other = succeed(dir.path(), &zero_shot(&[&flags[..], &["--seed", "1"]].concat())).stdout;
    assert_ne!(other, table);
}

#[test]
fn zero_shot_with_invalid_flags_is_an_error() {
    let dir = folder();
    prepare(dir.path());
    let own = pipeline().model();
    fs::write(dir.path().join("list.txt"), "rendition: owl | x-ray\n").unwrap();
    for (flags, wanted) in [
        (
            &["--judge", "model.safetensors"][..],
            "model.safetensors is the model that ranks, which would favour",
        ),
        (&["--packages", "nowhere"], "fetch the packages with `runs/fetch_emoji.sh DIR`"),
        (&["--kinds", "mood"], "--kinds: unknown kind \"mood\"; wanted style, rendition"),
        (&["--held-out", "none.txt"], "cannot read the held-out list none.txt"),
        (&["--held-out", "list.txt", "--kinds", "panel"], "holds out no combination of the selected kinds"),
        (&["--model", &own], "the best of 16 candidates: the model has no reranker"),
        (&["--top-p", "2"], "top-p 2: wanted more than 0 and at most 1"),
        (&["--sheet", "sheet.gif"], "cannot write sheet.gif"),
    ] {
        // The flag is replaced, because giving it twice is a different error.
        let replaced: Vec<&str> = match zero_shot(&[]).iter().position(|arg| *arg == flags[0]) {
            Some(at) => {
                let mut args = zero_shot(&[]);
                args[at + 1] = flags[1];
                args
            }
            None => zero_shot(flags),
        };
        let error = mistake(dir.path(), &replaced);
        assert!(error.contains(wanted), "{flags:?}: {error}");
    }
}
