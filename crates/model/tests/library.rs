//! The library as other programs use it.

#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::path::PathBuf;

use tempfile::TempDir;
use tessera_model::weights::ModelFile;
use tessera_model::{Error, Event, Request, Tessera};
use tessera_pretrained::MODEL;

/// Saves `bytes` as a model file and opens it.
fn opened(bytes: &[u8]) -> (PathBuf, Result<Tessera, Error>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (path.clone(), Tessera::open(&path))
}

/// A request for one picture that is not ranked.
fn single(tessera: &Tessera) -> Request {
    Request { n: 1, best: None, seed: 1, ..tessera.request("a red apple") }
}

#[test]
fn default_request_is_that_of_the_command() {
    let mut tessera = Tessera::embedded().unwrap();
    let request = tessera.request("a red apple");
    assert_eq!((request.n, request.best, request.sampling.guidance), (36, Some(9), 1.5));
    assert_ne!(request.seed, tessera.request("a red apple").seed);
    let count = |request: Request| (request.n, request.best);
    assert_eq!(count(tessera.request(" ")), (9, None));
    tessera.reranker = None;
    assert_eq!(count(tessera.request("a red apple")), (9, None));
}

#[test]
fn embedded_model_draws_the_same_from_a_file() {
    let tokens = |tessera: Tessera| {
        let picture = tessera.draw(single(&tessera)).unwrap().pictures().unwrap().remove(0);
        assert_eq!(picture.image.dimensions(), (48, 48));
        picture.tokens
    };
    assert_eq!(tokens(Tessera::embedded().unwrap()), tokens(opened(MODEL).1.unwrap()));
}

#[test]
fn pictures_of_a_request_are_those_of_its_events() {
    let tessera = Tessera::embedded().unwrap();
    let request = Request { n: 3, best: Some(2), ..single(&tessera) };
    let tokens = tessera.draw(request.clone()).unwrap().filter_map(|event| match event.unwrap() {
        Event::Picture(picture) => Some(picture.tokens),
        _ => None,
    });
    let tokens: Vec<_> = tokens.collect();
    let pictures = tessera.draw(request).unwrap().pictures().unwrap();
    assert_eq!(pictures.iter().map(|picture| picture.tokens.clone()).collect::<Vec<_>>(), tokens);
    assert!(pictures.len() == 2 && pictures[0].score >= pictures[1].score);
}

#[test]
fn missing_file_is_an_io_error() {
    match Tessera::open("no-such.safetensors").err().unwrap() {
        Error::Io { path, source } => {
            assert_eq!((path, source.kind()), ("no-such.safetensors".into(), ErrorKind::NotFound));
        }
        error => panic!("{error:?}"),
    }
}

#[test]
fn invalid_newer_and_incomplete_files_have_different_errors() {
    let whole = ModelFile::from_bytes(MODEL).unwrap();
    let mut damaged = whole.to_bytes().unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    for bytes in [&b"\x89PNG"[..], &MODEL[..MODEL.len() / 2], &damaged] {
        let (path, model) = opened(bytes);
        let error = model.err().unwrap();
        assert!(matches!(error, Error::InvalidFile(_)), "{error:?}");
        let start = format!("{} is not a complete Tessera model: ", path.display());
        assert!(error.to_string().starts_with(&start), "{error}");
    }

    let label = br#"{\"format\":"#;
    let version = MODEL.windows(label.len()).position(|window| window == label).unwrap() + label.len();
    let mut newer = MODEL.to_vec();
    newer[version] = b'9';
    let error = opened(&newer).1.err().unwrap();
    assert!(matches!(error, Error::NewerFile(_)) && error.to_string().contains("version 9"), "{error:?}");

    let config = tessera_model::weights::ModelConfig { prior: None, ..whole.config.clone() };
    let incomplete = ModelFile { config, prior: Vec::new(), ..whole };
    let error = opened(&incomplete.to_bytes().unwrap()).1.err().unwrap();
    assert!(matches!(error, Error::UnusableModel(_)) && error.to_string().contains("no prior"), "{error:?}");
}

#[test]
fn invalid_requests_and_a_missing_reranker_have_different_errors() {
    let mut tessera = Tessera::embedded().unwrap();
    let fine = single(&tessera);
    let invalid = [
        (Request { n: 0, ..fine.clone() }, "wanted"),
        (Request { best: Some(2), ..fine.clone() }, "the best 2 of 1: best must not exceed n"),
        (Request { given: vec![None], ..fine.clone() }, "wanted"),
    ];
    for (request, expected) in invalid {
        let error = tessera.draw(request).err().unwrap();
        assert!(matches!(error, Error::InvalidRequest(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    tessera.reranker = None;
    let error = tessera.draw(Request { best: Some(1), ..fine }).err().unwrap();
    assert!(matches!(error, Error::NoReranker), "{error:?}");
}
