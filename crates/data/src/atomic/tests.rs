//! Outputs of every kind: files, links, pipes, devices, redirections, and what cannot be written.

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
fn an_unkept_file_leaves_nothing() {
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

/// `m.part` was destroyed by writing `m.safetensors`, and two commands that wrote `x.one` and `x.two` disturbed each other.
#[test]
fn temporary_names_collide_with_nothing() {
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
fn links_are_kept_and_what_they_lead_to_is_written() {
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
    assert!(check(&at("ring")).unwrap_err().to_string().ends_with("is a ring of links"));
}

#[test]
fn a_replaced_file_keeps_its_access_rights() {
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

/// Looking whether it can be written must not open it, which would end what its reader sees.
#[test]
fn a_pipe_is_written_once_and_to_its_end() {
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

/// `--out /dev/stdout >> old.txt` replaced `old.txt`.
#[test]
fn an_open_file_is_written_behind_what_it_holds() {
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
fn a_full_device_is_an_error_and_not_replaced() {
    let full = Path::new("/dev/full");
    check(full).unwrap();
    let error = write(full, b"x").unwrap_err();
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), ErrorKind::StorageFull);
    assert!(!fs::metadata(full).unwrap().is_file());
}

#[test]
fn what_cannot_be_written_is_refused_by_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str| format!("{:#}", check(&dir.path().join(name)).unwrap_err());
    fs::create_dir(dir.path().join("folder")).unwrap();
    assert!(refused("folder").contains("is a folder; wanted a file"), "{}", refused("folder"));
    assert!(refused("new/").contains("names no file"), "{}", refused("new/"));
    assert!(refused("no/such/x.png").contains("no folder"), "{}", refused("no/such/x.png"));
    assert!(refused(&"x".repeat(256)).contains("too long"), "{}", refused(&"x".repeat(256)));
    // A name as long as names may be is no reason to fail after the work.
    let longest = dir.path().join("x".repeat(255));
    check(&longest).unwrap();
    write(&longest, b"fits").unwrap();
    assert_eq!(names(dir.path()), ["folder".to_string(), "x".repeat(255)]);
}

#[test]
fn a_check_changes_nothing() {
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
fn a_file_that_cannot_be_replaced_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mounted");
    fs::write(&path, "a longer text").unwrap();
    let inode = || fs::metadata(&path).unwrap().ino();
    let before = inode();
    overwrite(&path, b"short").unwrap();
    assert_eq!((inode(), fs::read(&path).unwrap()), (before, b"short".to_vec()));
}

#[test]
fn two_names_of_one_file_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    symlink("a", &b).unwrap();
    let known = |path: &Path| Destination::of(path).unwrap();
    check_distinct(&[(&a, known(&a)), (dir.path(), known(&dir.path().join("c")))]).unwrap();
    let error = check_distinct(&[(&a, known(&a)), (&b, known(&b))]).unwrap_err().to_string();
    assert!(error.contains("are the same file; give each output a name of its own"), "{error}");
}
