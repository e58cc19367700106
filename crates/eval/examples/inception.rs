//! Measures the time in which Inception v3 extracts the features of two folders of pictures, and
//! the Fréchet distance between them. Prints one line of JSON. `benches/peers/eval.py` compares it
//! with pytorch-fid.
//!
//!     cargo run --release --package tessera-eval --example inception -- WEIGHTS FOLDER FOLDER

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use image::RgbImage;
use tessera_eval::{FeatureExtractor, Gaussian, Inception, Resize, frechet_distance};

/// Reads the PNGs of a folder, sorted by name.
fn pictures(folder: &Path) -> Result<Vec<RgbImage>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "png"));
    paths.sort();
    let open = |path: &PathBuf| {
        let picture = image::open(path).with_context(|| path.display().to_string())?;
        Ok(picture.to_rgb8())
    };
    paths.iter().map(open).collect()
}

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [weights, first, second] = &args[..] else { bail!("usage: inception WEIGHTS FOLDER FOLDER") };
    let inception = Inception::read(weights, Resize::PytorchFid, &burn::tensor::Device::flex())?;
    let folders = [pictures(first)?, pictures(second)?];
    inception.extract(&folders[0][..folders[0].len().min(8)])?;
    let started = Instant::now();
    let mut sets = Vec::new();
    for pictures in &folders {
        let mut set = Gaussian::new(&inception.name(), inception.dims());
        let extracted = inception.extract(pictures)?;
        extracted.features.chunks(inception.dims()).try_for_each(|features| set.push(features))?;
        sets.push(set);
    }
    let seconds = started.elapsed().as_secs_f64();
    let count: usize = folders.iter().map(Vec::len).sum();
    let fid = frechet_distance(&sets[0], &sets[1])?;
    println!("{{\"pictures\": {count}, \"seconds\": {seconds}, \"fid\": {fid}}}");
    Ok(())
}
