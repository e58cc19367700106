//! Tests of all kinds of output: files, links, pipes, devices, redirections, and paths that cannot
//! be written.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::thread;

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn dropped_file_leaves_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let mut file = WholeFile::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    drop(file);
    assert!(names(dir.path()).is_empty());
    write(&path, b"whole").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"whole");
    assert_eq!(names(dir.path()), ["a.bin"]);
}

/// An earlier version overwrote `m.part` when it wrote `m.safetensors`, and two commands that wrote
/// `x.one` and `x.two` at the same time used the same temporary file.
#[test]
fn temporary_names_are_unique() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["m.part", "m.partial", ".m.safetensors.partial"] {
        fs::write(dir.path().join(name), "important").unwrap();
    }
    let path = dir.path().join("m.safetensors");
    let [mut one, mut two] = [(); 2].map(|()| WholeFile::create(&path).unwrap());
    one.write_all(b"one").unwrap();
    two.write_all(b"two").unwrap();
    one.keep().unwrap();
    two.keep().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(dir.path()), [".m.safetensors.partial", "m.part", "m.partial", "m.safetensors"]);
    assert_eq!(fs::read(dir.path().join("m.part")).unwrap(), b"important");
}

#[test]
fn links_are_kept_and_their_targets_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("real"), "old").unwrap();
    symlink("real", at("link")).unwrap();
    symlink("link", at("second")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("ring", at("ring")).unwrap();
    for name in ["second", "dangling"] {
        assert!(matches!(check(&at(name)).unwrap(), Destination::File(_)));
        write(&at(name), b"new").unwrap();
        assert!(fs::symlink_metadata(at(name)).unwrap().is_symlink(), "{name}");
    }
    assert_eq!(fs::read(at("real")).unwrap(), b"new");
    assert_eq!(fs::read(at("nowhere")).unwrap(), b"new");
    assert!(check(&at("ring")).unwrap_err().to_string().ends_with("is a loop of links"));
}

#[test]
fn replaced_file_keeps_its_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::write(&old, "old").unwrap();
    let usual = fs::metadata(&old).unwrap().permissions().mode();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
    write(&old, b"").unwrap();
    write(&new, b"").unwrap();
    assert_eq!(fs::metadata(&old).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::metadata(&new).unwrap().permissions().mode(), usual);
}

/// `check` must not open the pipe, because closing it again would end the reader's input.
#[test]
fn pipe_is_written_once_and_completely() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    assert_eq!(check(&pipe).unwrap(), Destination::Stream(fs::canonicalize(&pipe).unwrap()));
    write(&pipe, &[7; 200_000]).unwrap();
    assert_eq!(reader.join().unwrap(), [7; 200_000]);
    assert!(!fs::metadata(&pipe).unwrap().is_file());
}

/// An earlier version replaced `old.txt` when called with `--out /dev/stdout >> old.txt`.
#[test]
fn redirected_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.txt");
    fs::write(&path, "old, ").unwrap();
    let open = File::options().append(true).open(&path).unwrap();
    let name = PathBuf::from(format!("/dev/fd/{}", open.as_raw_fd()));
    assert!(matches!(check(&name).unwrap(), Destination::Stream(_)));
    write(&name, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old, new");
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        assert_eq!(check(Path::new(name)).unwrap(), Destination::Stdout, "{name}");
    }
}

#[test]
fn full_device_is_an_error_and_is_not_replaced() {
    let full = Path::new("/dev/full");
    check(full).unwrap();
    let error = write(full, b"x").unwrap_err();
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), ErrorKind::StorageFull);
    assert!(!fs::metadata(full).unwrap().is_file());
}

#[test]
fn check_rejects_paths_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let error_text = |name: &str| format!("{:#}", check(&dir.path().join(name)).unwrap_err());
    fs::create_dir(dir.path().join("folder")).unwrap();
    assert!(error_text("folder").contains("is a folder; wanted a file"), "{}", error_text("folder"));
    assert!(error_text("new/").contains("names no file"), "{}", error_text("new/"));
    assert!(error_text("no/such/x.png").contains("no folder"), "{}", error_text("no/such/x.png"));
    assert!(error_text(&"x".repeat(256)).contains("too long"), "{}", error_text(&"x".repeat(256)));
    // A name of the maximum length passes the check and can be written.
    let longest = dir.path().join("x".repeat(255));
    check(&longest).unwrap();
    write(&longest, b"fits").unwrap();
    assert_eq!(names(dir.path()), ["folder".to_string(), "x".repeat(255)]);
}

#[test]
fn check_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    check(&path).unwrap();
    assert!(names(dir.path()).is_empty());
    fs::write(&path, "precious").unwrap();
    check(&path).unwrap();
    assert_eq!(
        (names(dir.path()), fs::read(&path).unwrap()),
        (vec!["precious".into()], b"precious".to_vec())
    );
}

#[test]
fn file_that_cannot_be_replaced_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mounted");
    fs::write(&path, "a longer text").unwrap();
    let inode = || fs::metadata(&path).unwrap().ino();
    let before = inode();
    overwrite(&path, b"short").unwrap();
    assert_eq!((inode(), fs::read(&path).unwrap()), (before, b"short".to_vec()));
}

#[test]
fn two_names_of_one_file_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    symlink("a", &b).unwrap();
    let known = |path: &Path| Destination::of(path).unwrap();
    check_distinct(&[(&a, known(&a)), (dir.path(), known(&dir.path().join("c")))]).unwrap();
    let error = check_distinct(&[(&a, known(&a)), (&b, known(&b))]).unwrap_err().to_string();
    assert!(error.contains("are the same file; give each output a different name"), "{error}");
}
