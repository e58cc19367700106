//! `train bpe`: learns the caption vocabulary (paper §2.2) from the training captions of a data
//! set.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tessera_base::Reporter;
use tessera_base::atomic;
use tessera_text::Bpe;

use crate::captions::bounded_captions;
use crate::config::Config;
use crate::samples::index_dataset;

/// Learns the vocabulary and writes it to `RUN/tokenizer.json`. Returns the tokenizer and the path
/// of its file.
///
/// # Errors
/// If the folder contains another tokenizer, because a model may depend on it.
pub fn train_bpe(
    config: &Config,
    data: &Path,
    run: &Path,
    reporter: &dyn Reporter,
) -> Result<(Bpe, PathBuf)> {
    let dataset = index_dataset(data, reporter)?;
    std::fs::create_dir_all(run).with_context(|| format!("cannot create {}", run.display()))?;
    let captions = bounded_captions(dataset.train.iter().flat_map(|sample| &sample.captions), reporter);
    let bpe = Bpe::train(captions.iter(), config.prior.text_vocab)?;
    let path = run.join("tokenizer.json");
    write_new(&path, &bpe.to_json()?)?;
    Ok((bpe, path))
}

/// Writes a tokenizer, unless `path` already contains another one.
fn write_new(path: &Path, json: &str) -> Result<()> {
    match std::fs::read(path) {
        Ok(old) => {
            ensure!(old == json.as_bytes(), "{} is another tokenizer; choose another --run", path.display());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            let shown = path.display();
            return Err(error).with_context(|| format!("cannot read {shown}; choose another --run"));
        }
    }
    atomic::write(path, json.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tokenizer_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        write_new(&path, "{}").unwrap();
        write_new(&path, "{}").unwrap();
        for other in [&b"{ }"[..], b"", b"\xff\xfe no UTF-8"] {
            std::fs::write(&path, other).unwrap();
            let error = write_new(&path, "{}").unwrap_err().to_string();
            assert!(error.contains("is another tokenizer; choose another --run"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), other);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = write_new(&path, "{}").unwrap_err().to_string();
        assert!(error.contains("cannot read") && path.is_dir(), "{error}");
    }
}
