//! Tests of `tessera eval`: results, errors, and continuing an interrupted evaluation.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use super::pipeline::pipeline;
use super::program::{Finished, arg, command, entries, fixture, folder, mistake, picture, succeed};

/// The path of a split of the fixture.
fn split(name: &str) -> String {
    arg(&Path::new(&fixture()).join(name)).to_string()
}

/// Runs an evaluation with the pipeline's contrastive model, and returns its figures.
fn measure(dir: &Path, args: &[&str]) -> Vec<Value> {
    let rerank = ["--rerank", &pipeline().reranker(), "--json"];
    let output = succeed(dir, &[&["eval"], args, &rerank[..]].concat());
    serde_json::from_str(&output.stdout).unwrap()
}

fn value(figure: &Value) -> f64 {
    figure["value"].as_f64().unwrap()
}

/// Writes forty pictures of three sizes with captions, and returns their folder.
fn pictures(dir: &Path) -> PathBuf {
    let out = dir.join("pictures");
    fs::create_dir(&out).unwrap();
    for i in 0..40_u8 {
        let image = image::RgbImage::from_fn(20 + u32::from(i % 3), 20, |x, y| {
            image::Rgb([i * 6, (x * 12) as u8, (y * 12) as u8])
        });
        image.save(out.join(format!("{i:02}.png"))).unwrap();
        fs::write(out.join(format!("{i:02}.txt")), format!("picture {i}\n")).unwrap();
    }
    out
}

#[test]
fn distances_are_zero_for_the_same_set_only() {
    let dir = folder();
    let (train, other) = (split("train"), arg(&pictures(dir.path())).to_string());
    let own = measure(dir.path(), &["fid", &train, &train]);
    assert!(value(&own[0]).abs() < 1e-6, "{own:?}");
    let apart = measure(dir.path(), &["fid", &train, &other]);
    assert!(value(&apart[0]) > 1e-3 && apart[0]["n"] == 40, "{apart:?}");
    assert!(apart[0]["features"].as_str().unwrap().starts_with("contrastive model "), "{apart:?}");
    assert!(
        value(&measure(dir.path(), &["kid", &train, &other])[0])
            > value(&measure(dir.path(), &["kid", &train, &train])[0])
    );
    assert!(value(&measure(dir.path(), &["cmmd", &train, &other])[0]) > 0.0);
    let [precision, recall] = &measure(dir.path(), &["precision-recall", &train, &train])[..] else {
        panic!()
    };
    assert_eq!((value(precision), value(recall)), (1.0, 1.0));
    let [precision, recall] = &measure(dir.path(), &["precision-recall", &train, &other])[..] else {
        panic!()
    };
    let counts = |figure: &Value| (figure["n_real"].as_u64(), figure["n"].as_u64());
    assert_eq!([precision, recall].map(counts), [(Some(200), Some(40)); 2]);
}

#[test]
fn invalid_evaluations_are_errors() {
    let dir = folder();
    let (train, reranker) = (split("train"), pipeline().reranker());
    let few = dir.path().join("few");
    fs::create_dir(&few).unwrap();
    image::RgbImage::new(9, 9).save(few.join("one.png")).unwrap();
    fs::create_dir(dir.path().join("none")).unwrap();
    fs::write(dir.path().join("none/notes.md"), "").unwrap();
    let rerank = ["--rerank", &reranker];
    for (args, wanted) in [
        (&["fid", &train, "few"][..], "wanted at least 33 of each"),
        (&["fid", &train, "few"], "`tessera eval kid` accepts fewer"),
        (&["fid", &train, "none"], "no pictures in none: 1 .md file (none/notes.md); wanted"),
        (&["fid", &train, "nowhere"], "nowhere is not a folder"),
        (&["is", &train], "knows no classes"),
        (&["clip-score", "few"], "no picture in few has a caption"),
        (&["blur", &train, &train, "--radii", "0,1000"], "wanted 0 to 100 pixels"),
    ] {
        let error = mistake(dir.path(), &[&["eval"], args, &rerank[..]].concat());
        assert!(error.contains(wanted), "{args:?}: {error}");
    }
    let error = mistake(dir.path(), &["eval", "fid", &train, &train, "--inception", "none.pth"]);
    assert!(error.contains("none.pth: there is no such file; download https://"), "{error}");
    let data = fixture();
    for (what, wanted) in [
        (
            &["retrieval", "--data", &data][..],
            "--inception: pictures and captions are compared by a contrastive model",
        ),
        (&["clip-score", &train], "--inception: pictures and captions are compared by a contrastive model"),
        (&["kid", &train, &train, "--protocol", "dm-gan"], "--protocol works only with FID and IS"),
        (&["fid", &train, &train, "--inception", "two.pth"], "2 files of --inception; wanted one"),
        (&["blur", "real.npz", &train, "--protocol", "dm-gan"], "statistics cannot be blurred"),
        (&["fid", &train, &train, "--protocol", "dm-gan"], "none.pth: there is no such file"),
    ] {
        let error = mistake(dir.path(), &[&["eval"], what, &["--inception", "none.pth"]].concat());
        assert!(error.contains(wanted), "{what:?}: {error}");
    }
    let statistics = Path::new(&fixture()).join("../eval/statistics.npz");
    let error = mistake(dir.path(), &[&["eval", "fid", arg(&statistics), &train], &rerank[..]].concat());
    assert!(error.contains("statistics.npz, mu: shape [2]; wanted [32]"), "{error}");
    fs::write(dir.path().join("other.pth"), fs::read(&reranker).unwrap()).unwrap();
    let error = mistake(dir.path(), &["eval", "fid", &train, &train, "--inception", "other.pth"]);
    assert!(error.contains("other.pth: not a PyTorch file"), "{error}");
}

#[test]
fn stored_features_give_the_same_figures() {
    let dir = folder();
    let own = arg(&pictures(dir.path())).to_string();
    fs::write(dir.path().join("pictures/readme.md"), "").unwrap();
    let once = measure(dir.path(), &["kid", &split("train"), &own]);
    let stored = ["kid", &split("train"), &own, "--work", "work"];
    assert_eq!(measure(dir.path(), &stored), once);
    let files = entries(&dir.path().join("work"));
    assert_eq!(files.len(), 2, "{files:?}");
    // A shorter file is what an interrupted measurement leaves.
    let file = dir.path().join("work").join(&files[0]);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let output = succeed(
        dir.path(),
        &[&["eval"], &stored[..], &["--rerank", &pipeline().reranker(), "--json"]].concat(),
    );
    assert_eq!(serde_json::from_str::<Vec<Value>>(&output.stdout).unwrap(), once);
    assert!(output.stderr.contains("skipped 1: 1 .md file"), "{}", output.stderr);
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

#[test]
fn clip_score_is_retrieval_and_blur_are_measured() {
    let dir = folder();
    let (own, train) = (arg(&pictures(dir.path())).to_string(), split("train"));
    assert!(value(&measure(dir.path(), &["clip-score", &own])[0]).is_finite());
    fs::write(dir.path().join("classes.txt"), "a red apple\na blue heart\n").unwrap();
    let score = value(&measure(dir.path(), &["is", &train, "--classes", "classes.txt"])[0]);
    assert!((1.0..=2.0).contains(&score), "{score}");
    assert_eq!(measure(dir.path(), &["retrieval", "--data", &fixture()]).len(), 6);
    let figures = measure(dir.path(), &["blur", &train, &own, "--radii", "0,2", "--out", "blur.svg"]);
    let plain = value(&measure(dir.path(), &["fid", &train, &own])[0]);
    let names: Vec<&str> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["FID, at 256 pixels blurred by 0", "FID, at 256 pixels blurred by 2"]);
    assert!((value(&figures[0]) / plain - 1.0).abs() < 0.2, "a radius of 0 is no blur: {figures:?}, {plain}");
    let small =
        measure(dir.path(), &["blur", &train, &own, "--radii", "2", "--size", "24", "--out", "blur.svg"]);
    assert_ne!(value(&small[0]), value(&figures[1]), "pixels of another size");
    assert!(fs::read_to_string(dir.path().join("blur.svg")).unwrap().ends_with("</svg>\n"));
}

/// Makes a data set whose held-out part has both splits of the fixture. Its training part has the
/// held-out split, so that one overlaps.
fn overlapping(dir: &Path) -> String {
    let set = dir.join("set");
    for (from, to) in [("val", "train/00000"), ("val", "val/00000"), ("train", "val/00001")] {
        let to = set.join(to).with_extension("tar");
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(Path::new(&fixture()).join(from).join("00000.tar"), to).unwrap();
    }
    arg(&set).to_string()
}

#[test]
fn overlap_measures_distances_with_and_without_overlaps() {
    let dir = folder();
    let (own, set) = (arg(&pictures(dir.path())).to_string(), overlapping(dir.path()));
    let overlap = |threshold: &str| {
        let what = ["overlap", "--data", &set, "--threshold", threshold, "--fake", &own, "--out", "o.png"];
        measure(dir.path(), &what)
    };
    let figures = overlap("0.999999");
    let names: Vec<&str> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names[0], "overlaps, cosine ≥ 0.999999");
    for (name, wanted) in names[1..].iter().zip(["FID, all", "KID, ", "FID, without overlaps", "KID, "]) {
        assert!(name.starts_with(wanted), "{names:?}");
    }
    assert!(names[2].ends_with(", all") && names[4].ends_with(", without overlaps"), "{names:?}");
    assert!((value(&figures[0]) - 100.0 * 16.0 / 216.0).abs() < 1e-6, "16 of 216 overlap: {figures:?}");
    // Without overlaps, only the fixture's training split is left of the held-out part.
    for (at, real) in [(1, format!("{set}/val")), (3, split("train"))] {
        for (at, what) in [(at, "fid"), (at + 1, "kid")] {
            let wanted = value(&measure(dir.path(), &[what, &real, &own])[0]);
            let got = value(&figures[at]);
            assert!((got / wanted - 1.0).abs() < 1e-6, "{}: {got}, wanted {wanted}", names[at]);
        }
    }
    assert_ne!(value(&figures[1]), value(&figures[3]));
    let figures = overlap("2");
    assert_eq!((value(&figures[0]), value(&figures[1])), (0.0, value(&figures[3])), "nothing overlaps");
    assert!(picture(dir.path(), "o.png").width() > 100);
    let all = ["eval", "overlap", "--data", &set, "--threshold=-1", "--fake", &own];
    let rerank = ["--rerank", &pipeline().reranker()];
    let error = mistake(dir.path(), &[&all[..], &rerank].concat());
    assert!(error.contains("0 held-out pictures are left; wanted at least 2: raise --threshold"), "{error}");
}

#[test]
fn eval_notes_skipped_files_of_a_data_set() {
    let (pipeline, dir) = (pipeline(), folder());
    let set = overlapping(dir.path());
    image::RgbImage::new(9, 9).save(dir.path().join("set/stray.png")).unwrap();
    let (model, reranker) = (pipeline.model(), pipeline.reranker());
    let (recon, rerank) = (["--model", &model], ["--rerank", &reranker]);
    let report = ["--drawings", "d", "--judge", "none"]; // ends when it does not find the judge
    for (what, flags) in
        [("recon", &recon[..]), ("retrieval", &rerank), ("overlap", &rerank), ("report", &report)]
    {
        let args = [&["eval", what, "--data", &set], flags].concat();
        let output = Finished::of(command(dir.path(), &args).output().unwrap());
        assert!(output.stderr.contains("skipped 1: 1 picture next to the tars"), "{what}: {}", output.stderr);
    }
}

#[test]
fn statistics_are_read_from_standard_input() {
    let dir = folder();
    let (train, reranker) = (split("train"), pipeline().reranker());
    let mut child = command(dir.path(), &["eval", "fid", "-", &train, "--rerank", &reranker])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let statistics = fs::read(Path::new(&fixture()).join("../eval/statistics.npz")).unwrap();
    child.stdin.take().unwrap().write_all(&statistics).unwrap();
    let error = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    // The error shows that they were read; they belong to another network.
    assert!(error.contains("/dev/stdin, mu: shape [2]; wanted [32]"), "{error}");
}

/// Packs the pipeline's model with its reranker, and trains another contrastive model that judges.
pub fn ranking_and_judging(dir: &Path) {
    let pipeline = pipeline();
    let pack = ["pack", &pipeline.model(), "--rerank", &pipeline.reranker(), "--out", "model.safetensors"];
    succeed(dir, &pack);
    let bpe = arg(&pipeline.dir.join("bpe/tokenizer.json")).to_string();
    let train =
        ["train", "rerank", "--config", "tiny", "--data", &fixture(), "--bpe", &bpe, "--run", "judge"];
    let short = ["--seed", "9", "--steps", "1", "--set", "data.reconstructed=0"];
    succeed(dir, &[&train[..], &short].concat());
}

#[test]
fn rerank_curve_keeps_existing_drawings() {
    let dir = folder();
    ranking_and_judging(dir.path());
    let judge = "judge/rerank.tessera.safetensors";
    let data = fixture();
    let what = ["eval", "rerank-curve", "--data", &data, "--drawings", "drawings", "--captions", "4"];
    let how = ["--of", "3", "--model", "model.safetensors", "--judge", judge, "--json"];
    let curve = [&what[..], &how].concat();
    let run = || succeed(dir.path(), &curve).stdout;
    let first = run();
    let points: Vec<Value> = serde_json::from_str(&first).unwrap();
    let numbers: Vec<u64> = points.iter().map(|point| point["best_of"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert!(fs::read_to_string(dir.path().join("rerank-curve.svg")).unwrap().contains("score by the judge"));
    assert_eq!(
        entries(&dir.path().join("drawings")),
        ["best-of-001", "best-of-002", "best-of-003", "drawn.json"]
    );
    let last = dir.path().join("drawings/best-of-003/00002.png");
    let (drawn, untouched) = (fs::read(&last).unwrap(), dir.path().join("drawings/best-of-003/00001.png"));
    let before = fs::metadata(&untouched).unwrap().modified().unwrap();
    fs::remove_file(&last).unwrap();
    assert_eq!(run(), first);
    assert_eq!(fs::read(&last).unwrap(), drawn, "a missing drawing is drawn again");
    assert_eq!(fs::metadata(&untouched).unwrap().modified().unwrap(), before, "other drawings do not change");

    let error = mistake(dir.path(), &[&curve[..], &["--seed", "5"]].concat());
    assert!(error.contains("drawings holds drawings by another model, seed or captions"), "{error}");
    let own = ["--drawings", "others", "--judge", "model.safetensors"];
    let args = ["eval", "rerank-curve", "--data", &fixture(), "--model", "model.safetensors"];
    let error = mistake(dir.path(), &[&args[..], &own].concat());
    assert!(error.contains("is the model that ranks, which would favour its own choices"), "{error}");

    let report =
        ["eval", "report", "--data", &fixture(), "--drawings", "drawings", "--captions", "4", "--of", "3"];
    let models = ["--model", "model.safetensors", "--judge", judge];
    let error = mistake(dir.path(), &[&report[..], &models].concat());
    assert!(
        error.contains("no style has 8 of these"),
        "the fixture has too few pictures of a style: {error}"
    );
}

#[test]
fn coco_captions_are_drawn_and_evaluated() {
    let dir = folder();
    ranking_and_judging(dir.path());
    fs::create_dir_all(dir.path().join("coco/val2014")).unwrap();
    let mut captions = Vec::new();
    for i in 0..3 {
        let name = format!("{i}.png");
        image::RgbImage::from_pixel(30, 20, image::Rgb([i * 80; 3]))
            .save(dir.path().join("coco/val2014").join(&name))
            .unwrap();
        captions.push(format!(r#"{{"id":{i},"image_id":{i},"caption":"a thing number {i}"}}"#));
    }
    let images: Vec<String> = (0..3).map(|i| format!(r#"{{"id":{i},"file_name":"{i}.png"}}"#)).collect();
    let text = format!(r#"{{"images":[{}],"annotations":[{}]}}"#, images.join(","), captions.join(","));
    fs::write(dir.path().join("coco/captions_val2014.json"), text).unwrap();
    let coco = ["eval", "coco", "coco", "--captions", "2"];
    let models = ["--model", "model.safetensors", "--judge", "judge/rerank.tessera.safetensors"];
    let run = |flags: &[&str]| succeed(dir.path(), &[&coco[..], &models, flags].concat()).stdout;
    // The defaults are the best of 512, and sampling from the unchanged distribution.
    let points: Vec<Value> = serde_json::from_str(&run(&["--drawings", "drawings", "--json"])).unwrap();
    assert_eq!((points.len(), &points[0]["best_of"]), (1, &512.into()));
    let paper = serde_json::json!({"temperature": 1.0, "top_k": null, "top_p": null, "guidance": 1.0});
    assert_eq!(points[0]["sampling"], paper);
    let drawn = fs::read_to_string(dir.path().join("drawings/drawn.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&drawn).unwrap()["sampling"], paper);
    assert_eq!(
        entries(&dir.path().join("drawings/best-of-512")),
        ["00000.png", "00000.txt", "00001.png", "00001.txt"]
    );
    let output = run(&["--drawings", "drawings"]);
    assert!(
        output.starts_with("sampled as in the paper: temperature 1, all tokens, no guidance\nbest of 512\n"),
        "{output}"
    );
    let output = run(&["--drawings", "others", "--of", "2", "--top-p", "0.5", "--temperature", "0.9"]);
    assert!(output.starts_with("sampled at temperature 0.9, top-p 0.5\nbest of 2\n"), "{output}");
    for protocol in [&["--protocol", "dm-gan"][..], &[]] {
        let missing = ["--drawings", "x", "--inception", "none.pth"];
        let error = mistake(dir.path(), &[&coco[..], &models, &missing, protocol].concat());
        assert!(error.contains("none.pth: there is no such file; download"), "{error}");
        assert!(!dir.path().join("x").exists(), "drew although it cannot be evaluated");
    }
}

#[test]
fn cub_captions_are_drawn_and_evaluated() {
    let dir = folder();
    ranking_and_judging(dir.path());
    let cub = dir.path().join("cub");
    let write = |name: &str, text: &str| {
        let file = cub.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    write("images.txt", "1 001.Tern/a.png\n2 001.Tern/b.png\n3 002.Wren/c.png\n");
    write("train_test_split.txt", "1 1\n2 0\n3 0\n");
    write("text/001.Tern/a.txt", "a bird of training\n");
    write("text/001.Tern/b.txt", "a white bird\na small bird\n");
    write("text/002.Wren/c.txt", "a brown bird\n");
    for (name, shade) in [("001.Tern/a", 10), ("001.Tern/b", 90), ("002.Wren/c", 200)] {
        let file = cub.join("images").join(name).with_extension("png");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(30, 20, image::Rgb([shade; 3])).save(file).unwrap();
    }
    let cub = ["eval", "cub", "cub", "--drawings", "drawings", "--of", "2", "--json"];
    let models = ["--model", "model.safetensors", "--judge", "judge/rerank.tessera.safetensors"];
    let output = succeed(dir.path(), &[&cub[..], &models].concat());
    let points: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (points.len(), &points[0]["best_of"], &points[0]["sampling"]["guidance"]),
        (1, &2.into(), &1.0.into())
    );
    let figures = points[0]["figures"].as_array().unwrap();
    assert!(figures.iter().all(|figure| figure["n"] == 3 && value(figure).is_finite()), "{figures:?}");
    let captions = (0..3)
        .map(|i| fs::read_to_string(dir.path().join(format!("drawings/best-of-002/{i:05}.txt"))).unwrap());
    assert_eq!(captions.collect::<Vec<_>>(), ["a white bird", "a small bird", "a brown bird"]);
    // The default is the best of 512, as in the paper.
    let cub = ["eval", "cub", "cub", "--drawings", "paper", "--json"];
    let output = succeed(dir.path(), &[&cub[..], &models].concat());
    let points: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((points.len(), &points[0]["best_of"]), (1, &512.into()));
    fs::remove_file(dir.path().join("cub/images.txt")).unwrap();
    let error = mistake(dir.path(), &[&cub[..], &models].concat());
    assert!(error.contains("no images.txt in cub"), "{error}");
}

#[test]
fn human_page_is_written_and_votes_are_counted() {
    let dir = folder();
    let own = arg(&pictures(dir.path())).to_string();
    let page = ["eval", "human", "page", &own, &own, "--tasks", "3", "--out", "compare.html"];
    assert_eq!(succeed(dir.path(), &page).stdout, "compare.html\n");
    let html = fs::read_to_string(dir.path().join("compare.html")).unwrap();
    assert_eq!(html.matches("data:image/png").count(), 6);
    let id = html.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
    for (name, answer) in [("ann", "left"), ("ben", "left"), ("cat", "right")] {
        let lines: String = (0..3).map(|task| format!("{task},0,{answer},{answer},5.0\n")).collect();
        let text = format!("# {id},{name}\ntask,left,realism,match,seconds\n{lines}");
        fs::write(dir.path().join(format!("{name}.csv")), text).unwrap();
    }
    let votes =
        ["eval", "human", "votes", "ann.csv", "ben.csv", "cat.csv", "--names", "ours", "theirs", "--json"];
    let figures: Vec<Value> = serde_json::from_str(&succeed(dir.path(), &votes).stdout).unwrap();
    assert_eq!((&figures[0]["name"], value(&figures[0])), (&"more realistic: ours".into(), 100.0));
    assert!(dir.path().join("votes.svg").exists());
    let error = mistake(dir.path(), &["eval", "human", "votes", "ann.csv", "ann.csv"]);
    assert!(error.contains("ann has answered already"), "{error}");
    fs::remove_file(dir.path().join("pictures/05.png")).unwrap();
    let fewer = arg(&dir.path().join("pictures")).to_string();
    let error = mistake(dir.path(), &["eval", "human", "page", &fewer, &split("train")]);
    assert!(error.contains("39 pictures in") && error.contains("wanted the same captions"), "{error}");
}
