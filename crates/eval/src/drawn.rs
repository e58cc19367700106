//! Draws many captions into folders, on which metrics of sets of pictures are measured. An
//! interrupted run continues with the next caption.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tessera_base::atomic;
use tessera_data::picture::{decode, encode_png};
use tessera_model::{Event, Picture, Request, Sampling, Tessera};

/// The file that records the model and the settings of a folder's drawings.
const RECORD: &str = "drawn.json";

/// How each caption is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Draws {
    /// For each `k` in this list, the best of the first `k` candidates is kept. In ascending order.
    /// The list `[1]` needs no reranker.
    pub best_of: Vec<usize>,
    /// The seed. The seeds of the captions are derived from it.
    pub seed: u64,
    /// The sampling settings.
    pub sampling: Sampling,
}

/// The content of the file [`RECORD`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    model: String,
    reranker: Option<String>,
    seed: u64,
    sampling: Sampling,
    best_of: Vec<usize>,
    captions: Vec<String>,
}

/// Draws each of `captions` into `out/best-of-K/NNNNN.png` for each K of `draws`, and writes the
/// caption to `NNNNN.txt` in the same folder. `model` is the name of the model. After each caption
/// it passes the number of finished captions to `progress`.
///
/// # Errors
/// If `out` contains drawings with another model or other settings, the model has no reranker but
/// several candidates are drawn, or a file cannot be written.
pub fn draw_each(
    (tessera, model): (&Tessera, &str),
    captions: &[String],
    draws: &Draws,
    out: &Path,
    mut progress: impl FnMut(usize),
) -> Result<()> {
    let last = *draws.best_of.last().context("no numbers of candidates; wanted at least one")?;
    ensure!(
        draws.best_of.is_sorted() && draws.best_of[0] > 0,
        "best of {:?}: wanted positive numbers in ascending order",
        draws.best_of
    );
    begin(tessera, model, captions, draws, out)?;
    for (index, caption) in captions.iter().enumerate() {
        if !path(out, last, index).exists() {
            let request = Request {
                prompt: caption.clone(),
                n: last,
                best: (last > 1).then_some(last),
                seed: draws.seed.wrapping_add((index as u64).wrapping_mul(SEEDS_APART)),
                sampling: draws.sampling.clone(),
                previews: false,
                ..Request::default()
            };
            let ranked = pictures(tessera, request)?;
            for &k in &draws.best_of {
                let best = ranked.iter().find(|picture| picture.index < k).context("no picture")?;
                let path = path(out, k, index);
                atomic::write(&path.with_extension("txt"), caption.as_bytes())?;
                atomic::write(&path, &encode_png(&best.image)?)?;
            }
        }
        progress(index + 1);
    }
    Ok(())
}

/// The difference between the seeds of two consecutive captions. It is large, so that their
/// candidates are independent.
pub(crate) const SEEDS_APART: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns the folder of the best of `k` candidates.
pub fn best_of(out: &Path, k: usize) -> PathBuf {
    out.join(format!("best-of-{k:03}"))
}

fn path(out: &Path, k: usize, index: usize) -> PathBuf {
    best_of(out, k).join(format!("{index:05}.png"))
}

/// Creates the folders and the record. If there is a record, it must be equal.
fn begin(tessera: &Tessera, model: &str, captions: &[String], draws: &Draws, out: &Path) -> Result<()> {
    let record = Record {
        model: model.to_string(),
        reranker: tessera.reranker.as_ref().map(|reranker| reranker.fingerprint()),
        seed: draws.seed,
        sampling: draws.sampling.clone(),
        best_of: draws.best_of.clone(),
        captions: captions.to_vec(),
    };
    for &k in &draws.best_of {
        let folder = best_of(out, k);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let file = out.join(RECORD);
    match fs::read_to_string(&file) {
        Err(_) => atomic::write(&file, serde_json::to_string_pretty(&record)?.as_bytes()),
        Ok(text) => {
            let found: Record =
                serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
            let shown = out.display();
            ensure!(
                found == record,
                "{shown} holds drawings by another model, seed or captions, or with other settings; choose another \
                 folder"
            );
            Ok(())
        }
    }
}

fn pictures(tessera: &Tessera, request: Request) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for event in tessera.draw(request)? {
        if let Event::Picture(picture) = event? {
            pictures.push(picture);
        }
    }
    Ok(pictures)
}

/// Reads the first `n` pictures of a folder of [`draw_each`], in the order of the captions.
pub fn pictures_in(folder: &Path, n: usize) -> impl Iterator<Item = Result<RgbImage>> + '_ {
    (0..n).map(move |index| {
        let file = folder.join(format!("{index:05}.png"));
        let picture = fs::read(&file).map_err(anyhow::Error::from).and_then(|bytes| decode(&bytes));
        picture.with_context(|| format!("no complete drawing at {}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    use image::ImageFormat;

    use super::*;

    /// The format of a drawing is detected from its content, not from its file name.
    #[test]
    fn drawings_are_read_by_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let image = RgbImage::from_pixel(8, 8, image::Rgb([200, 30, 30]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::WebP).unwrap();
        fs::write(dir.path().join("00000.png"), bytes.get_ref()).unwrap();
        fs::write(dir.path().join("00001.png"), &bytes.get_ref()[..20]).unwrap();
        let mut read = pictures_in(dir.path(), 3);
        assert_eq!(read.next().unwrap().unwrap(), image);
        for name in ["00001.png", "00002.png"] {
            let error = format!("{:#}", read.next().unwrap().unwrap_err());
            assert!(error.contains("no complete drawing at") && error.contains(name), "{error}");
        }
    }
}
