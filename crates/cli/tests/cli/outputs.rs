//! Tests of the files that commands write (standard output, pipes, links, extensions, full disks)
//! and of reading from standard input.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use image::ImageFormat;

use super::pipeline::pipeline;
use super::program::{command, entries, folder, mistake, succeed};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The arguments for drawing one picture.
fn one<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["draw", "a cat", "-n", "1", "--seed", "1", "--model", model], more].concat()
}

#[test]
fn dash_as_output_is_standard_output() {
    let (dir, model) = (folder(), pipeline().model());
    for out in ["-", "/dev/stdout"] {
        let output = command(dir.path(), &one(&model, &["--out", out])).output().unwrap();
        assert!(output.status.success());
        assert_eq!(image::guess_format(&output.stdout).unwrap(), ImageFormat::Png);
        image::load_from_memory(&output.stdout).unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "/dev/stdout (seed 1)\n");
    }
    assert!(entries(dir.path()).is_empty());
    let error = mistake(dir.path(), &one(&model, &["--out", "-", "--json"]));
    assert!(error.contains("--json writes to standard output"), "{error}");
    let error = mistake(dir.path(), &one(&model, &["--out", "-", "--separate"]));
    assert!(error.contains("--separate: wanted the name of a file"), "{error}");
}

/// Earlier, `--out /dev/stdout >> old.txt` replaced `old.txt` with the picture.
#[test]
fn appending_redirection_keeps_the_content_of_the_file() {
    let dir = folder();
    let path = dir.path().join("old.txt");
    fs::write(&path, "old").unwrap();
    let append = File::options().append(true).open(&path).unwrap();
    let model = pipeline().model();
    let args = one(&model, &["--out", "/dev/stdout"]);
    assert!(command(dir.path(), &args).stdout(append).stderr(Stdio::null()).status().unwrap().success());
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.starts_with(&[b"old", PNG].concat()), "{:?}", &bytes[..11]);
    image::load_from_memory(&bytes[3..]).unwrap();
}

#[test]
fn named_pipe_as_output_receives_the_picture() {
    let dir = folder();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = thread::spawn(move || fs::read(pipe).unwrap());
    succeed(dir.path(), &one(&pipeline().model(), &["--out", "pipe"]));
    image::load_from_memory(&reader.join().unwrap()).unwrap();
    assert_eq!(entries(dir.path()), ["pipe"]);
}

#[test]
fn dash_as_input_is_standard_input() {
    let (dir, model) = (folder(), pipeline().model());
    succeed(dir.path(), &one(&model, &["--out", "cat.png"]));
    let with_input = |args: &[&str], bytes: &[u8]| {
        let mut child = command(dir.path(), args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let cat = fs::read(dir.path().join("cat.png")).unwrap();
    assert_eq!(with_input(&["inspect", "-"], &cat), succeed(dir.path(), &["inspect", "cat.png"]).stdout);
    let weights = fs::read(&model).unwrap();
    assert_eq!(with_input(&["inspect", "-"], &weights), succeed(dir.path(), &["inspect", &model]).stdout);
    let args = ["draw", "--prompts", "-", "-n", "1", "--seed", "1", "--model", &model, "--out", "again.png"];
    with_input(&args, b"a cat\n");
    assert_eq!(fs::read(dir.path().join("again.png")).unwrap(), cat);
    with_input(&one("-", &["--out", "again.png"]), &weights);
    let args = ["plan", "--config", "-", "--gpus", "8", "--gpu-mem", "16GiB"];
    assert_eq!(
        with_input(&args, b"preset = \"tiny\"\n"),
        succeed(dir.path(), &[&["plan", "--config", "tiny"], &args[3..]].concat()).stdout
    );
    let args = ["draw", "--image", "-", "--variations", "-n", "1", "--model", &model, "--out", "like.png"];
    with_input(&args, &cat);
}

#[test]
fn file_extension_determines_the_format() {
    let (dir, model) = (folder(), pipeline().model());
    let drawn = |out: &str| {
        succeed(dir.path(), &one(&model, &["--out", out]));
        fs::read(dir.path().join(out)).unwrap()
    };
    for (out, format) in [
        ("x.png", ImageFormat::Png),
        ("x.JPG", ImageFormat::Jpeg),
        ("x.jpeg", ImageFormat::Jpeg),
        ("x.webp", ImageFormat::WebP),
        ("x", ImageFormat::Png),
    ] {
        assert_eq!(image::guess_format(&drawn(out)).unwrap(), format, "{out}");
    }
    succeed(dir.path(), &["reconstruct", "x.png", "--model", &model, "--out", "y.webp"]);
    let bytes = fs::read(dir.path().join("y.webp")).unwrap();
    assert_eq!(image::guess_format(&bytes).unwrap(), ImageFormat::WebP);
}

/// Earlier, `reconstruct --out keep.bmp` failed after the computation and left `keep.bmp` empty.
#[test]
fn invalid_outputs_are_errors_and_change_no_files() {
    let (dir, model) = (folder(), pipeline().model());
    let long = format!("{}.png", "x".repeat(252));
    for name in ["keep.bmp", "keep.png", "keep.part"] {
        fs::write(dir.path().join(name), "precious").unwrap();
    }
    symlink("keep.png", dir.path().join("link.gif")).unwrap();
    let before = entries(dir.path());
    let model = model.as_str();
    let refused: [(Vec<&str>, &str); 11] = [
        (one(model, &["--out", "keep.bmp"]), "unsupported extension .bmp; use .png, .jpg, .jpeg or .webp"),
        (one(model, &["--out", "x.gif"]), ".webp; --gif writes an animation"),
        (one(model, &["--gif", "x.png"]), "unsupported extension .png; use .gif"),
        (one(model, &["--out", &long]), "too long"),
        (one(model, &["--out", "."]), "names no file"),
        (one(model, &["--out", "keep.png", "--gif", "link.gif"]), "are the same file"),
        (vec!["reconstruct", "keep.png", "--out", "keep.bmp"], "unsupported extension .bmp"),
        (vec!["eval", "curves", ".", "--out", "x.png"], "unsupported extension .png; use .svg"),
        (vec!["gallery", ".", "--out", "x.pdf"], "unsupported extension .pdf; use .html or .htm"),
        (vec!["pack", model, "--out", "no/such/m"], "no folder no/such"),
        (vec!["convert", "openai-dvae", "none", "none", "--out", "no/such/m"], "no folder no/such"),
    ];
    for (args, wanted) in refused {
        let error = mistake(dir.path(), &args);
        assert!(error.contains(wanted), "{args:?}: {error}");
        assert_eq!(entries(dir.path()), before, "{args:?}");
    }
    for name in ["keep.bmp", "keep.png", "keep.part"] {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"precious", "{name}");
    }
}

/// The names of all numbered pictures are checked before the first is drawn.
#[test]
fn numbered_names_that_are_too_long_are_errors() {
    let dir = folder();
    let out = format!("{}.png", "x".repeat(249)); // valid with -1, too long with -10
    let args = ["draw", "a cat", "-n", "10", "--model", &pipeline().model(), "--out", &out, "--separate"];
    assert!(mistake(dir.path(), &args).contains("too long"));
    assert!(entries(dir.path()).is_empty());
}

/// Earlier, `pack --out m.safetensors` used `m.part` as a temporary file and deleted it.
#[test]
fn pack_changes_no_other_file_and_keeps_links() {
    let (dir, model) = (folder(), pipeline().model());
    let at = |name: &str| dir.path().join(name);
    fs::write(at("m.part"), "important").unwrap();
    symlink("real", at("link.safetensors")).unwrap();
    succeed(dir.path(), &["pack", &model, "--out", "m.safetensors"]);
    succeed(dir.path(), &["pack", &model, "--out", "link.safetensors"]);
    let packed = fs::read(at("m.safetensors")).unwrap();
    assert_eq!(fs::read(at("m.part")).unwrap(), b"important");
    assert!(fs::symlink_metadata(at("link.safetensors")).unwrap().is_symlink());
    assert_eq!(fs::read(at("real")).unwrap(), packed);
    // Earlier, these commands used the same temporary name.
    let spawn = |out| command(dir.path(), &["pack", &model, "--out", out]).stdout(Stdio::null()).spawn();
    let children = ["x.one", "x.two", "x.one"].map(|out| spawn(out).unwrap());
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(fs::read(at("x.one")).unwrap(), packed);
    assert_eq!(fs::read(at("x.two")).unwrap(), packed);
    assert_eq!(
        entries(dir.path()),
        ["link.safetensors", "m.part", "m.safetensors", "real", "x.one", "x.two"]
    );
}

/// On a full disk no file is lost and none is incomplete. The exit code is 1, since the arguments
/// were valid.
#[test]
fn full_disk_leaves_existing_files_unchanged() {
    let (dir, model) = (folder(), pipeline().model());
    let output = command(dir.path(), &one(&model, &["--out", "/dev/full"])).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write /dev/full: No space left on device"), "{error}");
    for (name, args) in [
        ("cat.png", one(&model, &["--out", "cat.png"])),
        ("cat.gif", one("model", &["--out", "/dev/null", "--gif", "cat.gif"])),
        ("m.safetensors", vec!["pack", &model, "--out", "m.safetensors"]),
    ] {
        fs::write(dir.path().join(name), "precious").unwrap();
        fs::copy(&model, dir.path().join("model")).unwrap();
        let stderr = with_file_limit(dir.path(), &args);
        assert!(stderr.contains(&format!("error: cannot write {name}: File too large")), "{stderr}");
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"precious", "{args:?}");
        fs::remove_file(dir.path().join(name)).unwrap();
        assert_eq!(entries(dir.path()), ["model"], "{args:?}");
    }
}

/// Runs the program with a limit of one kilobyte per file, like a disk that becomes full during
/// writing. Returns the standard error.
fn with_file_limit(dir: &Path, args: &[&str]) -> String {
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
    let mut shell = Command::new("bash");
    shell.current_dir(dir).args(["-c", script, env!("CARGO_BIN_EXE_tessera")]).args(args);
    let output = shell.output().unwrap();
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}
