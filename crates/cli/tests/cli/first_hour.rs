//! Tests of a newcomer's first hour: own pictures, help, completions, labels, folders.

use std::fs;
use std::path::Path;

use image::RgbImage;

use super::pipeline::pipeline;
use super::program::{Finished, command, entries, fixture, folder, mistake, succeed};

/// Writes `n` pictures of `side` pixels in different colours to `dir/pictures`, with captions.
pub fn pictures(dir: &Path, n: u32, side: u32) {
    let pictures = dir.join("pictures");
    fs::create_dir(&pictures).unwrap();
    for i in 0..n {
        let colour = image::Rgb([(i * 20) as u8, 255 - (i * 15) as u8, (i % 3 * 100) as u8]);
        let is_inside = |at: u32| (side / 3..side / 2).contains(&at);
        let picture = RgbImage::from_fn(side, side, |x, y| {
            if is_inside(x) && is_inside(y) { colour } else { image::Rgb([255; 3]) }
        });
        picture.save(pictures.join(format!("{i:02}.png"))).unwrap();
        fs::write(pictures.join(format!("{i:02}.txt")), format!("a red apple number {i}\n")).unwrap();
    }
}

/// Runs the script that `tessera train` leaves, with another folder for the results.
fn commands_can_be_run_again(dir: &Path) {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tessera"), bin.join("tessera")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let sh = |args: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.arg("run/commands.sh").args(args).current_dir(dir).env("PATH", &path).output().unwrap()
    };
    let again = sh(&["again"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(dir.join("again/sheet.png").exists());
    let refused = sh(&[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("give a new folder for the results"));
}

#[test]
fn own_pictures_become_a_model_in_one_command() {
    let dir = folder();
    pictures(dir.path(), 12, 60);
    let train = ["train", "pictures", "--run", "run", "--minutes", "0.05"];
    // The commands are run without these variables.
    let mut first = command(dir.path(), &train);
    let said = first.env("TESSERA_MODEL", "nope").env("TESSERA_RERANK", "nope").env("TESSERA_CONFIG", "nope");
    let said = Finished::of(said.output().unwrap());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("- train the prior further: tessera train prior"), "{}", said.stderr);
    assert!(said.stderr.contains("pictures for training: too few"), "{}", said.stderr);
    for file in ["model.tessera.safetensors", "sheet.png", "commands.sh", "prompts.txt"] {
        assert!(dir.path().join("run").join(file).exists(), "{file}");
    }
    let commands = fs::read_to_string(dir.path().join("run/commands.sh")).unwrap();
    for part in ["tessera data folder pictures", "--dvae embedded", "--init embedded", "--bpe embedded"] {
        assert!(commands.contains(part), "{part}: {commands}");
    }
    let drawn = ["draw", "a red apple", "--model", "run/model.tessera.safetensors", "-n", "1"];
    succeed(dir.path(), &drawn);
    commands_can_be_run_again(dir.path());
    let again = succeed(dir.path(), &train);
    assert!(again.stderr.contains("- train the prior further (done)"), "{}", again.stderr);
    assert_eq!(succeed(dir.path(), &[&train[..], &["-q"]].concat()).stderr, "");
    for (flag, value) in [("--minutes", "0.1"), ("--seed", "7")] {
        let other = ["train", "pictures", "--run", "run", flag, value];
        let error = mistake(dir.path(), &other);
        assert!(error.contains("run is finished; it was planned with --minutes 0.05 --seed 0."), "{error}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("run/commands.sh")).unwrap(), commands);
    // A training that was stopped has a model file, but is not done.
    let done = dir.path().join("run/done.txt");
    let lines = fs::read_to_string(&done).unwrap();
    let others: Vec<&str> = lines.lines().filter(|line| !line.contains("train prior")).collect();
    assert_eq!(others.len() + 1, lines.lines().count());
    fs::write(&done, others.join("\n") + "\n").unwrap();
    let again = succeed(dir.path(), &train);
    assert!(again.stderr.contains("- train the prior further: "), "{}", again.stderr);
    assert!(again.stdout.contains("finished: run/prior"), "{}", again.stdout);
    for (folder, kind) in [
        ("run", "a run of"),
        ("run/data", "a data set"),
        ("run/codes", "codes"),
        ("run/prior", "a training run"),
    ] {
        let described = succeed(dir.path(), &["inspect", folder]).stdout;
        assert!(described.contains(kind), "{folder}: {described}");
    }
    fs::write(dir.path().join("pictures/new.txt"), "one more").unwrap();
    RgbImage::new(60, 60).save(dir.path().join("pictures/new.png")).unwrap();
    let said = Finished::of(command(dir.path(), &train).output().unwrap());
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert_eq!(said.stderr.matches("error:").count(), 1, "{}", said.stderr);
}

#[test]
fn pictures_that_cannot_be_trained_on_are_a_clear_error() {
    let dir = folder();
    pictures(dir.path(), 3, 60);
    fs::create_dir(dir.path().join("bare")).unwrap();
    RgbImage::new(60, 60).save(dir.path().join("bare/a.png")).unwrap();
    fs::create_dir(dir.path().join("full")).unwrap();
    fs::write(dir.path().join("full/thesis.txt"), "important").unwrap();
    let before = entries(&dir.path().join("pictures"));
    for (args, expected) in [
        (&["train", "pictures"][..], "--run"),
        (&["train"], "wanted a folder of pictures and --run DIR"),
        (&["train", "pictures", "--run", "r", "--minutes", "0"], "--minutes 0: wanted a number of minutes"),
        (&["train", "pictures", "--run", "r", "--minutes", "0.001"], "--minutes 0.001: wanted a number"),
        (&["train", "pictures", "--run", "r", "--minutes", "-1"], "--minutes -1: wanted a number of minutes"),
        (&["train", "pictures", "--run", "pictures"], "is in the folder of pictures"),
        (&["train", "pictures", "--run", "pictures/../pictures/new/run"], "is in the folder of pictures"),
        (&["train", "pictures", "--run", "full"], "full is not empty and holds no run of `train PICTURES`"),
        (
            &["encode", "--data", "d", "--dvae", "embedded", "--out", "full"],
            "full is not empty and holds no codes",
        ),
        (&["train", "pictures", "--run", "r"], "3 pictures with captions; wanted at least 8"),
        (&["train", "bare", "--run", "r2"], "caption"),
        (&["train", "nowhere", "--run", "r3"], "nowhere"),
    ] {
        let said = Finished::of(command(dir.path(), args).output().unwrap());
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.stderr);
        assert_eq!(said.stderr.matches("error:").count(), 1, "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{args:?}: {}", said.stderr);
    }
    // Nothing is left, so the same commands work with other pictures.
    assert_eq!(entries(&dir.path().join("pictures")), before);
    assert_eq!(entries(&dir.path().join("full")), ["thesis.txt"]);
    assert!(!dir.path().join("r/data").exists());
    assert!(!dir.path().join("r2").exists() && !dir.path().join("r3").exists());
}

#[test]
fn embedded_model_of_another_size_is_no_start() {
    let dir = folder();
    let (data, made) = (fixture(), pipeline().dir.display().to_string());
    let train = ["train", "prior", "--config", "tiny", "--data", &format!("{made}/codes"), "--run", "run"];
    let error = mistake(dir.path(), &[&train[..], &["--bpe", "embedded", "--init", "embedded"]].concat());
    assert!(error.contains("text_vocab"), "{error}");
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "run", "--init", "embedded"];
    let error = mistake(dir.path(), &train);
    assert!(error.contains("--init: the dVAE in the file has another architecture: dvae."), "{error}");
    assert!(entries(dir.path()).is_empty());
}

#[test]
fn completions_and_man_pages_are_written_for_every_command() {
    let dir = folder();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(dir.path(), &["completions", shell]).stdout;
        assert!(script.contains("tessera") && script.contains("guidance"), "{shell}");
    }
    let said = Finished::of(command(dir.path(), &["completions", "csh"]).output().unwrap());
    assert!(said.code == Some(2) && said.stderr.contains("csh"), "{}", said.stderr);
    succeed(dir.path(), &["man", "man"]);
    let pages = entries(&dir.path().join("man"));
    for page in ["tessera.1", "tessera-draw.1", "tessera-train-prior.1", "tessera-eval-fid.1"] {
        assert!(pages.iter().any(|name| name == page), "{page} of {pages:?}");
    }
}

#[test]
fn version_names_commit_instructions_and_embedded_model() {
    let dir = folder();
    let long = succeed(dir.path(), &["--version"]).stdout;
    for part in [env!("CARGO_PKG_VERSION"), "commit:", "computes with:", "embedded model:"] {
        assert!(long.contains(part), "{part}: {long}");
    }
    assert_eq!(succeed(dir.path(), &["-V"]).stdout.lines().count(), 1);
}

#[test]
fn quiet_command_writes_only_errors_to_standard_error() {
    let dir = folder();
    let data = fixture();
    let train = ["train", "dvae", "--config", "tiny", "--data", &data, "--run", "run", "--steps", "2"];
    let said = succeed(dir.path(), &[&train[..], &["--quiet"]].concat());
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("finished: run\n", ""));
    assert!(mistake(dir.path(), &["inspect", "nowhere", "--quiet"]).contains("nowhere"));
}

#[test]
fn environment_variables_set_the_model() {
    let dir = folder();
    let inspect = ["reconstruct", "none.png"];
    let said = Finished::of(command(dir.path(), &inspect).env("TESSERA_MODEL", "no-model").output().unwrap());
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("no-model"), "{}", said.stderr);
    // An empty one counts as absent.
    let said = Finished::of(command(dir.path(), &inspect).env("TESSERA_MODEL", "").output().unwrap());
    assert!(said.stderr.contains("cannot read none.png"), "{}", said.stderr);
}

#[test]
fn labels_stand_above_rows_and_below_separate_pictures() {
    let dir = folder();
    let model = pipeline().model();
    let size = |file: &str, args: &[&str]| {
        let draw =
            ["draw", "a red apple", "a cat", "--model", &model, "-n", "2", "--seed", "1", "--out", file];
        succeed(dir.path(), &[&draw[..], args].concat());
        let name = if args.contains(&"--separate") { file.replace('.', "-1.") } else { file.to_string() };
        image::open(dir.path().join(name)).unwrap().into_rgb8().dimensions()
    };
    let (width, height) = size("plain.png", &[]);
    let (labelled_width, labelled_height) = size("labelled.png", &["--labels"]);
    assert_eq!(labelled_width, width);
    assert!(labelled_height > height + 2 * 16, "{labelled_height} and {height}");
    let (_, alone) = size("one.png", &["--separate"]);
    assert!(size("named.png", &["--separate", "--labels"]).1 > alone);
}

#[test]
fn folder_of_another_program_is_named() {
    let dir = folder();
    fs::create_dir(dir.path().join("other")).unwrap();
    let error = mistake(dir.path(), &["inspect", "other"]);
    assert!(error.contains("other is not a data set, codes, a training run or a checkpoint"), "{error}");
}
